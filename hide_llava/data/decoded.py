"""Which pictures can be decoded: every file of a training set is read before its training begins, and once only.

A truncated picture met after hours of training would stop the run there. Pictures that were found good are remembered
in the cache folder by path, size and time of change, so that a second start costs no more than looking at them.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np

from hide_llava.data import embedded
from hide_llava.data.cache import cache_folder
from hide_llava.data.hashing import NONE, Hashes, as_hashes, hash64
from hide_llava.data.images import check_mode, opened
from hide_llava.errors import BadRecord, UserError
from hide_llava.progress import Bar

BLOCK = 4096  # pictures looked at together
RULE = "1"  # part of what is remembered; raise it when `decode` becomes stricter


def undecodable(
    paths: Iterable[str], workers: int = 1, name: str = "", cache_dir: Path | None = None, total: int | None = None
) -> dict[str, BadRecord]:
    """Of these pictures, those that are missing or cannot be decoded, with the reason; on `workers` threads.

    A JPEG of 640 × 480 takes 2 ms (its decoder reads all data, but makes a small picture of them). Held in memory: a
    number for each good picture; on disk: 8 bytes.
    """
    folder = cache_folder(cache_dir) / "decoded"
    known, fresh, bad = _remembered(folder), set(), {}
    looked, rest = 0, iter(paths)
    try:
        with (
            Bar(f"decoding images of {name}", total, "image") as bar,
            ThreadPoolExecutor(max(1, workers)) as pool,  # decoding releases the interpreter lock
        ):
            while block := list(islice(rest, BLOCK)):
                marks = dict(zip(block, pool.map(_mark, block)))
                seen = _in(as_hashes([mark or NONE for mark in marks.values()]), known)
                todo = [
                    path for (path, mark), done in zip(marks.items(), seen)
                    if not (done or mark in fresh or path in bad)
                ]  # fmt: skip
                for path, reason in zip(todo, pool.map(decode, todo)):
                    if reason is not None:
                        bad[path] = reason
                    elif marks[path] is not None:
                        fresh.add(marks[path])
                looked += len(block)
                bar.at(looked)
    finally:  # also when the run is stopped here: it goes on from what is known
        if fresh:
            _remember(folder, as_hashes(list(fresh)))
    return bad


def decode(file: str) -> BadRecord | None:
    """What is wrong with the picture of this path, if anything is."""
    path = Path(file)
    if not embedded.is_there(path):
        return BadRecord(f"Image {path} does not exist; check the image root of the benchmark.", "missing picture")
    try:
        with opened(path) as image:
            check_mode(image)
            image.draft(None, (1, 1))  # of a JPEG all data are decoded, but few pixels made of them
            image.load()
    except UserError as error:
        return BadRecord(str(error), "undecodable picture")
    return None


def _mark(path: str) -> int | None:
    """What a file is known by; None when it cannot be looked at."""
    try:
        state = embedded.stat(path)
    except OSError:
        return None
    return hash64(f"{RULE} {os.path.abspath(path)} {state.st_size} {state.st_mtime_ns}")


def _in(marks: Hashes, known: Hashes) -> np.ndarray:
    """Which of `marks` are among `known`, sorted."""
    places = np.searchsorted(known, marks)
    inside = places < len(known)
    return inside & (known[np.where(inside, places, 0)] == marks) if len(known) else inside


def _remembered(folder: Path) -> Hashes:
    found = [np.empty(0, dtype=np.uint64)]
    for file in folder.glob("*.u64"):
        with contextlib.suppress(OSError, ValueError):  # another process may tidy the folder
            found.append(np.fromfile(file, dtype=np.uint64))
    return np.unique(np.concatenate(found))


def _remember(folder: Path, marks: Hashes) -> None:
    """A file of its own for each call, renamed when complete: several processes may write at once."""
    with contextlib.suppress(OSError):  # a cache that cannot be written costs time, not the run
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{uuid.uuid4().hex}.u64"
        marks.tofile(file.with_suffix(".tmp"))
        os.replace(file.with_suffix(".tmp"), file)
