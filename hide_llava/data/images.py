"""Image file → float32 pixels, with the CLIP preprocessing of LLaVA-1.5 (PIL backend; torchvision is not needed)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import CLIPImageProcessorPil

from hide_llava.errors import UserError

MODES = ("pad", "crop")


def load_image(path: Path) -> Image.Image:
    """The image at `path` as a fully decoded RGB image.

    A missing, undecodable or truncated file raises UserError. (The reference completes truncated files with grey; here
    the sample policy of the dataset decides whether a bad file stops the run or is skipped and listed.)
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except FileNotFoundError:
        raise UserError(f"Image {path} does not exist; check the image root of the benchmark.") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"Image {path} cannot be decoded ({error}); replace the file.") from error


def pad_to_square(image: Image.Image, color: tuple[int, int, int]) -> Image.Image:
    """`image` centred on a square of its longer side filled with `color`; an odd pixel goes to the right or bottom."""
    width, height = image.size
    if width == height:
        return image
    side = max(width, height)
    square = Image.new(image.mode, (side, side), color)
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square


class ImageTransform:
    """RGB image → float32 tensor [3, H, W], normalised.

    `processor`: a model folder with preprocessor_config.json (or processor_config.json), or that file's content.
    `mode`: "pad" squares the image with the mean colour first (training and UCIT evaluation of the reference);
    "crop" cuts the centre (ScienceQA and MCITlib evaluation). Scores of the two modes are not comparable.
    """

    def __init__(self, processor: Path | str | Mapping[str, Any], mode: str = "pad") -> None:
        if mode not in MODES:
            raise UserError(f"Unknown image mode {mode!r}; choose one of {', '.join(MODES)}.")
        config = dict(processor) if isinstance(processor, Mapping) else _read_config(Path(processor))
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
        if self.mode == "pad":
            image = pad_to_square(image, self.color)
        pixels = self.processor(image, return_tensors="pt", input_data_format="channels_last")["pixel_values"][0]
        return pixels.to(torch.float32)


def _read_config(folder: Path) -> dict[str, Any]:
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
