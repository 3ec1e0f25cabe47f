"""Pictures that are in an annotation file itself, under names that look like paths: `train.parquet/@17.0/cat.png`.

That is picture 0 of the row at place 17 (`sources.Row.place`) of train.parquet, which was cat.png once. Whatever joins, compares
or keeps paths of pictures does so with these, too. What opens a file asks here first.
"""

from __future__ import annotations

import os
import re
from hashlib import blake2b
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from hide_llava.data.formats import COLUMNS, Blob, blobs_of, own_name
from hide_llava.data.sources import row_at
from hide_llava.errors import BadRecord, UserError

NAME = re.compile(r"(.+)/@(\d+)\.(\d+)(?:/[^/]*)?")
REMEMBERED = 1 << 16  # pictures of which a second one in the same file gets the name of the first


class Embedded(str):
    """The name of a picture in an annotation file, given here. It may lead out of the folder of pictures, which what a data
    file says may not."""


class Place(NamedTuple):
    """Where a picture is: the file, the place of its row, and which of the row's it is."""

    file: str
    row: int
    number: int


class Names:
    """Names for the pictures of one file's rows, one for equal pictures that are not too far apart: questions about one picture
    are known by its name. folder: what the names are relative to."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.given: dict[tuple[bytes, str], Embedded] = {}
        self.relative: dict[Path, str] = {}

    def of(self, file: Path, row: int, number: int, blob: Blob) -> Embedded:
        """The name of a picture with this content."""
        name = own_name(blob.file)
        key = (blake2b(blob.content, digest_size=16).digest(), name)
        if key not in self.given:
            if len(self.given) == REMEMBERED:
                del self.given[next(iter(self.given))]
            if file not in self.relative:
                self.relative[file] = os.path.relpath(file, self.folder).replace(os.sep, "/")
            place = f"{self.relative[file]}/@{row}.{number}"
            self.given[key] = Embedded(f"{place}/{name}" if name else place)
        return self.given[key]


def place_of(path: str | Path) -> Place | None:
    """The place that a path names, if that is in a file that is there."""
    text = str(path)
    found = NAME.fullmatch(text) if "/@" in text else None
    if found is None:
        return None
    file = os.path.normpath(found[1])  # the folder of pictures, out of which a name leads, need not be there
    return Place(file, int(found[2]), int(found[3])) if os.path.isfile(file) else None


def is_there(path: str | Path) -> bool:
    """Whether the picture's file is there, or that which it is in."""
    return os.path.isfile(path) or place_of(path) is not None


def stat(path: str | Path) -> os.stat_result:
    """Of the picture's file, or of that which it is in. Raises OSError."""
    place = place_of(path)
    return os.stat(path if place is None else place.file)


def opened(path: Path) -> BytesIO | None:
    """The picture's content; None for a file of its own.

    Raises:
        UserError, to be continued after the picture's name: it is not in its file.
    """
    place = place_of(path)
    if place is None:
        return None
    try:
        row = row_at(Path(place.file), place.row, COLUMNS)
        return BytesIO(next(islice(blobs_of(row), place.number, None)).content)
    except (IndexError, ValueError, StopIteration, AttributeError, BadRecord):
        raise UserError(f"is not in {place.file}, which is another file than it was; run the same command again.") from None


def read(path: Path) -> bytes:
    """The content of a picture's file, or of a picture in a file. Raises OSError or UserError."""
    content = opened(path)
    return path.read_bytes() if content is None else content.getvalue()
