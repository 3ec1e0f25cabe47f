"""Which files show the same picture: hash of the bytes, and a perceptual hash that survives recompression.

Perceptual: two pictures look the same when the 64-bit DCT hashes (pHash: signs of the 8×8 lowest frequencies of a
32×32 grey version against their median) differ in at most BITS bits AND no channel of the 8×8 colour thumbnails
differs by more than LEVELS of 255. The second condition is needed because synthetic scenes (CLEVR, icons) share their
low frequencies. Measured on 240 crops (150-400 pixels) of three photographs: JPEG quality 30-90 and half size move at
most 4 bits and, in 99 of 100 cases, 10 levels; strong cropping, mirroring or text on the picture is not found.
"""

from __future__ import annotations

import io
import os
from array import array
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hide_llava.data import embedded
from hide_llava.data.hashing import Hashes, as_hashes, hash64, join
from hide_llava.data.images import as_rgb, exif_turn, opened
from hide_llava.errors import UserError

BITS, LEVELS = 4, 10
GREY, LOW, THUMB = 32, 8, 8
# Row k of the DCT-II, frequencies 0…7 of 32 samples.
DCT = np.cos(np.pi * (2 * np.arange(GREY) + 1) * np.arange(LOW)[:, None] / (2 * GREY))
ONES = np.array([bin(i).count("1") for i in range(1 << 16)], dtype=np.uint8)
# Hashes that differ in at most BITS bits agree in one of BITS + 1 bands: (shift, mask) of each.
BANDS = [(13 * k, (1 << min(13, 64 - 13 * k)) - 1) for k in range(BITS + 1)]


class Picture(NamedTuple):
    """content: hash of the file's bytes; look: perceptual hash; thumb: 8×8×3 bytes; turned: EXIF says to turn it;
    deep: 16 bits."""

    content: int
    look: int
    thumb: bytes
    turned: bool = False
    deep: bool = False


def picture(path: Path, orientation: str = "ignore") -> Picture:
    """Decode one file completely. UserError when it is missing, damaged, cut off, or of pixels without a range."""
    try:
        data = embedded.read(path)
    except FileNotFoundError:
        raise UserError(f"Image {path} does not exist; check the image root.") from None
    except OSError as error:
        raise UserError(f"Image {path} cannot be read ({error.strerror}).") from None
    with opened(path, io.BytesIO(data)) as image:
        deep = image.mode.startswith("I;16")
        image.draft("RGB", (4 * GREY, 4 * GREY))  # JPEG: decode all of it, but at a fraction of the size
        colour = as_rgb(image, orientation)
        turned = exif_turn(image) is not None
    grey = np.asarray(colour.convert("L").resize((GREY, GREY), Image.Resampling.LANCZOS), dtype=np.float64)
    low = (DCT @ grey @ DCT.T).ravel()
    bits = low > np.median(low[1:])
    bits[0] = False  # the mean brightness says nothing
    look = int.from_bytes(np.packbits(bits).tobytes(), "big")
    return Picture(hash64(data), look, colour.resize((THUMB, THUMB), Image.Resampling.BOX).tobytes(), turned, deep)


def _try(path: Path, orientation: str) -> Picture | str:
    try:
        return picture(path, orientation)
    except UserError as error:
        return str(error)


def pictures(paths: Iterable[Path], orientation: str = "ignore") -> Iterator[Picture | str]:
    """`picture` of each path in order, or the sentence that says what is wrong; on all cores."""
    paths = iter(paths)
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # decoding releases the interpreter lock
        while block := list(islice(paths, 512)):
            yield from pool.map(lambda path: _try(path, orientation), block)


@dataclass
class Pictures:
    """About 220 bytes per picture; element k of every column belongs to the same picture."""

    _keys: array = field(default_factory=lambda: array("Q"))
    _content: array = field(default_factory=lambda: array("Q"))
    _looks: array = field(default_factory=lambda: array("Q"))
    _thumbs: bytearray = field(default_factory=bytearray)

    def add(self, key: int, shown: Picture) -> None:
        self._keys.append(key)
        self._content.append(shown.content)
        self._looks.append(shown.look)
        self._thumbs += shown.thumb

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def keys(self) -> Hashes:
        return as_hashes(self._keys)

    @property
    def content(self) -> Hashes:
        return as_hashes(self._content)

    @property
    def looks(self) -> Hashes:
        return as_hashes(self._looks)

    @property
    def thumbs(self) -> NDArray[np.uint8]:
        return np.frombuffer(bytes(self._thumbs), dtype=np.uint8).reshape(len(self), THUMB * THUMB * 3)


def same_content(a: Pictures, b: Pictures) -> NDArray[np.uint64]:
    """Pairs of keys [n, 2] (one of a, one of b) whose files are equal byte for byte."""
    return _pairs(a, b, [(i, j) for i, j in join(a.content, b.content)])


def look_alike(a: Pictures, b: Pictures) -> NDArray[np.uint64]:
    """Pairs of keys [n, 2] that look the same by the rule of the module (equal files do, too)."""
    a_looks, b_looks, a_thumbs, b_thumbs = a.looks, b.looks, a.thumbs, b.thumbs
    found = []
    for shift, mask in BANDS:
        bands = [(looks >> np.uint64(shift)) & np.uint64(mask) for looks in (a_looks, b_looks)]
        for i, j in join(*bands):
            close = bit_count(a_looks[i] ^ b_looks[j]) <= BITS
            i, j = i[close], j[close]
            difference = np.abs(a_thumbs[i].astype(np.int16) - b_thumbs[j]).max(axis=1, initial=0)
            found.append((i[difference <= LEVELS], j[difference <= LEVELS]))
    return _pairs(a, b, found)


def bit_count(values: Hashes) -> NDArray[np.uint16]:
    """Number of ones of each element."""
    return ONES[values.view(np.uint16).reshape(-1, 4)].sum(axis=1, dtype=np.uint16)


def _pairs(a: Pictures, b: Pictures, found: list[tuple[NDArray, NDArray]]) -> NDArray[np.uint64]:
    columns = [np.concatenate([part[k] for part in found]) if found else np.empty(0, np.int64) for k in (0, 1)]
    pairs = np.stack([a.keys[columns[0]], b.keys[columns[1]]], axis=1)
    return np.unique(pairs, axis=0) if len(pairs) else pairs
