"""LLaVA-NeXT (1.6) and LLaVA-OneVision: tiles of a picture on a grid that fits its shape, and the whole picture.

Pixels are [k, tiles, 3, H, W], padded to the most tiles; the model finds each picture's tiles by its size. OneVision does not
tile the pictures of a record that has several.
"""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

from hide_llava.backbones.chat import ChatBackbone, Pixels
from hide_llava.backbones.processors import match_grids
from hide_llava.schema import ImageConfig


class LlavaNext(ChatBackbone):
    title = "LLaVA-NeXT"

    @classmethod
    def within_budget(cls, model: PreTrainedModel, processor: Any, image: ImageConfig) -> None:
        match_grids(model.config, processor)

    def tower_rows(self, pixels: Pixels) -> int:
        config, several = self.model.config, pixels.get("batch_num_images")
        whole = [] if several is None else [n != 1 for n in several.tolist() for _ in range(n)]
        side, grids = config.vision_config.image_size, config.image_grid_pinpoints
        tiles = [image_size_to_num_patches(size, grids, side) for size in pixels["image_sizes"].tolist()]
        return sum(1 if whole and whole[i] else count for i, count in enumerate(tiles))


class LlavaOneVision(LlavaNext):
    title = "LLaVA-OneVision"
