"""LLaVA-1.5 (Liu et al., arXiv 2310.03744): a CLIP tower, a projector of two layers and a LLaMA.

transformers' LLaVA does the splice inside its forward, but routing and prompts need the image *before* the decoder, and the
tower must not run twice, so the three upstream pieces (embedding, tower, projector) are called here. Image positions hold
IMAGE_TOKEN (−200), which is outside every vocabulary. How it reads is in llava15_reader.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import LlavaForConditionalGeneration, PreTrainedModel, PreTrainedTokenizerFast

from hide_llava.backbones.base import TARGETS, Backbone, Ready, Vision, divided
from hide_llava.backbones.decode import Seen, greedy
from hide_llava.backbones.vicuna import IMAGE_TOKEN
from hide_llava.schema import ModelConfig
from hide_llava.storage import read_json

if TYPE_CHECKING:
    from PIL import Image

    from hide_llava.backbones.llava15_reader import Llava15Reader


@dataclass
class Llava15Vision(Vision):
    """patches: [n, P, d_v], what the projector maps into the decoder's space. cls: [n, d_v], what CLIP's head reads."""

    patches: Tensor
    cls: Tensor


class Llava15(Backbone):
    """LLaVA-1.5. preprocessor: folder of the picture settings. clip: folder of the CLIP that the tower is from, for routing."""

    title = "LLaVA-1.5"
    own_clip = recorded = transforms = shrinks = True

    def __init__(
        self, model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerFast | None = None,
        preprocessor: Path | None = None, clip: Path | None = None,
    ):  # fmt: skip
        super().__init__(model, tokenizer, clip)
        self.preprocessor = preprocessor
        self._readers: dict[tuple[Any, ...], Llava15Reader] = {}  # methods ask for one in every batch

    @classmethod
    def load(cls, config: ModelConfig, folder: Path, clip: Path | None) -> Llava15:
        from hide_llava.backbones.llava15_loading import load_llava15

        return load_llava15(cls, config, folder, clip)

    @classmethod
    def reader_of(
        cls, folder: Path, config: ModelConfig | None = None, clip: Path | None = None, masks: str = "exact"
    ) -> Llava15Reader:
        from hide_llava.backbones.llama_tokenizer import load_tokenizer
        from hide_llava.backbones.llava15_reader import Llava15Reader, stated_image_tokens

        return Llava15Reader(load_tokenizer(folder), stated_image_tokens(folder, clip), masks=masks)

    @property
    def decoder(self) -> nn.Module:
        return self.model.model.language_model

    @property
    def projector(self) -> nn.Module:
        return self.model.model.multi_modal_projector

    @property
    def width(self) -> int:
        return self.model.config.text_config.hidden_size

    def linears(self, targets: str) -> str:
        return rf".*language_model\.layers\.\d+\.({TARGETS[targets]})"

    @cached_property
    def image_positions(self) -> int:
        """Decoder positions of one image."""
        return image_tokens(self.model)

    def reader(
        self, transform: str = "pad", masks: str = "exact", routing: str = "question",
        beside: Callable[[Image.Image], Tensor] | None = None,
    ) -> Llava15Reader:  # fmt: skip
        from hide_llava.backbones.clip_pixels import ImageTransform  # here: the measurements of perf/ read nothing
        from hide_llava.backbones.llava15_reader import Llava15Reader

        key = (transform, masks, routing, beside)
        if key not in self._readers:  # the picture settings are read from a file
            pixels = None if self.preprocessor is None else ImageTransform(self.preprocessor, mode=transform)
            self._readers[key] = Llava15Reader(self.tokenizer, self.image_positions, pixels, masks, routing, beside)
        return self._readers[key]

    def see(self, batch: dict[str, Any]) -> Llava15Vision | None:
        pixels = [row["pixel_values"] for row in batch["pixels"] if row is not None]
        return see(self.model, torch.cat(pixels)) if pixels else None

    def blank(self) -> dict[str, Tensor]:
        """Pixels of no picture at all: zeros [1, 3, H, W] on the model's device."""
        size = self.model.config.vision_config.image_size
        return {"pixel_values": torch.zeros(1, 3, size, size, device=self.model.device)}

    def ready(
        self, batch: dict[str, Any], vision: Llava15Vision | None, projectors: dict[str, dict[str, Tensor]],
        weights: dict[str, Tensor] | None, prompts: Tensor | None, train: bool,
    ) -> Ready:  # fmt: skip
        def project(patches: Tensor) -> Tensor:
            if weights is None:
                return self.projector(patches.to(self.projector.linear_1.weight.dtype))
            return mixed(self.projector, patches, projectors, {n: w[batch["has_image"]] for n, w in weights.items()})

        embeds = splice(self.model, batch["input_ids"], vision, project)
        if vision is None and train:  # a batch without images still takes part in the projector's gradient (DDP)
            linear = self.projector.linear_1
            nothing = embeds.new_zeros(1, 1, linear.in_features, dtype=linear.weight.dtype)
            if divided(self.model):
                nothing = self.see({"pixels": [self.blank()]}).patches.to(linear.weight.dtype)
            embeds = embeds + 0.0 * self.projector(nothing).sum().to(embeds.dtype)
        mask, labels, inserted = batch["attention_mask"], batch.get("labels"), 0
        if prompts is not None:
            embeds, mask, labels = insert_prompts(prompts, embeds, mask, labels)
            inserted = prompts.shape[1]
        return Ready({"inputs_embeds": embeds}, mask, labels, inserted)

    def answer(
        self, ready: Ready, max_new_tokens: int, leave: Callable[[Tensor], None] | None = None, static: bool = False,
        seen: Seen | None = None,
    ) -> list[list[int]]:  # fmt: skip
        embeds, mask = ready.inputs["inputs_embeds"], ready.attention_mask
        return greedy(self.model, embeds, mask, max_new_tokens, leave, static, seen)

    @classmethod
    def plain(cls, sample: dict[str, Any], model: PreTrainedModel) -> dict[str, Any]:
        inputs = super().plain(sample, model)
        ids = inputs["input_ids"]
        return {**inputs, "input_ids": ids.masked_fill(ids == IMAGE_TOKEN, model.config.image_token_id)}

    def complete(self, source: Path) -> bool:
        """If it is in the layout of llava-hf: there `<image>` is the first id behind the text's."""
        settings = read_json(source / "config.json")
        return settings.get("image_token_index", settings.get("image_token_id")) == len(self.tokenizer)

    def write(self, folder: Path, source: Path, weights: dict[str, Tensor], transform: str) -> None:
        """In the layout of llava-hf, whichever the source's is."""
        from hide_llava.backbones.write_hf import write_hf

        write_hf(self.model, self.tokenizer, folder, self.preprocessor, weights, transform)

    def write_processor(self, folder: Path, source: Path, transform: str) -> None:
        from hide_llava.backbones.write_hf import write_processor

        write_processor(self.model, self.tokenizer, folder, self.preprocessor, transform)


def mixed(
    projector: nn.Module, patches: Tensor, copies: dict[str, dict[str, Tensor]], weights: dict[str, Tensor]
) -> Tensor:
    """Patches [n, P, d_v] → [n, P, d] by named copies of a projector's weights, each image by its weights [n] of them."""
    total = torch.zeros((), device=patches.device)
    for name, weight in weights.items():
        own = copies[name]
        dtype = own["linear_1.weight"].dtype  # a trained copy is fp32, whatever the model's own projector is
        projected = functional_call(projector, own, (patches.to(dtype),))
        total = total + weight.to(dtype)[:, None, None] * projected
    return total


def see(llava: LlavaForConditionalGeneration, pixel_values: Tensor) -> Llava15Vision:
    """Run the frozen vision tower once on [n, 3, H, W]."""
    tower, config = llava.model.vision_tower, llava.config
    with torch.no_grad():
        out = tower(pixel_values.to(tower.dtype), output_hidden_states=True)
    chosen = out.hidden_states[config.vision_feature_layer]
    patches = chosen[:, 1:] if config.vision_feature_select_strategy == "default" else chosen
    return Llava15Vision(patches.float().mean(1), patches, out.last_hidden_state[:, 0])


def splice(
    llava: LlavaForConditionalGeneration, input_ids: Tensor, vision: Llava15Vision | None, project: Callable[[Tensor], Tensor]
) -> Tensor:
    """Token embeddings [B, N, d] with the projected patches at the image positions, in row order."""
    places = input_ids == IMAGE_TOKEN
    embeds = llava.get_input_embeddings()(input_ids.masked_fill(places, 0))
    if vision is None:
        return embeds
    patches = project(vision.patches).to(embeds.dtype)
    if int(places.sum()) != patches.shape[0] * patches.shape[1]:
        raise ValueError(f"{int(places.sum())} image positions for {patches.shape[0]}×{patches.shape[1]} patches")
    return embeds.masked_scatter(places.unsqueeze(-1), patches)


def insert_prompts(
    prompts: Tensor, embeds: Tensor, attention_mask: Tensor, labels: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Insert [B, P, d] vectors after each row's BOS, wherever left padding has put it; labels there are −100."""
    batch, count = prompts.shape[:2]
    length = embeds.shape[1]
    start = attention_mask.long().argmax(1, keepdim=True) + 1  # position after BOS
    position = torch.arange(length + count, device=embeds.device).expand(batch, -1)
    source = torch.where(position < start, position, position - count)
    inserted = (position >= start) & (position < start + count)
    source = torch.where(inserted, length + position - start, source)
    take = source.unsqueeze(-1)
    both = torch.cat([embeds, prompts.to(embeds.dtype)], 1)
    mask = torch.cat([attention_mask, attention_mask.new_ones(batch, count)], 1).gather(1, source)
    if labels is not None:
        labels = torch.cat([labels, labels.new_full((batch, count), -100)], 1).gather(1, source)
    return both.gather(1, take.expand(-1, -1, both.shape[-1])), mask, labels


def image_tokens(llava: nn.Module) -> int:
    vision = llava.config.vision_config
    patches = (vision.image_size // vision.patch_size) ** 2
    return patches if llava.config.vision_feature_select_strategy == "default" else patches + 1
