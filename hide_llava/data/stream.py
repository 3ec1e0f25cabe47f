"""The records of an annotation file or folder in LLaVA's shape, one at a time, whatever their number."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hide_llava.data.embedded import Names
from hide_llava.data.formats import Blob, Naming, Unreadable, as_llava, shape_of
from hide_llava.data.sources import Row, read_rows
from hide_llava.errors import BadRecord, UserError

# Shape → how its records are written.
WRITTEN = {"messages": "turns of {role, content}", "conversations": "turns of {from, value}", "problem": "problem and solution"}


def stream(source: Path, image_root: Path | None = None, asked: bool = False) -> Iterator[Any]:
    """The records of a file or folder in LLaVA's shape, one at a time; one that cannot be made so is `Unreadable`.

    image_root: what the names of pictures that are in the file itself will be relative to; None: its folder. asked: they are
    questions.

    Raises:
        UserError: missing, empty, damaged, or two shapes in one file.
    """
    source = Path(source)
    names = Names(source.parent if image_root is None else Path(image_root))
    first: tuple[int, str] | None = None
    for index, row in enumerate(read_rows(source)):
        shape = shape_of(row.content)
        first = first or (shape and (index, shape)) or None
        if shape is not None and first is not None and shape != first[1]:
            raise UserError(
                f"{source}: record {index} has {WRITTEN[shape]}, record {first[0]} {WRITTEN[first[1]]}; keep the two shapes "
                "in files of their own, or make them one with `hide-llava convert`."
            )
        yield llava_of(row, index, names, asked)


def llava_of(row: Row, index: int, names: Names, asked: bool) -> Any:
    """A row in LLaVA's shape. index: of the row in its source."""
    if not isinstance(row.content, Mapping):
        return row.content
    number = 0

    def name(blob: Blob) -> str:
        nonlocal number
        number += 1
        if row.place is None:
            raise BadRecord("holds a picture itself (data:…), which is found again in JSON lines and in Parquet, not in a JSON "
                            "list; write such a file with `hide-llava convert`", "picture in a JSON list")  # fmt: skip
        return names.of(row.file, row.place, number - 1, blob)

    try:
        return as_record(row, index, name, asked)
    except BadRecord as fault:
        return Unreadable(row.content, fault)


def as_record(row: Row, index: int, name: Naming, asked: bool) -> Mapping[str, Any]:
    """`as_llava` of a row, under the names that question files have if it is one: in a table `question` is its text, and without
    an id it is known by its index.

    Raises:
        BadRecord: as of `as_llava`.
    """
    record = as_llava(row.content, name, asked)
    if not asked or not (row.table or shape_of(row.content)):
        return record
    text = {"text": record["question"]} if "text" not in record and isinstance(record.get("question"), str) else {}
    identity = record.get("question_id", record.get("id"))
    return {**record, **text, "question_id": index if identity is None else identity}
