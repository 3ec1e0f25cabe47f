"""Routing encoders without files: a stand-in at next to no cost, and CLIP's text tower with random weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

if TYPE_CHECKING:
    from shapes import Shape

    from hide_llava.backbones.llava15 import Llava15Vision


class StandInEncoder(nn.Module):
    """The interface of `ClipRoutingEncoder` as one small matmul."""

    widths = {"clip_image": 64, "clip_text": 64}

    def __init__(self, shape: Shape):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        projection = torch.randn(self.widths["clip_image"], shape.vision_hidden, generator=generator)
        self.register_buffer("visual_projection", projection.to(shape.device))

    @property
    def width(self) -> int:
        return self.widths["clip_image"]

    def image(self, vision: Llava15Vision, pixels: list[dict[str, Tensor]]) -> Tensor:
        return vision.cls.float() @ self.visual_projection.T

    def text(self, texts: list[str]) -> Tensor:
        rows = [torch.randn(self.widths["clip_text"], generator=torch.Generator().manual_seed(len(t))) for t in texts]
        return torch.stack(rows).to(self.visual_projection.device)


class RandomClip(nn.Module):
    """What `ClipRoutingEncoder` computes, on random weights; random ids stand for the tokenizer.

    The text tower has 3/4 of the vision tower's width and heads and half its layers, as CLIP ViT-L/14 has.
    """

    def __init__(self, shape: Shape):
        super().__init__()
        width = 3 * shape.vision_hidden // 4
        self.width, self.widths = width, {"clip_image": width, "clip_text": width}
        self.length, self.vocabulary = min(shape.prompt_tokens, 77), 49_408
        config = CLIPTextConfig(
            vocab_size=self.vocabulary, hidden_size=width, intermediate_size=4 * width, projection_dim=width,
            num_hidden_layers=max(1, shape.vision_layers // 2), num_attention_heads=3 * shape.vision_heads // 4,
        )  # fmt: skip
        with torch.device(shape.device):
            self.text_model = CLIPTextModel(config)
            self.norm = nn.LayerNorm(shape.vision_hidden)
            self.register_buffer("visual_projection", torch.randn(width, shape.vision_hidden))
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def image(self, vision: Llava15Vision, pixels: list[dict[str, Tensor]]) -> Tensor:
        return self.norm(vision.cls.float()) @ self.visual_projection.T

    @torch.no_grad()
    def text(self, texts: list[str]) -> Tensor:
        rows = [torch.randint(self.vocabulary - 1, (self.length,), generator=torch.Generator().manual_seed(len(t)))
                for t in texts]  # fmt: skip
        ids = torch.stack(rows).to(self.visual_projection.device)
        return self.text_model(ids, torch.ones_like(ids)).pooler_output.float()


ENCODERS = {"stand-in": StandInEncoder, "clip": RandomClip}
NOTES = {
    "stand-in": "routing encoder: a stand-in, cost excluded; vision tower, projector and splice are in every variant",
    "clip": "routing encoder: CLIP's text tower, random weights, in HiDe only; vision tower, projector, splice: in all",
}
