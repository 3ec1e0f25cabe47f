"""An RGB image → float32 pixels, with the CLIP preprocessing of LLaVA-1.5 (PIL backend; torchvision is not needed)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import CLIPImageProcessorPil

from hide_llava.errors import UserError

MODES = ("pad", "crop")
LARGE = 1 << 24  # pixels of a padded square, or of a picture enlarged for a crop, that are never made as a whole


def pad_to_square(image: Image.Image, color: tuple[int, int, int]) -> Image.Image:
    """`image` centred on a square of its longer side filled with `color`; an odd pixel goes to the right or bottom."""
    width, height = image.size
    if width == height:
        return image
    side = max(width, height)
    square = Image.new(image.mode, (side, side), color)
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square


def pad_and_resize(image: Image.Image, side: int, color: tuple[int, int, int], resample: int) -> Image.Image:
    """`pad_to_square(image, color).resize((side, side), resample)` within one level of 255, without making the square.

    Pillow resizes rows first, then columns; both passes are done here, one after the other, on what the picture can
    reach. The rest of the result is padding.
    """
    width, height = image.size
    longer = max(width, height)
    blocks = (image.crop((0, top, width, min(top + 512, height))) for top in range(0, height, 512))
    rows = [_resize_padded(block, side, longer, color, resample) for block in blocks]
    column = Image.new(image.mode, (side, height))
    for number, row in enumerate(rows):
        column.paste(row, (0, 512 * number))
    turn = Image.Transpose.TRANSPOSE
    return _resize_padded(column.transpose(turn), side, longer, color, resample).transpose(turn)


def _resize_padded(
    image: Image.Image, side: int, longer: int, color: tuple[int, int, int], resample: int
) -> Image.Image:
    """The picture padded to a width of `longer`, on both sides alike, and resized to a width of `side`; same height."""
    width, height = image.size
    scale, left = longer / side, (longer - width) // 2
    reach = math.ceil(3 * max(scale, 1)) + 1  # Lanczos, the widest filter, sees three output pixels
    first, last = max(0, math.floor((left - reach) / scale)), min(side, math.ceil((left + width + reach) / scale))
    start, stop = max(0, math.floor(first * scale) - reach), min(longer, math.ceil(last * scale) + reach)
    band = Image.new(image.mode, (stop - start, height), color)
    band.paste(image, (left - start, 0))
    result = Image.new(image.mode, (side, height), color)
    box = (first * scale - start, 0, last * scale - start, height)
    result.paste(band.resize((last - first, height), resample, box), (first, 0))
    return result


def crop_and_resize(image: Image.Image, side: int, resample: int) -> Image.Image:
    """The centre of the picture resized to a shorter edge of `side`, without making the whole resized picture.

    Within two levels of 255 of resizing first and cutting then, on soft pictures.
    """
    width, height = image.size
    long = int(side * max(width, height) / min(width, height))  # as the processor rounds it
    share = max(width, height) / long  # of the picture's pixels in one of the result
    first = (long - side) // 2
    low, high = first * share, (first + side) * share
    if width > height:
        return image.resize((side, side), resample, (low, 0, high, height))
    return image.resize((side, height), resample).resize((side, side), resample, (0, low, side, high))


class ImageTransform:
    """RGB image → float32 tensor [3, H, W], normalised.

    `processor`: a model folder with preprocessor_config.json (or processor_config.json), or that file's content.
    `mode`: "pad" squares the image with the mean colour first (training and UCIT evaluation of the reference);
    "crop" cuts the centre (ScienceQA and MCITlib evaluation). Scores of the two modes are not comparable.
    """

    def __init__(self, processor: Path | str | Mapping[str, Any], mode: str = "pad") -> None:
        if mode not in MODES:
            raise UserError(f"Unknown image mode {mode!r}; choose one of {', '.join(MODES)}.")
        config = dict(processor) if isinstance(processor, Mapping) else read_picture_settings(Path(processor))
        config = {key: value for key, value in config.items() if not key.endswith("_type")}  # class names of the writer
        self.mode = mode
        self.processor = CLIPImageProcessorPil(**config)
        # int(), not round(): the reference fills with (122, 116, 104).
        self.color = tuple(int(value * 255) for value in self.processor.image_mean)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the result."""
        crop = self.processor.crop_size
        return crop["height"], crop["width"]

    def __call__(self, image: Image.Image) -> torch.Tensor:
        small = self._of_large(image)
        if small is not None:
            image = small
        elif self.mode == "pad":
            image = pad_to_square(image, self.color)
            if self._side is not None:  # what the processor would do too, after making arrays of the large square
                image = image.resize((self._side, self._side), int(self.processor.resample))
        pixels = self.processor(image, return_tensors="pt", input_data_format="channels_last")["pixel_values"][0]
        return pixels.to(torch.float32)

    @property
    def _side(self) -> int | None:
        """The side of the result, where the processor makes a square of one size and nothing else."""
        edge, (height, width) = self.processor.size.get("shortest_edge"), self.size
        return edge if edge == height == width and self.processor.do_resize else None

    def _of_large(self, image: Image.Image) -> Image.Image | None:
        """The resized square of a picture of which the usual way would make too large a one; None for all others.

        A 40,000 × 4 picture padded to a square is 4.8 GB, and the processor holds several copies of it.
        """
        edge = self._side
        if edge is None:
            return None
        long, short = max(image.size), min(image.size)
        made = long * long if self.mode == "pad" else edge * edge * long // short
        if made <= LARGE or long == short:
            return None
        resample = int(self.processor.resample)
        if self.mode == "pad":
            return pad_and_resize(image, edge, self.color, resample)
        return crop_and_resize(image, edge, resample)


def read_picture_settings(folder: Path) -> dict[str, Any]:
    """What a model folder says of pictures, in either of the two files that transformers has written it to.

    Raises:
        UserError: neither is there, or one is no JSON.
    """
    for name in ("preprocessor_config.json", "processor_config.json"):
        path = folder / name
        if not path.is_file():
            continue
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{path} is not valid JSON: {error}") from error
        config = config.get("image_processor", config)  # processor_config.json nests it
        if "image_mean" in config:
            return config
    raise UserError(f"{folder} has no preprocessor_config.json; copy it from the CLIP or LLaVA model folder.")
