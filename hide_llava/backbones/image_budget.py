"""How the image processor of each model family is kept to the budget of a picture, `model.image`."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers.image_utils import SizeDict

from hide_llava.errors import UserError
from hide_llava.schema import ImageConfig

NAMES = {"max_pixels": "model.image.max_pixels", "max_tiles": "model.image.max_tiles"}


def keep_to(budget: ImageConfig, rule: Limit | None, kind: str, processor: Any, folder: Path | str) -> None:
    """Set a processor, of which the `image_processor` is read, to a budget, which never raises the limit of its folder.

    max_pixels are those of a picture after it is resized; max_tiles are pieces, the small picture of the whole not counted.

    Raises:
        UserError: the family takes no such budget, or needs more.
    """
    taken, limit = rule or (None, None)
    for field, name in NAMES.items():
        value = getattr(budget, field)
        if value is None:
            continue
        if rule is None:
            raise UserError(f"{name}={value}: {folder} is a model of type {kind}, whose backbone knows no such limit.")
        if field != taken:
            instead = (
                f"takes {NAMES[taken]} instead" if taken else "prepares all pictures at one size and takes neither"
            )
            raise UserError(f"{name}={value}: {folder} is a model of type {kind}, which {instead}.")
        least = limit(processor, value)
        if least is not None:
            raise UserError(f"{name}={value}: too little for {folder}, a model of type {kind}, which needs at least {least}.")


# Each sets the image processor to the limit, and returns the least that it could be, if it is below that.


def _qwen(processor: Any, pixels: int) -> int | None:
    image = processor.image_processor
    least = 4 * (image.patch_size * image.merge_size) ** 2  # two by two tokens
    if pixels < least:
        return least
    if pixels < image.size["longest_edge"]:
        # Sides are rounded up when a small picture is blown up, so the two bounds must not be close to each other; a
        # picture so thin that a side of it is less than a token may take more all the same.
        image.size = SizeDict(shortest_edge=min(image.size["shortest_edge"], pixels // 4), longest_edge=pixels)
    return None


def _pixtral(processor: Any, pixels: int) -> int | None:
    side = math.isqrt(pixels) // processor.unit * processor.unit
    if side:
        image = processor.image_processor
        image.size = SizeDict(longest_edge=min(image.size["longest_edge"], side))
        return None
    return processor.unit**2


def _anyres(processor: Any, tiles: int) -> int | None:
    image = processor.image_processor
    side = image.size.height or image.size.shortest_edge
    counts = [(height // side) * (width // side) for height, width in image.image_grid_pinpoints]
    if tiles < min(counts):
        return min(counts)
    image.image_grid_pinpoints = [grid for grid, count in zip(image.image_grid_pinpoints, counts) if count <= tiles]
    return None


def _internvl(processor: Any, tiles: int) -> int | None:
    image = processor.image_processor
    image.max_patches = min(image.max_patches, tiles)
    image.min_patches = min(image.min_patches, tiles)
    return None


def _idefics(processor: Any, tiles: int) -> int | None:
    image, side = processor.image_processor, math.isqrt(tiles)
    if side < 2:
        image.do_image_splitting = False
    else:
        edge = image.max_image_size["longest_edge"] * side
        image.size = SizeDict(longest_edge=min(image.size["longest_edge"], edge))
    return None


def _gemma(processor: Any, tiles: int) -> int | None:
    # It cuts none unless asked. The processor's own arguments, as they win over the image processor's settings.
    cut = {"do_pan_and_scan": tiles > 1, "pan_and_scan_max_num_crops": max(tiles, 2)}
    processor.images_kwargs = {**processor.images_kwargs, **cut}
    return None


# What limits a picture, and how: the field of a budget, and a function of the processor and its value, as above.
Limit = tuple[str | None, Callable[[Any, int], int | None] | None]
LIMITS: dict[str, Limit] = {  # by model type
    "llava": (None, None),
    "llava_next": ("max_tiles", _anyres),
    "llava_onevision": ("max_tiles", _anyres),
    "qwen2_vl": ("max_pixels", _qwen),
    "qwen2_5_vl": ("max_pixels", _qwen),
    "qwen3_vl": ("max_pixels", _qwen),
    "qwen3_vl_moe": ("max_pixels", _qwen),
    "internvl": ("max_tiles", _internvl),
    "smolvlm": ("max_tiles", _idefics),
    "idefics3": ("max_tiles", _idefics),
    "gemma3": ("max_tiles", _gemma),
    "paligemma": (None, None),
    "mistral3": ("max_pixels", _pixtral),
}
