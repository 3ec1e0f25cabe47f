"""Where records come from: JSON, JSON lines, Parquet, Arrow, or a folder of such files as Hugging Face's libraries write.

A row is what the file has, whatever its shape; `formats.py` makes a LLaVA record of it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hide_llava.data import json_rows, tables
from hide_llava.data.cache import sha256_kept
from hide_llava.errors import UserError
from hide_llava.storage import read_json

SHARD = re.compile(r"(.*?)-\d{5}-of-\d{5}(?:-[0-9a-f]+)?")  # how the hub names the parts of a split
OURS, FIELDS = b"hide_llava", "fields"  # what `convert` notes in a Parquet file, and its column of all that has none of its own


@dataclass(frozen=True)
class Row:
    """A record as its file has it.

    file: of a folder, the one that holds it. place: by which it is found again: the row's number in a table, the first byte of
    a line of JSON, None in a JSON list. table: whether it comes from a table, whose columns are the same for all rows. written:
    of a Parquet file of `hide-llava convert`, the JSON record that it was made of.
    """

    file: Path
    place: int | None
    content: Any
    table: bool = False
    written: Mapping[str, Any] | None = None


def read_rows(source: Path, any_groups: bool = False) -> Iterator[Row]:
    """All rows of a file, or of the files of a folder. any_groups: see `tables.rows`.

    Raises:
        UserError: missing, empty, damaged, or a folder that holds several splits or nothing that is read.
    """
    for file in files_of(source):
        if tables.kind_of(file) is None:
            yield from (Row(file, place, content) for place, content in json_rows.rows(file))
            continue
        ours = OURS in tables.metadata(file)
        for number, content in enumerate(tables.rows(file, any_groups)):
            written = _written(content) if ours else None
            yield Row(file, number, _content(content, written), True, written)


def row_at(file: Path, place: int, columns: tuple[str, ...]) -> Mapping[str, Any]:
    """The row of that place again, of a table with these columns alone.

    Raises:
        IndexError, ValueError: there is none; the file is another than it was.
        UserError: the file is damaged.
    """
    return json_rows.line_at(file, place) if tables.kind_of(file) is None else tables.row_at(file, place, columns)


def files_of(source: Path) -> list[Path]:
    """The files whose rows a source has, in order.

    Raises:
        UserError: it is missing, or a folder that holds several splits or nothing that is read.
    """
    source = Path(source)
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise UserError(f"{source} does not exist; check the path.")
    if (source / "dataset_dict.json").is_file():
        splits = read_json(source / "dataset_dict.json").get("splits", [])
        raise UserError(f"{source} holds several splits ({', '.join(splits)}); name the folder of one, such as "
                        f"{source / (splits or ['train'])[0]}.")  # fmt: skip
    if (source / "state.json").is_file():
        state = read_json(source / "state.json")
        if state.get("_indices_data_files"):
            raise UserError(f"{source} was saved by an old version of datasets, with its order apart; load and save it again.")
        return [source / entry["filename"] for entry in state["_data_files"]]
    found = sorted(p for p in source.iterdir() if p.suffix in (".parquet", ".arrow") and p.is_file())
    if not found:
        raise UserError(f"{source} is a folder with neither Parquet nor Arrow files; name a file, or a saved data set.")
    splits = sorted({match[1] if (match := SHARD.fullmatch(p.stem)) else p.stem for p in found})
    if len(splits) > 1:
        raise UserError(f"{source} holds several splits ({', '.join(splits)}); name one file, or put the parts of one in a "
                        "folder of their own.")  # fmt: skip
    return found


def is_there(source: Path) -> bool:
    """Whether there is such a file or folder."""
    return source.is_file() or source.is_dir()


def content_sha256(source: Path) -> str:
    """The SHA-256 of a file; of a folder's files, the hash of their hashes, one on a line."""
    files = files_of(source)
    hashes = [sha256_kept(file) for file in files]
    return hashes[0] if source.is_file() else hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def _written(row: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON record that `convert` made this row of: a key whose value has a column is null among the fields."""
    record = json.loads(row[FIELDS])
    return record | {key: row[key] for key in record if record[key] is None and row.get(key) is not None and key != "images"}


def _content(row: Mapping[str, Any], written: Mapping[str, Any] | None) -> dict[str, Any]:
    """A row without its empty columns; with the pictures themselves in place of their names where it was written by us."""
    if written is None:
        return {key: value for key, value in row.items() if value is not None}
    named = {key: value for key, value in written.items() if key not in ("image", "images")}
    return {**named, "image": row["images"]} if row["images"] else named
