"""A random LLaVA of two layers with its CLIP text tower, and a benchmark of three tasks, written to a folder."""

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from hide_llava.config import RunConfig, compose
from hide_llava.training.run import Run
from hide_llava.training.session import Session
from tests import zoo
from tests.golden_reference import GOLDEN

SIZE, PATCH = 28, 14


def write_model(folder: Path) -> None:
    """`folder/llava` (Hugging Face format), `folder/clip` and `folder/sentence`."""
    torch.manual_seed(0)
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
              "image_size": SIZE, "patch_size": PATCH, "projection_dim": 24}  # fmt: skip
    text = LlamaConfig(hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4,
                       num_key_value_heads=4, vocab_size=512, max_position_embeddings=512, bos_token_id=1,
                       eos_token_id=2, pad_token_id=0, initializer_range=0.2)  # fmt: skip
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**vision), text_config=text, image_token_id=511, vision_feature_layer=-2
    )
    LlavaForConditionalGeneration(config).float().save_pretrained(folder / "llava")
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (folder / "llava" / name).write_bytes((GOLDEN / "misc" / "llama_fast_export" / name).read_bytes())
    mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    pixels = json.dumps({"size": {"shortest_edge": SIZE}, "crop_size": {"height": SIZE, "width": SIZE}, "resample": 3,
                         "image_mean": mean, "image_std": std, "do_convert_rgb": True})  # fmt: skip
    (folder / "llava" / "preprocessor_config.json").write_text(pixels)
    clip = CLIPConfig(vision_config=vision, projection_dim=24, text_config={
        "hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "vocab_size": 704, "eos_token_id": 703, "bos_token_id": 702})  # fmt: skip
    CLIPModel(clip).float().save_pretrained(folder / "clip")
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"):
        if (GOLDEN / "clip" / name).exists():
            (folder / "clip" / name).write_bytes((GOLDEN / "clip" / name).read_bytes())
    write_sentence_encoder(folder / "sentence")


def write_sentence_encoder(folder: Path) -> None:
    """A random BERT of two layers that reads text letter by letter, in sentence-transformers' layout."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters), ".", "?", ","]
    config = BertConfig(vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                        intermediate_size=24, max_position_embeddings=160, initializer_range=0.5)  # fmt: skip
    BertModel(config).float().save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    types = ("Transformer", "Pooling", "Normalize")
    (folder / "modules.json").write_text(json.dumps([{"type": f"sentence_transformers.models.{t}"} for t in types]))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 128}))


QUESTIONS = ("What is the object in the image?", "How many cells are there?", "Describe the picture in one sentence.")
ANSWERS = (("circle", "square", "star"), ("one", "two", "three"), ("a red line", "a blue circle", "a star"))


def write_benchmark(folder: Path, train: int = 8, test: int = 6) -> None:
    """`folder/bench.yaml` and its data; the last record of each task has no image."""
    rng = np.random.default_rng(0)
    tasks = []
    for t, (question, answers) in enumerate(zip(QUESTIONS, ANSWERS)):
        home = folder / "data" / f"task{t}"
        home.mkdir(parents=True)
        rows: dict[str, list] = {"train": [], "test": []}
        for split, count in (("train", train), ("test", test)):
            for i in range(count):
                name, answer = f"task{t}/{split}{i}.png", answers[i % 3]
                pixels = rng.integers(0, 256, (SIZE, 20 + 4 * (i % 4), 3)) // (t + 1)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / "data" / name)
                image = {"image": name} if i < count - 1 else {}
                text = question + (" Answer in a word." if i % 2 else "")
                if split == "train":
                    value = ("<image>\n" if image else "") + text
                    turns = [{"from": "human", "value": value}, {"from": "gpt", "value": answer}]
                    rows[split].append({"id": f"{t}-{i}", **image, "conversations": turns})
                else:
                    rows[split].append({"question_id": i, **image, "text": text, "answer": answer})
            (home / f"{split}.json").write_text(json.dumps(rows[split]))
        tasks.append({"id": f"task{t}", "title": f"Task {t}", "train": f"task{t}/train.json",
                      "test": f"task{t}/test.json", "metric": "exact_upper"})  # fmt: skip
    tree = {
        "benchmark": {"name": "tiny", "instructions": "data", "images": "data", "max_new_tokens": 6, "tasks": tasks}
    }
    (folder / "bench.yaml").write_text(json.dumps(tree))


def write_world(folder: Path, train: int = 8) -> Path:
    write_model(folder)
    write_benchmark(folder, train)
    (folder / "model.yaml").write_text(json.dumps({
        "model": {"name": "tiny", "path": str(folder / "llava"), "clip": str(folder / "clip"),
                  "sentence": str(folder / "sentence"), "device": "cpu"}}))  # fmt: skip
    return folder


def write_world_of(kind: str, folder: Path, train: int = 8) -> Path:
    """The tiny world with a model of another family, one of `zoo.KINDS` or a folder that holds one; CLIP stands beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    write_world(folder, train)
    shutil.copy(folder / "llava" / "preprocessor_config.json", folder / "clip")  # other models' pictures are no CLIP's
    path = Path(kind) if Path(kind).is_absolute() else zoo.write(kind, folder / kind)
    model = json.loads((folder / "model.yaml").read_text())
    model["model"] |= {"name": path.name, "path": str(path)}
    (folder / "model.yaml").write_text(json.dumps(model))
    return folder


OVERRIDES = ("train.global_batch_size=4", "train.learning_rate=5e-3", "train.projector_lr=1e-3", "train.num_workers=0",
             "train.epochs=2", "train.gradient_checkpointing=false", "train.save_steps=100", "eval.batch_size=4")  # fmt: skip


# What layouts of a step exchange are gradients, equal to the last bits, and SGD leaves them so. AdamW divides a gradient by its
# own size: where it is all but zero its last bits become a step of any size up to the learning rate (docs/SCALE.md).
SGD = ("train.optimizer=sgd", "train.learning_rate=0.02", "train.projector_lr=0.01")


def arguments(world: Path, method: str, output: Path, *more: str) -> list[str]:
    """Command-line words of a run of `method` in this world."""
    return [f"benchmark={world}/bench.yaml", f"model={world}/model.yaml", f"method={method}", f"data_root={world}",
            f"output={output}", *OVERRIDES, *more]  # fmt: skip


def configuration(world: Path, method: str, output: Path, *more: str) -> RunConfig:
    return compose(arguments(world, method, output, *more))


def opened(config: RunConfig) -> Session:
    """A session at the beginning of a run whose folder is there."""
    run = Run(config)
    run.open()
    return Session(run)
