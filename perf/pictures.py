"""What a picture costs from its file to the model's input: pictures a second of one core, by size.

    python perf/pictures.py --rounds 5

plain   padded to a square, and CLIP's processor does the rest, as published code does
ours    `load_image` and `ImageTransform`: the square is resized before the processor makes arrays of it; the same pixels
decode  reading and decoding alone
draft   what we do not do: the JPEG decoder makes a half, a quarter or an eighth of the picture, no smaller than the input.
        How far its pixels are from the plain ones is printed in levels of 255.

Pictures are made here: soft colours with grain, JPEG of quality 90. Ratios are of CPU time within a round.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from measure import interleave, machine, ratios, start, table
from PIL import Image

from hide_llava.backbones.clip_pixels import ImageTransform, pad_to_square
from hide_llava.data.images import as_rgb, load_image, opened

SIZES = ((300, 300), (640, 480), (1024, 768), (1224, 1632), (2448, 3264))
SIDE, MEAN, STD = 336, [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


def write_picture(path: Path, width: int, height: int) -> None:
    """Soft colours with some grain, so that it compresses as a photograph does."""
    rng = np.random.default_rng(0)
    soft = Image.fromarray(rng.integers(0, 256, (height // 24, width // 24, 3), dtype=np.uint8))
    grain = rng.integers(-12, 13, (height, width, 3), dtype=np.int16)
    pixels = np.asarray(soft.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16) + grain
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=90)


def calls(path: Path, transform: ImageTransform) -> dict[str, Callable[[], torch.Tensor]]:
    def plain() -> torch.Tensor:
        square = pad_to_square(load_image(path), transform.color)
        return transform.processor(square, return_tensors="pt", input_data_format="channels_last")["pixel_values"][0]

    def draft() -> torch.Tensor:
        with opened(path) as image:
            image.draft(None, (SIDE, SIDE))
            return transform(as_rgb(image, "exif"))

    return {"plain": plain, "ours": lambda: transform(load_image(path)), "decode": lambda: load_image(path), "draft": draft}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", action="append", help="WIDTHxHEIGHT; may be repeated")
    args = parser.parse_args()
    start(1)
    sizes = [tuple(map(int, size.split("x"))) for size in args.size] if args.size else SIZES
    transform = ImageTransform({
        "size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}, "resample": 3, "image_mean": MEAN,
        "image_std": STD, "do_convert_rgb": True,
    })  # fmt: skip
    levels, rows = 255 * torch.tensor(STD).view(3, 1, 1), []
    for width, height in sizes:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "picture.jpg"
            write_picture(path, width, height)
            made = calls(path, transform)
            plain = made["plain"]()
            off = (made["draft"]() - plain).abs() * levels
            same = "yes" if torch.equal(made["ours"](), plain) else "no"
            times = interleave(made, args.rounds, "cpu")
        a_second = {name: 1 / median(cpu for _, cpu in measured) for name, measured in times.items()}
        faster = {name: 1 / ratios(measured, times["plain"])[1] for name, measured in times.items()}
        rows.append([f"{width} × {height}", *(f"{a_second[name]:.1f}" for name in made), f"{faster['ours']:.2f}", same,
                     f"{faster['draft']:.2f}", f"{off.mean():.2f} / {off.max():.0f}"])  # fmt: skip
    print(f"pictures a second of one core, and how many times plain\n{machine('cpu', 1)}")
    print(table(["size", "plain", "ours", "decode", "draft", "ours ×", "same pixels", "draft ×", "off, mean / most"], rows))


if __name__ == "__main__":
    main()
