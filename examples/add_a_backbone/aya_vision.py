"""Aya Vision (arXiv 2505.08751) as a backbone: a SigLIP tower, a projector and a Cohere 2 decoder; a picture is cut into tiles.

Nearly all is `ChatBackbone`'s: this file says how one model differs from the others of transformers.
"""

from __future__ import annotations

from typing import Any

from hide_llava.backbones.chat import ChatBackbone


def at_most(processor: Any, tiles: int) -> int | None:
    """Set the image processor to at most that many tiles of a picture; what it returns is the least that it could be, if
    `tiles` is below it. `tiles` comes from `model.image.max_tiles` and is at least 1."""
    image = processor.image_processor
    image.max_patches, image.min_patches = min(image.max_patches, tiles), min(image.min_patches, tiles)
    return None


class AyaVision(ChatBackbone):
    title = "Aya Vision"
    limit = ("max_tiles", at_most)  # the option of `model.image` that it has, and what keeps to it
