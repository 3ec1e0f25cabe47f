"""A tiny model of each family of tests/zoo.py, and how its text is written, by hand: nothing here asks a reader."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageTextToText, PreTrainedModel

from hide_llava.adapters.core import Core
from hide_llava.adapters.spec import LoraSpec
from hide_llava.backbones.auto import load
from hide_llava.backbones.base import Ready
from hide_llava.backbones.chat import ChatBackbone
from hide_llava.backbones.chat_reader import ChatReader
from hide_llava.data.collator import Collator
from hide_llava.data.dataset import item
from hide_llava.schema import ModelConfig
from tests.zoo import KINDS, VISION, write

FAMILIES = tuple(kind for kind in KINDS if kind != "llava")  # LLaVA-1.5 has its recordings
SEVERAL = tuple(kind for kind in FAMILIES if kind != "paligemma")  # a record of these may have several pictures
QWEN = tuple(kind for kind in FAMILIES if kind.startswith("qwen"))
# What a picture is in the text of a conversation, and the words around: first, question, answer, each end.
PICTURE = {**dict.fromkeys(QWEN, VISION), "internvl": "<IMG_CONTEXT>\n", "llava_onevision": "<image>\n",
           "llava_next": "<image>\n", "smolvlm": "<image>", "idefics3": "<image>", "gemma3": "<start_of_image>",
           "paligemma": "<image>", "mistral3": "[IMG]"}  # fmt: skip
# What stands for a picture to the processor.
MARK = {kind: PICTURE[kind].strip("\n") if kind not in QWEN else "<|image_pad|>" for kind in FAMILIES}

Turn = tuple[str, int, str]  # a question, the pictures in front of it, its answer
Piece = tuple[str, bool]  # text, and whether it is learned


@cache
def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed + 1000 * width + height).integers(0, 256, (height, width, 3))
    return Image.fromarray(pixels.astype(np.uint8))


def written(kind: str, turns: Sequence[Turn]) -> list[Piece]:
    """A conversation as that kind's template writes it, a mark for each picture."""
    made: list[Piece] = [(BEGIN.get(kind, ""), False)]
    if kind == "paligemma":  # the picture stands before everything, whichever question it belongs to
        made = [("<image>" * sum(count for _, count, _ in turns) + "<bos>", False)]
    for question, count, answer in turns:
        pictures = PICTURE[kind] * count
        if kind == "paligemma":
            made += [(question + "\n", False), (answer + "<eos>", True)]
        elif kind == "llava_next":
            made += [(f"[INST] {pictures}{question} [/INST]", False), (f" {answer}</s>", True)]
        elif kind == "mistral3":
            made += [(f"[INST]{pictures}{question}[/INST]", False), (f"{answer}</s>", True)]
        elif kind in ("smolvlm", "idefics3"):
            made += [(f"User:{'' if count else ' '}{pictures}{question}<end_of_utterance>\nAssistant:", False),
                     (f" {answer}<end_of_utterance>", True), ("\n", False)]  # fmt: skip
        elif kind == "gemma3":
            made += [(f"<start_of_turn>user\n{pictures}{question}<end_of_turn>\n<start_of_turn>model\n", False),
                     (f"{answer}<end_of_turn>", True), ("\n", False)]  # fmt: skip
        else:
            made += [(f"<|im_start|>user\n{pictures}{question}<|im_end|>\n<|im_start|>assistant\n", False),
                     (f"{answer}<|im_end|>", True), ("\n", False)]  # fmt: skip
    return made


SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
BEGIN = {"qwen2_vl": SYSTEM, "qwen2_5_vl": SYSTEM, "smolvlm": "<|im_start|>", "idefics3": "<|im_start|>", "gemma3": "<bos>",
         "mistral3": "<s>", "llava_next": "<s>"}  # fmt: skip


def prompt(kind: str, question: str, count: int) -> str:
    """A question up to where the model answers."""
    (_, begin), (_, asked) = ((learned, text) for text, learned in written(kind, [(question, count, "")])[:2])
    return begin + asked


@dataclass
class Family:
    """The model of one kind in its folder."""

    kind: str
    folder: Path

    def load(self, **options: Any) -> ChatBackbone:
        """A new one. options: of the configuration of a model."""
        config = {"name": self.kind, "path": str(self.folder), "device": "cpu", "dtype": "float32"}
        return load(ModelConfig(**{**config, **options}), self.folder)

    @cached_property
    def backbone(self) -> ChatBackbone:
        """One for all tests: nothing may be changed in it."""
        return self.load()

    @property
    def reader(self) -> ChatReader:
        return self.backbone.reader()

    @cached_property
    def upstream(self) -> PreTrainedModel:
        """As transformers alone loads it."""
        return AutoModelForImageTextToText.from_pretrained(self.folder, dtype=torch.float32).eval()

    def expanded(self, text: str, images: Sequence[Image.Image]) -> dict[str, Any]:
        """Upstream's own call for a text with marks of pictures: ids, and all that the model takes beside."""
        processor = self.backbone.processor
        if self.kind == "mistral3":  # its processor's module needs torchvision: by upstream's rule
            made = {}
            if images:
                made = dict(processor.image_processor(list(images), patch_size=14, return_tensors="pt"))
                for height, width in made["image_sizes"].tolist():
                    rows = "[IMG_BREAK]".join(["[IMG]" * (width // 14)] * (height // 14)).replace("[IMG]", "[§]")
                    text = text.replace("[IMG]", rows + "[IMG_END]", 1)
            return {**self.plain(text.replace("[§]", "[IMG]")), **made}
        if self.kind == "paligemma":
            pixels = dict(processor.image_processor(list(images), return_tensors="pt")) if images else {}
            made = self.plain(text.replace("<image>", "<image>" * 16))
            types = torch.zeros_like(made["input_ids"])
            return {**made, **pixels, "token_type_ids": types}
        return dict(processor(text=[text], images=[list(images)] if images else None, add_special_tokens=False,
                              return_tensors="pt"))  # fmt: skip

    def plain(self, text: str) -> dict[str, Any]:
        """A text without pictures in tokens, its special tokens being those that are written in it."""
        return dict(self.backbone.tokenizer(text, add_special_tokens=False, return_tensors="pt"))

    def ids(self, text: str) -> list[int]:
        return self.plain(text)["input_ids"][0].tolist() if text else []

    def asked(self, question: str, images: Sequence[Image.Image] = ()) -> dict[str, Any]:
        """A question as a sample."""
        return asked(self.backbone, question, images)

    def logits(self, rows: Sequence[dict[str, Any]], side: str = "left") -> list[Tensor]:
        """Of each row, where it has tokens [n, V]."""
        return logits(self.backbone, rows, side)

    def answers(self, rows: Sequence[dict[str, Any]], new: int = 6) -> list[list[int]]:
        return self.backbone.answer(ready(self.backbone, rows), new)


def asked(backbone: ChatBackbone, question: str, images: Sequence[Image.Image] = ()) -> dict[str, Any]:
    """A question as a sample."""
    reader, sizes = backbone.reader(), [image.size for image in images]
    return {**item(reader.question(question, sizes), reader.pixels(images) if images else None, sizes), "id": question}


def learned(backbone: ChatBackbone, turns: Sequence[Turn], images: Sequence[Image.Image] = ()) -> dict[str, Any]:
    """A training record as a sample."""
    reader, sizes = backbone.reader(), [image.size for image in images]
    read = reader.training(record(turns), sizes, 2048)
    pixels = reader.pixels(images) if images else None
    return {**item(read, pixels, sizes), "labels": torch.tensor(read.labels), "id": turns[0][0]}


def record(turns: Sequence[Turn]) -> list[dict[str, str]]:
    """Turns as a training file has them."""
    return [
        turn
        for question, count, answer in turns
        for turn in ({"from": "human", "value": "<image>\n" * count + question}, {"from": "gpt", "value": answer})
    ]


def ready(
    backbone: ChatBackbone, rows: Sequence[dict[str, Any]], side: str = "left", prompts: Tensor | None = None,
    train: bool = False,
) -> Ready:  # fmt: skip
    batch = Collator(side=side)(rows)
    return backbone.ready(batch, backbone.see(batch), {}, None, prompts, train)


@torch.no_grad()
def logits(
    backbone: ChatBackbone, rows: Sequence[dict[str, Any]], side: str = "left", prompts: Tensor | None = None
) -> list[Tensor]:
    """Of each row, where it has tokens [n, V]."""
    made = ready(backbone, rows, side, prompts)
    return [found[mask.bool()] for found, mask in zip(backbone.run(made).logits, made.attention_mask)]


def furthest(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """The largest difference between tensors of the same shapes."""
    assert [a.shape for a in ours] == [b.shape for b in theirs]
    return max((a - b).abs().max().item() for a, b in zip(ours, theirs))


def experts(backbone: ChatBackbone, *names: str, targets: str = "all") -> Core:
    """A core with adapters of rank 2, A and B random."""
    core = Core(backbone)
    for number, name in enumerate(names):
        core.add(name, LoraSpec(rank=2, alpha=4.0, dropout=0.0, targets=targets))
        for place, parameter in enumerate(core.parameters_of(name)):
            draw = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1000 * number + place))
            parameter.data.copy_(0.2 * draw)
    return core


class Zoo:
    """Families by their kinds, each written when it is first asked for."""

    def __init__(self, folder: Path):
        self.folder, self.made = folder, dict[str, Family]()

    def __call__(self, kind: str) -> Family:
        if kind not in self.made:
            self.made[kind] = Family(kind, write(kind, self.folder / kind))
        return self.made[kind]
