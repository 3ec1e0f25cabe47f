"""Memory that each preset of a model takes in training, by `hide-llava plan`, from the shapes that their publishers state.

    python perf/preset_memory.py                       # train=24gb, what the first lines of configs/model/*.yaml say
    python perf/preset_memory.py --train default --gpu h100 --method lora

Nothing is downloaded and no weight is made: each folder holds a config.json with the published numbers, the settings of the
image processor, and the tokenizer of the tests' tiny model of that family. Numbers: the models' config.json and
preprocessor_config.json on the hub. Whether they are right shows in the count of parameters, which is printed beside the
published one. Estimates: nothing here was measured on a GPU.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from hide_llava.config import compose
from hide_llava.planning.plan import plan
from hide_llava.training.run import Run
from tests import zoo

SIGLIP_384 = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 26, "num_attention_heads": 16,
              "image_size": 384, "patch_size": 14}  # fmt: skip
CLIP_336 = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
            "image_size": 336, "patch_size": 14, "projection_dim": 768}  # fmt: skip
INTERN_300M = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
               "image_size": [448, 448], "patch_size": [14, 14]}  # fmt: skip
GRIDS_NEXT = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
GRIDS_OV = [[384 * a, 384 * b] for a in range(1, 7) for b in range(1, 7)]


def decoder(hidden: int, inner: int, layers: int, heads: int, groups: int, words: int, **more: Any) -> dict[str, Any]:
    """Numbers of a decoder: width, inner width, layers, heads, heads of keys and values, vocabulary."""
    return {"hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": heads,
            "num_key_value_heads": groups, "vocab_size": words, **more}  # fmt: skip


def qwen_rope(sections: list[int]) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": sections}}


QWEN25 = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "window_size": 112,
          "fullatt_block_indexes": [7, 15, 23, 31]}  # fmt: skip
# preset → (kind of tests/zoo.py, billions of parameters that the hub states, decoder, tower, image processor)
Shape = tuple[str, float, dict[str, Any], dict[str, Any], dict[str, Any]]
SHAPES: dict[str, Shape] = {
    "qwen2.5-vl-3b": ("qwen2_5_vl", 3.75, decoder(2048, 11008, 36, 16, 2, 151936, tie_word_embeddings=True,
                      **qwen_rope([16, 24, 24])), {**QWEN25, "out_hidden_size": 2048}, {}),
    "qwen2.5-vl-7b": ("qwen2_5_vl", 8.29, decoder(3584, 18944, 28, 28, 4, 152064, **qwen_rope([16, 24, 24])),
                      {**QWEN25, "out_hidden_size": 3584}, {}),
    "qwen3-vl-4b": ("qwen3_vl", 4.44, decoder(2560, 9728, 36, 32, 8, 151936, head_dim=128, tie_word_embeddings=True,
                    **qwen_rope([24, 20, 20])),
                    {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16, "out_hidden_size": 2560,
                     "num_position_embeddings": 2304, "deepstack_visual_indexes": [5, 11, 17]}, {}),
    "internvl3.5-4b": ("internvl", 4.73, decoder(2560, 9728, 36, 32, 8, 151936, head_dim=128, model_type="qwen3"),
                       INTERN_300M, {"size": {"height": 448, "width": 448}, "max_patches": 12}),
    "internvl3.5-8b": ("internvl", 8.53, decoder(4096, 12288, 36, 32, 8, 151936, head_dim=128, model_type="qwen3"),
                       INTERN_300M, {"size": {"height": 448, "width": 448}, "max_patches": 12}),
    "llava-onevision-0.5b": ("llava_onevision", 0.89, decoder(896, 4864, 24, 14, 2, 152000, tie_word_embeddings=True),
                             SIGLIP_384, {"size": {"height": 384, "width": 384}, "image_grid_pinpoints": GRIDS_OV}),
    "llava-onevision-7b": ("llava_onevision", 8.03, decoder(3584, 18944, 28, 28, 4, 152128),
                           SIGLIP_384, {"size": {"height": 384, "width": 384}, "image_grid_pinpoints": GRIDS_OV}),
    "llava-next-7b": ("llava_next", 7.06, decoder(4096, 11008, 32, 32, 32, 32064, model_type="llama"), CLIP_336,
                      {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336},
                       "image_grid_pinpoints": GRIDS_NEXT}),
    "smolvlm2": ("smolvlm", 2.25, decoder(2048, 8192, 24, 32, 32, 49280), {**SIGLIP_384, "num_hidden_layers": 27},
                 {"size": {"longest_edge": 1536}, "max_image_size": {"longest_edge": 384}}),
    "gemma-3-4b": ("gemma3", 4.30, decoder(2560, 10240, 34, 8, 4, 262208, head_dim=256, sliding_window=1024,
                   layer_types=(["sliding_attention"] * 5 + ["full_attention"]) * 5 + ["sliding_attention"] * 4,
                   tie_word_embeddings=True), {**SIGLIP_384, "num_hidden_layers": 27, "image_size": 896},
                   {"size": {"height": 896, "width": 896}}),
}  # fmt: skip
# What else a configuration says: of the whole model, not of its decoder or its tower.
WHOLE: dict[str, dict[str, Any]] = {
    "internvl": {"image_seq_length": 256, "downsample_ratio": 0.5}, "smolvlm": {"scale_factor": 3},
    "gemma3": {"mm_tokens_per_image": 256}, "llava_next": {"image_grid_pinpoints": GRIDS_NEXT},
    "llava_onevision": {"image_grid_pinpoints": GRIDS_OV},
}  # fmt: skip
SETTINGS: dict[str, dict[str, Any]] = {
    "internvl": {"image_seq_length": 256}, "smolvlm": {"image_seq_len": 81}, "gemma3": {"image_seq_length": 256},
    "llava_next": {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1},
    "llava_onevision": {"num_image_tokens": 729, "vision_feature_select_strategy": "full"},
}  # fmt: skip


def write(preset: str, folder: Path) -> Path:
    """A folder for `plan`: everything of the model but its weights."""
    kind, _, text, tower, image = SHAPES[preset]
    made: Callable[[], zoo.Parts] = zoo.MAKERS[kind]
    config, tokenizer, processor, settings = made()
    tree = config.to_dict()
    kept = ("model_type", "bos_token_id", "eos_token_id", "pad_token_id", "sliding_window", "query_pre_attn_scalar")
    tree["text_config"] = {key: tree["text_config"][key] for key in kept if key in tree["text_config"]} | text
    tree["vision_config"] |= tower
    tree |= WHOLE.get(kind, {}) | {"tie_word_embeddings": text.get("tie_word_embeddings", False)}
    folder.mkdir(parents=True)
    tokenizer.save_pretrained(folder)
    processor.save_pretrained(folder)
    for name, more in (("preprocessor_config.json", image), ("processor_config.json", {**settings, **SETTINGS.get(kind, {})})):
        found = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
        (folder / name).write_text(json.dumps(found | more))
    if kind.startswith("qwen"):  # 16,384 tokens of a picture, before the preset's budget
        patch = tree["vision_config"]["patch_size"]
        file = folder / "preprocessor_config.json"
        size = {"shortest_edge": 4 * (2 * patch) ** 2, "longest_edge": 16384 * (2 * patch) ** 2}
        file.write_text(json.dumps(json.loads(file.read_text()) | {"size": size}))
    (folder / "config.json").write_text(json.dumps(tree))
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="hide")
    parser.add_argument("--train", default="24gb")
    parser.add_argument("--gpu", default="4090")
    parser.add_argument("--preset", choices=[*SHAPES], action="append", help="only these; may be repeated")
    args = parser.parse_args()
    titles = ("preset", "parameters", "published", "memory of a process in training")
    table = Table(*titles, title=f"{args.method}, train={args.train}")
    with tempfile.TemporaryDirectory() as place:
        for preset in args.preset or SHAPES:
            folder = write(preset, Path(place) / preset)
            words = ["benchmark=ucit", f"method={args.method}", f"model={preset}", f"train={args.train}", f"model.path={folder}"]
            text = plan(Run(compose(words)), gpu=args.gpu).splitlines()
            found = {key: next((line for line in text if line.startswith(key)), f"no line '{key}'")
                     for key in ("base model", "memory")}  # fmt: skip
            table.add_row(preset, found["base model"].split(": ")[1].split(" M ")[0], f"{SHAPES[preset][1] * 1e3:,.0f}",
                          found["memory"].split(": ", 1)[-1])  # fmt: skip
            if found["memory"].startswith("no line"):
                print("\n".join(text))
    Console(width=200).print(table)


if __name__ == "__main__":
    main()
