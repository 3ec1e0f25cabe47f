"""The random checkpoint, pictures and files that `perf/reference.py` gives to both sides.

Everything is in the authors' formats: an original-format LLaVA, a CLIP folder, and two task folders as their training writes
them, of which one has learned all tasks (to be asked) and one all but the last (to be trained on). This package reads the
same files through its importer, so both sides hold the same numbers.
"""

from __future__ import annotations

import io
import json
import math
import random
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save_file
from sentencepiece import SentencePieceTrainer
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

from hide_llava.interop.hide_reference import PROJECTIONS, import_run

MINI_CLIP = Path(__file__).parent.parent / "hide_llava" / "assets" / "mini" / "clip"
WIDTH = 768  # of CLIP's text tower and of routing features; their anchors are made with this width
SLOTS = 10  # of their anchors
STD = 0.02
SIZES = ((300, 300), (640, 480), (480, 640), (500, 375), (768, 768), (1024, 768))  # of the pictures
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and "
    "polite answers to the user's questions. USER: ASSISTANT: "
)
QUESTIONS = (
    "What is the object in the image?\nAnswer the question using a single word or phrase.",
    "Which option fits the picture best? Answer with the option's letter from the given choices directly.\n",
    "Describe what the picture shows in one short sentence, as a person who sees it for the first time would.",
)
TRAINED_TEXT = "The picture shows {words}. Is this so? Answer the question using a single word or phrase."


@dataclass(frozen=True)
class World:
    """Shapes and counts. `hidden` to `words` are of the decoder, `vision*` of the tower, `text_layers` of CLIP's text tower."""

    hidden: int
    layers: int
    heads: int
    words: int
    vision: int
    vision_layers: int
    text_layers: int
    rank: int
    experts: int
    questions: int
    records: int

    @property
    def mlp(self) -> int:
        return round(self.hidden * 2.6875)  # as in LLaMA-7B


def write_tokenizer(world: World, folder: Path) -> list[str]:
    """A LLaMA tokenizer of `words` pieces, trained on made-up words and on the prompts; the made-up words."""
    draw = random.Random(0)
    syllables = [c + v for c in "bcdfghjklmnprstvwz" for v in ("a", "e", "i", "o", "u", "ai", "an", "en", "or", "es")]
    made = sorted({"".join(draw.choices(syllables, k=draw.randint(1, 4))) for _ in range(2 * world.words)})
    lines = [" ".join(made[i : i + 50]) for i in range(0, len(made), 50)]
    lines += 100 * [SYSTEM, *QUESTIONS, TRAINED_TEXT]
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, vocab_size=world.words, model_type="bpe", byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, split_digits=True, character_coverage=1.0,
        allow_whitespace_only_pieces=True, minloglevel=2, num_threads=1,
    )  # fmt: skip
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    settings = {"add_bos_token": True, "add_eos_token": False, "bos_token": "<s>", "eos_token": "</s>",
                "unk_token": "<unk>", "pad_token": "<unk>", "legacy": True, "model_max_length": 2048, "padding_side": "right",
                "tokenizer_class": "LlamaTokenizer"}  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return made


def _drawn(*shape: int, std: float | None = None) -> Tensor:
    """Normal numbers; by default such that a product with the matrix keeps the size of its input."""
    return torch.randn(*shape) * (1 / math.sqrt(shape[-1]) if std is None else std)


def _linears(world: World) -> dict[str, tuple[int, int]]:
    """(out, in) of the decoder's linears, by name in a layer."""
    wide = {"gate_proj": (world.mlp, world.hidden), "up_proj": (world.mlp, world.hidden),
            "down_proj": (world.hidden, world.mlp)}  # fmt: skip
    return {f"{block}.{name}": wide.get(name, (world.hidden, world.hidden)) for name, block in PROJECTIONS.items()}


def base_weights(world: World) -> dict[str, Tensor]:
    """Decoder and projector under the names of the original format; the vision tower stays in the CLIP folder."""
    hidden = world.hidden
    weights = {"model.embed_tokens.weight": _drawn(world.words, hidden, std=1.0), "model.norm.weight": torch.ones(hidden),
               "lm_head.weight": _drawn(world.words, hidden)}  # fmt: skip
    for number, width in ((0, world.vision), (2, hidden)):
        weights[f"model.mm_projector.{number}.weight"] = _drawn(hidden, width)
        weights[f"model.mm_projector.{number}.bias"] = torch.zeros(hidden)
    for i in range(world.layers):
        layer = f"model.layers.{i}"
        weights |= {f"{layer}.{norm}.weight": torch.ones(hidden) for norm in ("input_layernorm", "post_attention_layernorm")}
        weights |= {f"{layer}.{name}.weight": _drawn(*shape) for name, shape in _linears(world).items()}
    return weights


def base_config(world: World, clip: Path) -> dict[str, object]:
    """config.json as the authors' repository has it, with these shapes."""
    return {
        "architectures": ["LlavaLlamaForCausalLM"], "model_type": "llava", "bos_token_id": 1, "eos_token_id": 2,
        "pad_token_id": 0, "hidden_act": "silu", "hidden_size": world.hidden, "intermediate_size": world.mlp,
        "num_hidden_layers": world.layers, "num_attention_heads": world.heads, "num_key_value_heads": world.heads,
        "vocab_size": world.words, "max_position_embeddings": 2048, "max_length": 2048, "rms_norm_eps": 1e-5,
        "initializer_range": STD, "tie_word_embeddings": False, "torch_dtype": "float32", "pretraining_tp": 1,
        "rope_scaling": None, "use_cache": True, "image_aspect_ratio": "pad", "mm_hidden_size": world.vision,
        "mm_projector_type": "mlp2x_gelu", "mm_use_im_patch_token": False, "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch", "mm_vision_select_layer": -2, "mm_text_select_layer": -1,
        "mm_vision_tower": str(clip), "mm_text_tower": str(clip), "use_mm_proj": True,
    }  # fmt: skip


def write_clip(world: World, folder: Path) -> None:
    """Both towers, the small base's text tokenizer, and CLIP's picture settings at 336 pixels."""
    end = json.loads((MINI_CLIP / "config.json").read_text())["text_config"]["eos_token_id"]
    vision = CLIPVisionConfig(
        hidden_size=world.vision, intermediate_size=4 * world.vision, num_hidden_layers=world.vision_layers,
        num_attention_heads=4, image_size=336, patch_size=14, projection_dim=WIDTH,
    )  # fmt: skip
    text = CLIPTextConfig(
        hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=world.text_layers, num_attention_heads=12,
        vocab_size=49408, projection_dim=WIDTH, bos_token_id=end - 1, eos_token_id=end, pad_token_id=end,
    )  # fmt: skip
    clip = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=WIDTH)
    CLIPModel(clip).save_pretrained(folder)
    for file in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        (folder / file).write_bytes((MINI_CLIP / file).read_bytes())
    square = {"height": 336, "width": 336}
    settings = {"image_processor_type": "CLIPImageProcessor", "do_resize": True, "size": {"shortest_edge": 336},
                "resample": 3, "do_center_crop": True, "crop_size": square, "do_rescale": True, "rescale_factor": 1 / 255,
                "do_normalize": True, "do_convert_rgb": True, "image_mean": [0.48145466, 0.4578275, 0.40821073],
                "image_std": [0.26862954, 0.26130258, 0.27577711]}  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))


def write_task(world: World, folder: Path, learned: int, experts: dict[str, Tensor], others: dict[str, Tensor]) -> None:
    """A task folder as the authors' training leaves it after `learned` tasks: B of the other slots is zero."""
    folder.mkdir()
    slot = {name: int(name.split(".lora_B.loraB.")[1].split(".")[0]) for name in experts if "lora_B" in name}
    kept = {name: torch.zeros_like(t) if slot.get(name, -1) >= learned else t for name, t in experts.items()}
    torch.save(kept, folder / "adapter_model.bin")
    torch.save(others, folder / "non_lora_trainables.bin")
    total = world.rank * world.experts
    settings = {"base_model_name_or_path": "base", "bias": "none", "cur_task": learned - 1, "expert_num": world.experts,
                "fan_in_fan_out": False, "inference_mode": True, "init_lora_weights": True, "lora_alpha": 2 * total,
                "lora_dropout": 0.05, "peft_type": "MOE_LORA_HiDe", "r": total, "target_modules": list(PROJECTIONS),
                "task_embedding_dim": 64, "task_type": "CAUSAL_LM_HiDe"}  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    (folder / "config.json").write_text((folder.parent / "base" / "config.json").read_text())


def adapters(world: World, base: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """All experts and their unused routers; the projector, and the anchors with their counts."""
    experts: dict[str, Tensor] = {}
    for i in range(world.layers):
        for name, (rows, columns) in _linears(world).items():
            linear = f"base_model.model.model.layers.{i}.{name}"
            for slot in range(world.experts):
                experts[f"{linear}.lora_A.loraA.{slot}.weight"] = _drawn(world.rank, columns, std=STD)
                experts[f"{linear}.lora_B.loraB.{slot}.weight"] = _drawn(rows, world.rank, std=STD)
            experts[f"{linear}.lora_router.weight"] = _drawn(world.experts, columns)
    others = {f"base_model.model.{k}": v for k, v in base.items() if "mm_projector" in k}
    for kind in ("image", "text"):
        for slot in range(max(SLOTS, world.experts)):
            others[f"base_model.model.{kind}_anchors.{slot}"] = _drawn(1, WIDTH, std=1.0)
            others[f"base_model.model.{kind}_boundary.{slot}"] = torch.full((1,), 100.0, dtype=torch.bfloat16)
    return experts, others


def write_data(world: World, folder: Path, made: list[str]) -> None:
    """Pictures, questions of mixed lengths, and training records that are all the same.

    Equal records make equal batches whatever order a side draws, so steps do the same work, and the loss of the first
    step, where the new expert's B is zero, must be the same number on both sides.
    """
    draw = random.Random(1)
    (folder / "pictures").mkdir(parents=True)
    names = []
    for i in range(min(48, max(world.questions, 1))):
        width, height = SIZES[i % len(SIZES)]
        coarse = Image.frombytes("RGB", (16, 16), draw.randbytes(16 * 16 * 3))
        names.append(f"{i:02d}.jpg")
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(folder / "pictures" / names[-1], quality=90)
    questions = []
    for i in range(world.questions):
        text = QUESTIONS[i % len(QUESTIONS)]
        if text.endswith("\n"):
            text += "\n".join(f"{letter}. {' '.join(draw.choices(made, k=20))}" for letter in "ABCD")
        questions.append({"question_id": i, "image": names[i % len(names)], "text": text, "answer": "A"})
    (folder / "test.json").write_text(json.dumps(questions))
    question = TRAINED_TEXT.format(words=" ".join(draw.choices(made, k=20)))
    turns = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": " ".join(made[100:106])}]
    records = [{"id": str(i), "image": names[0], "conversations": turns} for i in range(world.records)]
    (folder / "train.json").write_text(json.dumps(records))


def write_world(world: World, folder: Path) -> None:
    """Everything under `folder`: base, clip, both task folders, data, and the run folders that they are imported to."""
    torch.manual_seed(0)
    base, clip, data = folder / "base", folder / "clip", folder / "data"
    base.mkdir(parents=True)
    made = write_tokenizer(world, base)
    weights = base_weights(world)
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    (base / "config.json").write_text(json.dumps(base_config(world, clip)))
    write_clip(world, clip)
    experts, others = adapters(world, weights)
    write_data(world, data, made)
    tasks = [{"id": f"task-{i + 1}", "title": f"Task {i + 1}", "train": "train.json", "test": "test.json",
              "metric": "exact_upper"} for i in range(world.experts)]  # fmt: skip
    tree = {"name": "side-by-side", "instructions": ".", "images": "pictures", "image_orientation": "ignore", "tasks": tasks}
    (folder / "benchmark.yaml").write_text(json.dumps({"benchmark": tree}))
    for learned in (world.experts - 1, world.experts):
        checkpoint = folder / f"Task{learned}_llava_lora_ours"
        write_task(world, checkpoint, learned, experts, others)
        import_run([checkpoint], base, clip, folder / f"run-{learned}", benchmark=str(folder / "benchmark.yaml"))
