"""How much work a picture is for a model: its positions in the decoder and its rows in the vision tower, without a pixel.

Where the image processor cuts or resizes a picture, its settings decide, and with them the image budget that was set on it;
where every picture becomes the same square, config.json alone does. Families by `model_type`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

HEIGHT, WIDTH = 480, 640  # of a picture that nobody has seen: an assumption of the order of UCIT's, not a measurement
CLASS_TOKEN = ("clip_vision_model", "internvl_vision")  # towers that put one row before the patches


@dataclass(frozen=True)
class Picture:
    """One picture. positions: of the decoder, with the tokens that the processor puts around it. patches: rows of the tower's
    convolution. rows: that pass the tower's linears. pairs: of rows that attend to each other, over all layers of the tower.
    projected: rows of the projector's linears."""

    positions: int
    patches: int
    rows: int
    pairs: int
    projected: int


def image_processor(name: str | Path) -> Any | None:
    """The picture settings of a folder or of a model on the hub, or None where there are none."""
    from transformers import AutoImageProcessor

    try:
        return AutoImageProcessor.from_pretrained(name, backend="pil")
    except Exception:  # no such file, no network, no processor of that kind: each time they are not known
        return None


def picture_of(
    config: PretrainedConfig, processor: Any | None = None, height: int = HEIGHT, width: int = WIDTH
) -> Picture | None:
    """What a picture of height × width pixels becomes, or None where the family or the processor is not known."""
    family = FAMILIES.get(config.model_type)
    return None if family is None else family(config, processor, height, width)


def _side(value: Any) -> int:
    """Of a square: some configurations say it as a pair."""
    return value[0] if isinstance(value, (list, tuple)) else value


def _depth(vision: PretrainedConfig) -> int:
    return getattr(vision, "depth", None) or vision.num_hidden_layers


def _squares(config: PretrainedConfig, tiles: int, positions: int, projected: int) -> Picture:
    """`tiles` squares of the tower's size, each of which attends to itself."""
    vision = config.vision_config
    patches = (_side(vision.image_size) // _side(vision.patch_size)) ** 2
    rows = patches + (vision.model_type in CLASS_TOKEN)
    return Picture(positions, tiles * patches, tiles * rows, _depth(vision) * tiles * rows**2, projected)


def _chosen(config: PretrainedConfig) -> int:
    """Rows of a square that the projector is given."""
    whole = _squares(config, 1, 0, 0)
    return whole.patches if config.vision_feature_select_strategy == "default" else whole.rows


def _llava(config: PretrainedConfig, processor: Any | None, height: int, width: int) -> Picture:
    return _squares(config, 1, _chosen(config), _chosen(config))


def _anyres(config: PretrainedConfig, processor: Any | None, height: int, width: int) -> Picture:
    """The picture in small, and its tiles without what was padded, one more position a line of them."""
    import torch
    from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape, unpad_image

    vision = config.vision_config
    grid = vision.image_size // vision.patch_size
    down, across = get_anyres_image_grid_shape((height, width), config.image_grid_pinpoints, vision.image_size)
    whole = torch.empty(1, down * grid, across * grid, device="meta")
    lines, columns = unpad_image(whole, (height, width)).shape[1:]
    if limit := getattr(config, "vision_aspect_ratio", "").removeprefix("anyres_max_"):
        ratio = math.sqrt(lines * columns / (int(limit) * grid**2))
        if ratio > 1.1:  # made smaller after the projector
            lines, columns = int(lines // ratio), int(columns // ratio)
    tiles = down * across + 1
    return _squares(config, tiles, _chosen(config) + lines * (columns + 1), tiles * _chosen(config))


def _qwen(config: PretrainedConfig, processor: Any | None, height: int, width: int) -> Picture | None:
    """As many patches as the picture has, `merge`² of them to a position; Qwen2.5-VL's tower attends within windows."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    if processor is None:
        return None
    patch, merge, vision = processor.patch_size, processor.merge_size, config.vision_config
    least, most = processor.size["shortest_edge"], processor.size["longest_edge"]
    lines, columns = (n // patch for n in smart_resize(height, width, patch * merge, least, most))
    rows, whole = lines * columns, _depth(vision)
    pairs = whole * rows**2
    if hasattr(vision, "window_size"):
        side, whole = vision.window_size // patch, len(vision.fullatt_block_indexes)
        pairs = whole * rows**2 + (_depth(vision) - whole) * _windows(lines, side) * _windows(columns, side)
    return Picture(rows // merge**2, rows, rows, pairs, rows // merge**2)


def _windows(length: int, side: int) -> int:
    """Σ n² over windows of `side`, the last of which may be shorter."""
    return length // side * side**2 + (length % side) ** 2


def _internvl(config: PretrainedConfig, processor: Any | None, height: int, width: int) -> Picture | None:
    """Tiles and, beside several, the picture in small, between two tokens."""
    if processor is None:
        return None
    tiles = processor.get_number_of_image_patches(height, width)
    projected = tiles * config.image_seq_length
    return _squares(config, tiles, projected + 2, projected)


def _idefics(config: PretrainedConfig, processor: Any | None, height: int, width: int) -> Picture | None:
    """Tiles, each behind two tokens, a line break a row of them; then the picture in small among three."""
    if processor is None:
        return None
    tiles, lines, columns = processor.get_number_of_image_patches(height, width)
    one = _squares(config, 1, 0, 0).patches // config.scale_factor**2
    positions = lines * columns * (one + 2) + lines + one + 3
    return _squares(config, max(1, tiles), positions, max(1, tiles) * one)


def _gemma3(config: PretrainedConfig, processor: Any | None, height: int, width: int) -> Picture:
    """One square, made smaller before the projector, between two tokens and two empty lines."""
    return _squares(config, 1, config.mm_tokens_per_image + 4, config.mm_tokens_per_image)


def _paligemma(config: PretrainedConfig, processor: Any | None, height: int, width: int) -> Picture:
    patches = _squares(config, 1, 0, 0).patches
    return _squares(config, 1, patches, patches)


def _mistral3(config: PretrainedConfig, processor: Any | None, height: int, width: int) -> Picture:
    """Made smaller to the largest side, `spatial_merge_size`² patches to a position, one token more a line."""
    vision, merge = config.vision_config, config.spatial_merge_size
    longest = vision.image_size if processor is None else processor.size["longest_edge"]
    ratio = max(height / longest, width / longest, 1.0)
    lines, columns = (math.ceil(math.floor(n / ratio) / (vision.patch_size * merge)) for n in (height, width))
    projected = lines * columns
    rows = projected * merge**2
    return Picture(lines * (columns + 1), rows, rows, _depth(vision) * rows**2, projected)


FAMILIES: dict[str, Callable[[PretrainedConfig, Any | None, int, int], Picture | None]] = {
    "llava": _llava,
    **dict.fromkeys(("llava_next", "llava_onevision"), _anyres),
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5"), _qwen),
    "internvl": _internvl,
    **dict.fromkeys(("idefics3", "smolvlm"), _idefics),
    "gemma3": _gemma3,
    "paligemma": _paligemma,
    "mistral3": _mistral3,
}
