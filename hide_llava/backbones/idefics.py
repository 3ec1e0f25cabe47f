"""Idefics 3 and SmolVLM: rows and columns of tiles and the whole picture.

Pixels are [1, tiles, 3, H, W]. Rows of a batch are padded with tiles of zeros, which the model leaves out.
"""

from __future__ import annotations

from hide_llava.backbones.chat import ChatBackbone, Pixels


class Idefics3(ChatBackbone):
    title = "SmolVLM / Idefics 3"

    def tower_rows(self, pixels: Pixels) -> int:
        return pixels["pixel_values"].shape[1]
