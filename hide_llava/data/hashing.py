"""Sets of millions of texts in a few bytes each: 64-bit hashes in numpy arrays.

Two different texts among n share a hash with probability about n²/2⁶⁵: 10⁻⁶ for six million.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
NONE = 0  # "no image" among hashes
CHUNK = 1 << 20  # pairs handled at once


def hash64(text: str | bytes) -> int:
    """A 64-bit hash, never NONE, the same in every process."""
    data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "little") or 1


def as_hashes(values: object) -> Hashes:
    """An `array('Q')` (or any sequence of ints) as a uint64 array."""
    return np.asarray(values, dtype=np.uint64)


def combine(a: Hashes, b: Hashes) -> Hashes:
    """One hash per pair (a[i], b[i]); not symmetric. Multiply-xorshift mixing, as in splitmix64."""
    mixed = a * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) + b
    mixed = mixed * np.uint64(0xBF58476D1CE4E5B9)
    return mixed ^ (mixed >> np.uint64(27))


def repeats(values: Hashes) -> NDArray[np.int64]:
    """Indices of the elements that equal an earlier one, ascending."""
    first = np.unique(values, return_index=True)[1]
    later = np.ones(len(values), dtype=bool)
    later[first] = False
    return np.flatnonzero(later)


def join(a: NDArray, b: NDArray) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """All index pairs (i, j) with a[i] == b[j], in blocks of about CHUNK pairs."""
    order = np.argsort(b, kind="stable")
    ordered = b[order]
    low, high = np.searchsorted(ordered, a, "left"), np.searchsorted(ordered, a, "right")
    ends = np.cumsum(high - low)
    start, done = 0, 0
    while start < len(a):
        stop = max(int(np.searchsorted(ends, done + CHUNK, "right")), start + 1)
        counts = high[start:stop] - low[start:stop]
        i = np.repeat(np.arange(start, stop), counts)
        within = np.arange(len(i)) - np.repeat(np.cumsum(counts) - counts, counts)
        if len(i):
            yield i, order[low[i] + within]
        start, done = stop, int(ends[stop - 1])
