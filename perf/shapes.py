"""The random model, batch and HiDe state that the harnesses measure: LLaMA + CLIP tower + projector, built in memory.

By default the routing encoder is a stand-in (one small matmul), which **excludes** the cost of CLIP's text tower;
`--routing clip` includes it. The vision tower, the projector and the splice are inside every variant.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields
from typing import Any

import torch
from encoders import ENCODERS, NOTES
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from hide_llava.adapters.core import Core
from hide_llava.backbones.llava15 import Llava15
from hide_llava.backbones.vicuna import IMAGE_TOKEN
from hide_llava.data.collator import Collator, moved
from hide_llava.data.turns import IGNORE
from hide_llava.methods.base import Context, Task
from hide_llava.methods.hide import HiDe
from hide_llava.methods.routed import RoutedLlava

PATCH = 14


@dataclass
class Shape:
    """What is measured. `image_tokens` must be a square; LLaVA-1.5 has 576 (336 / 14 squared)."""

    hidden: int = 512
    layers: int = 8
    heads: int = 8
    vocabulary: int = 32_000
    vision_hidden: int = 64
    vision_layers: int = 3
    vision_heads: int = 4
    vision_mlp: int = 2  # times the width; 4 in CLIP
    image_tokens: int = 576
    prompt_tokens: int = 40
    answer_tokens: int = 8
    new_tokens: int = 16
    experts: int = 6
    rank: int = 8
    device: str = "cpu"
    dtype: str = "float32"
    attention: str = "sdpa"
    routing: str = "stand-in"  # stand-in | clip
    fusion: str = "factor_sum"  # as the naive scheme computes, so that both give the same function

    def __post_init__(self) -> None:
        if self.routing not in ENCODERS:
            raise SystemExit(f"--routing {self.routing}: expected one of {', '.join(ENCODERS)}.")
        if self.image_side**2 != self.image_tokens:
            raise SystemExit(f"--image-tokens {self.image_tokens}: expected a square number, such as 576.")

    @property
    def image_side(self) -> int:
        """Patches along one side of the image."""
        return round(self.image_tokens**0.5)

    @property
    def note(self) -> str:
        """One line on what the routing encoder is."""
        return NOTES[self.routing]

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)


def parser(description: str, batch: str, variants: list[str]) -> argparse.ArgumentParser:
    """Every field of Shape as an option, plus what the measurement needs."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    for field in fields(Shape):
        made.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default)
    made.add_argument("--batch", default=batch, help="batch sizes, separated by commas")
    made.add_argument("--rounds", type=int, default=5, help="interleaved rounds; medians are reported")
    made.add_argument("--threads", type=int, default=1, help="CPU threads")
    made.add_argument("--no-memory", action="store_true", help="skip the process per variant that measures peak memory")
    made.add_argument("--peak", choices=variants, help="measure only this variant's peak memory, in this process")
    return made


def shape_of(args: argparse.Namespace) -> Shape:
    return Shape(**{field.name: getattr(args, field.name) for field in fields(Shape)})


def config_of(shape: Shape) -> LlavaConfig:
    """The shape as transformers has it."""
    vision = CLIPVisionConfig(
        hidden_size=shape.vision_hidden, intermediate_size=shape.vision_mlp * shape.vision_hidden,
        num_hidden_layers=shape.vision_layers, num_attention_heads=shape.vision_heads,
        image_size=PATCH * shape.image_side, patch_size=PATCH,
    )  # fmt: skip
    text = LlamaConfig(
        hidden_size=shape.hidden, intermediate_size=int(shape.hidden * 2.6875), num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads, num_key_value_heads=shape.heads, vocab_size=shape.vocabulary,
        max_position_embeddings=4096, bos_token_id=1, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    return LlavaConfig(
        vision_config=vision, text_config=text, image_token_id=shape.vocabulary - 1, vision_feature_layer=-2
    )


def build_llava(shape: Shape) -> LlavaForConditionalGeneration:
    """The same random, frozen LLaVA for the same shape. It has no end-of-sequence token, so no answer stops early."""
    torch.manual_seed(0)
    with torch.device(shape.device):  # weights are drawn where they stay
        llava = LlavaForConditionalGeneration._from_config(
            config_of(shape), dtype=shape.torch_dtype, attn_implementation=shape.attention
        )
    llava.generation_config.eos_token_id = None
    return llava.eval().requires_grad_(False)


def build_hide(shape: Shape, training: bool, kind: type[HiDe] = HiDe) -> RoutedLlava:
    """LLaVA with HiDe after all tasks but the last (training: the last is current) or after all of them.

    Finished experts get a random B and random anchors.
    """
    core, encoder = Core(Llava15(build_llava(shape))), ENCODERS[shape.routing](shape)
    tasks = [Task(t, f"task-{t}", shape.experts) for t in range(shape.experts)]
    method = kind(kind.Config(rank=shape.rank, alpha=2.0 * shape.rank, fusion=shape.fusion), core, tasks)
    method.setup()
    generator = torch.Generator().manual_seed(2)
    for task in tasks:
        method.before_task(task, Context(widths=encoder.widths))
        if training and task is tasks[-1]:
            break
        for _, _, layer in core.layers(method.expert(task.index)):
            weight = layer.lora_B[method.expert(task.index)].weight
            weight.data.copy_(0.02 * torch.randn(weight.shape, generator=generator))
        for anchors, width in ((method.image_anchors, "clip_image"), (method.text_anchors, "clip_text")):
            anchors.add(task.index, torch.randn(4, encoder.widths[width], generator=generator).to(shape.device))
        method.after_task(task, Context(widths=encoder.widths))
    return RoutedLlava(core, method, encoder)


def build_samples(shape: Shape, size: int, side: str) -> list[dict[str, Any]]:
    """`size` samples, one image each, prompts up to a few tokens apart in length (so a batch has padding)."""
    generator = torch.Generator().manual_seed(3)
    samples = []
    for i in range(size):
        words = torch.randint(3, shape.vocabulary - 1, (shape.prompt_tokens - i % 4,), generator=generator)
        answer = torch.randint(3, shape.vocabulary - 1, (shape.answer_tokens,), generator=generator)
        parts = [torch.tensor([1]), torch.full((shape.image_tokens,), IMAGE_TOKEN), words]
        sample: dict[str, Any] = {"id": str(i), "text": "question" + "?" * i}
        if side == "right":
            parts.append(answer)
            sample["labels"] = torch.cat([torch.full((sum(map(len, parts[:3])),), IGNORE), answer])
        pixels = torch.randn(3, PATCH * shape.image_side, PATCH * shape.image_side, generator=generator)
        size = (PATCH * shape.image_side,) * 2
        shown = {"pixels": {"pixel_values": pixels[None]}, "sizes": [size], "types": {}}
        samples.append(sample | {"input_ids": torch.cat(parts), **shown})
    return samples


def build_batch(shape: Shape, size: int, side: str) -> dict[str, Any]:
    """`size` samples of `build_samples`, collated, on the device."""
    return moved(Collator(side=side)(build_samples(shape, size, side)), torch.device(shape.device))


def upstream_inputs(llava: LlavaForConditionalGeneration, batch: dict[str, Any]) -> dict[str, Tensor]:
    """The batch as transformers' own LLaVA takes it: its image token in the ids, and the pixels."""
    ids = batch["input_ids"].masked_fill(batch["input_ids"] == IMAGE_TOKEN, llava.config.image_token_id)
    pixels = torch.cat([row["pixel_values"] for row in batch["pixels"]]).to(llava.dtype)
    inputs = {"input_ids": ids, "attention_mask": batch["attention_mask"], "pixel_values": pixels}
    return inputs | ({"labels": batch["labels"]} if "labels" in batch else {})
