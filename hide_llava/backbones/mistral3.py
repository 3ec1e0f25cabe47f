"""Mistral 3 (Mistral Small 3.1 and 3.2) with Pixtral's tower: pictures of any size, whose rows of tokens end with a break."""

from __future__ import annotations

from torch import Tensor

from hide_llava.backbones.chat import ChatBackbone, Pixels


class Mistral3(ChatBackbone):
    title = "Mistral 3"

    def tower_rows(self, pixels: Pixels) -> int:
        side = self.model.config.vision_config.patch_size
        return sum((height // side) * (width // side) for height, width in pixels["image_sizes"].tolist())

    def projector_rows(self, pixels: Pixels) -> int:
        return self.tower_rows(pixels) // self.model.config.spatial_merge_size**2

    def pool(self, states: Tensor, counts: list[int]) -> Tensor:
        return super().pool(states.squeeze(0), counts)
