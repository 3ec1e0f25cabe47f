"""Image file → a decoded RGB image, upright."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from hide_llava.data import embedded
from hide_llava.data.reader import Size
from hide_llava.errors import UserError
from hide_llava.progress import Bar

ORIENTATIONS = ("exif", "ignore")
Picture = str | Path | bytes | Image.Image  # a file, the content of one, or an image that is open
# EXIF orientation (TIFF 6.0, tag 274) → how to turn the stored pixels.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


SIDEWAYS = set(TURNS[n] for n in (5, 6, 7, 8))


def load_image(path: Path, orientation: str = "exif") -> Image.Image:
    """The image at `path` as a fully decoded RGB image.

    orientation: "exif" turns the picture as its camera noted and every viewer shows it; "ignore" reads the pixels as
    they are stored, as LLaVA's code does.

    16-bit grey is scaled from 0…65,535 to 0…255 (Pillow alone would clip it to white). 32-bit integers and floats
    (modes I and F) have no known range and are refused. Every other mode is what Pillow's own conversion makes of it,
    as in LLaVA's code: alpha and transparency are dropped, palettes, grey and CMYK become colours.

    A missing, undecodable or truncated file raises UserError. (The reference completes truncated files with grey; here
    the sample policy of the dataset decides whether a bad file stops the run or is skipped and listed.)
    """
    with opened(path) as image:
        return as_rgb(image, orientation)


def taken(picture: Picture, orientation: str = "exif", pixels: int | None = None) -> Image.Image:
    """`load_image` of a file, of a file's content, or of an image that is open already.

    pixels: the most that a picture may have; its header says how many, before any is decoded.

    Raises:
        UserError: as of `load_image`, or too many pixels.
    """
    if isinstance(picture, str | Path):
        if not embedded.is_there(picture):
            raise UserError(f"Image {picture} does not exist; give the path of a picture's file.")
        name, source = Path(picture), None
    else:
        name, source = Path("that was given"), io.BytesIO(picture) if isinstance(picture, bytes) else picture
    with opened(name, source) as image:
        check_size(image, pixels)
        return as_rgb(image, orientation)


def check_size(image: Image.Image, pixels: int | None) -> None:
    """Raises UserError, to be continued after the file's name, for a picture of more pixels than that."""
    width, height = image.size
    if pixels is not None and width * height > pixels:
        raise UserError(f"has {width} × {height} pixels, more than the {pixels:,} that are taken; make it smaller.")


@contextlib.contextmanager
def opened(path: Path, source: io.BytesIO | Image.Image | None = None) -> Iterator[Image.Image]:
    """Open the image at `path`, which may be a place in another file (`embedded.py`); whatever a decoder raises inside is told
    with the file's name.

    source: its content, or the image itself, which stays open.

    Raises:
        UserError: missing, or not decodable. Decoders are foreign code: AVIF's raises RuntimeError, others ValueError,
            SyntaxError, struct.error …
    """
    try:
        if isinstance(source, Image.Image):
            yield source
            return
        content = embedded.opened(path) if source is None else source
        with Image.open(path if content is None else content) as image:
            yield image
    except FileNotFoundError:
        raise UserError(f"Image {path} does not exist; check the image root of the benchmark.") from None
    except UserError as error:
        raise UserError(f"Image {path} {error}") from None
    except Exception as error:
        message = str(error).split(" <_io")[0] or type(error).__name__  # without the address of our buffer
        raise UserError(f"Image {path} cannot be decoded ({message}); replace the file.") from error


def sizes_of(paths: Sequence[Path], orientation: str, workers: int, name: str) -> list[Size]:
    """Width and height of upright pictures, read from their headers on `workers` threads.

    Raises:
        UserError: a file is missing or is no picture.
    """
    found = []
    with Bar(f"measuring images of {name}", len(paths), "image") as bar, ThreadPoolExecutor(max(1, workers)) as pool:
        for size in pool.map(lambda path: size_of(path, orientation), paths):
            found.append(size)
            bar.at(len(found))
    return found


def size_of(path: Path, orientation: str) -> Size:
    """Of the picture that `load_image` gives, without decoding it."""
    with opened(path) as image:
        if image.format == "TIFF" and exif_turn(image) in SIDEWAYS:
            image.load()  # Pillow turns a TIFF itself, and versions differ in what they say of its size before
        turned = orientation == "exif" and exif_turn(image) in SIDEWAYS
        return image.size[::-1] if turned else image.size


def as_rgb(image: Image.Image, orientation: str) -> Image.Image:
    """`load_image` of an opened image."""
    check_mode(image)
    if image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.uint32)
        turn = exif_turn(image) if orientation == "exif" else None
        colour = Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
        return colour if turn is None else colour.transpose(turn)
    colour = image.convert("RGB")  # loads the file: only now are all of its tags read
    turn = exif_turn(image) if orientation == "exif" else None
    return colour if turn is None else colour.transpose(turn)


def check_mode(image: Image.Image) -> None:
    """Raises UserError, to be continued after the file's name, for pixels without a known range."""
    if image.mode in ("I", "F"):
        kind = "32-bit integers" if image.mode == "I" else "floating point numbers"
        raise UserError(f"has {kind} as pixels (mode {image.mode}), whose range is not known; save it with 8 or 16 bits.")


def exif_turn(image: Image.Image) -> Image.Transpose | None:
    """How the picture must be turned to be shown upright; None: it is, or its EXIF block says nothing readable."""
    try:
        return TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # a damaged EXIF block does not make a picture unreadable, and viewers show it as stored
        return None
