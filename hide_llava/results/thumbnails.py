"""Small copies of the pictures of questions, inside the results of a run, so that its page needs nothing from outside.

A copy is named by a hash, never by what a question file says: no file name can lead out of the folder. It is made once, and
again when its picture is another: it carries its picture's time of change. A picture that has been moved keeps its copy.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from hide_llava.data import embedded
from hide_llava.data.images import as_rgb, opened
from hide_llava.errors import UserError
from hide_llava.progress import Bar
from hide_llava.storage import complete

SIDE = 160  # pixels of the longer side
QUALITY = 70  # of JPEG: 3 to 6 kB a photograph
MOST = 20_000  # copies of one run: about 100 MB

NOT_FOUND, UNREADABLE, TOO_MANY = "not found", "cannot be read", "left out"


@dataclass(frozen=True)
class Source:
    """A picture. place: its folder, relative to that of the data. name: relative to `folder`, as the question file has it."""

    folder: Path
    place: str
    name: str
    orientation: str

    @property
    def key(self) -> str:
        """The name of its copy: 32 hexadecimal digits."""
        told = "\0".join([self.place, self.name, self.orientation, str(SIDE)])
        return hashlib.sha256(told.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def place_of(folder: Path, key: str) -> Path:
    """The copy's file; folders of a few dozen files each."""
    return folder / key[:2] / f"{key}.jpg"


def write_thumbnails(folder: Path, sources: Iterable[Source], most: int = MOST) -> dict[Source, str]:
    """Copies of the first `most` pictures in `folder`; for each picture its key, or why there is none.

    Raises:
        UserError: `folder` cannot be written.
    """
    wanted = list(dict.fromkeys(sources))
    found = dict.fromkeys(wanted, TOO_MANY)
    with (
        Bar("thumbnails", min(most, len(wanted)), "picture") as bar,
        ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool,  # decoding releases the interpreter lock
    ):
        copied = pool.map(lambda source: _copy(folder, source), wanted[:most])
        for done, (source, outcome) in enumerate(zip(wanted, copied), 1):
            found[source] = outcome
            bar.at(done)
    return found


def remove_others(folder: Path, keys: set[str]) -> None:
    """Delete the copies that are not of these keys, and nothing else."""
    for file in folder.glob("??/*.jpg"):
        if file.stem not in keys:
            file.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # it is not empty
                file.parent.rmdir()


def _copy(folder: Path, source: Source) -> str:
    """The key of the copy, which is made where it is missing or old; or why there is none."""
    path, copy = source.folder / source.name, place_of(folder, source.key)
    try:
        changed = embedded.stat(path).st_mtime_ns
    except (OSError, ValueError):
        return source.key if copy.is_file() else NOT_FOUND
    whole_seconds = changed // 10**9 * 10**9  # all that some cluster file systems keep of it
    with contextlib.suppress(OSError):
        if copy.stat().st_mtime_ns in (changed, whole_seconds) and copy.stat().st_size:
            return source.key
    try:
        with opened(path) as image:
            image.draft("RGB", (SIDE, SIDE))  # a JPEG is decoded at half its size, a quarter or an eighth where that is enough
            small = as_rgb(image, source.orientation)
            small.thumbnail((SIDE, SIDE))
    except UserError:
        return UNREADABLE
    with complete(copy) as temporary:
        small.save(temporary, "JPEG", quality=QUALITY)
        os.utime(temporary, ns=(changed, changed))
    return source.key
