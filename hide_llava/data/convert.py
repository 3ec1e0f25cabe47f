"""`hide-llava convert`: records of any shape as LLaVA JSON, JSON lines or Parquet, and from Parquet back without loss.

Parquet holds the pictures themselves, in columns as Hugging Face's `datasets` reads them; its column `fields` is the JSON record
with all that has no column of its own, so that the way back gives each record as it was.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

from hide_llava.data import embedded
from hide_llava.data.formats import Blob, blobs_of, own_name
from hide_llava.data.images import opened
from hide_llava.data.records import check_question, check_record, named_pictures
from hide_llava.data.sources import FIELDS, OURS, Row, read_rows
from hide_llava.data.stream import as_record
from hide_llava.errors import BadRecord, UserError
from hide_llava.progress import watched
from hide_llava.storage import complete, write_bytes

if TYPE_CHECKING:
    from datasets import Features

KINDS = (".json", ".jsonl", ".parquet")
GROUP_BYTES, GROUP_ROWS = 4 << 20, 1024  # of a Parquet file's group of rows, all of which is read for one picture
PLAIN_TURN = {"from", "value"}


class Converted(NamedTuple):
    """How many records were written, and how many pictures beside them or in them."""

    records: int
    pictures: int


def convert(source: Path, target: Path, images: Path | None = None, questions: bool = False) -> Converted:
    """Write the records of `source` to `target`, whose ending says how.

    images: the folder that pictures' names are relative to, in the source's names and the target's; None: the folder of the
    file that names them. Parquet takes the pictures in from there; to JSON, pictures that the source holds itself are written
    there. questions: a conversation of one question becomes {text, answer}.

    Raises:
        UserError: another ending, a target that is there, a record or picture that cannot be read, or a picture's file that
            is there with another content.
    """
    if target.suffix not in KINDS:
        raise UserError(f"{target}: expected a name that ends in {', '.join(KINDS)}.")
    if target.exists():
        raise UserError(f"{target} is there already; delete it, or choose another name.")
    if target.suffix == ".parquet":
        return _to_parquet(source, target, images or source.parent, questions)
    return _to_json(source, target, images or target.parent, questions)


def _checked(record: Mapping[str, Any], where: str, image_root: Path) -> list[str]:
    """The names of a record's pictures, if a run would take the record.

    Raises:
        UserError: it would not.
    """
    if "text" in record and not record.get("conversations"):
        check_question(record, where, image_root)
        return named_pictures(record)
    return check_record(record)["image"]


# ------------------------------------------------------------------------------------------------------------------- JSON


def _to_json(source: Path, target: Path, folder: Path, questions: bool) -> Converted:
    count, written = 0, 0
    lines = target.suffix == ".jsonl"
    with complete(target) as temporary, temporary.open("w", encoding="utf-8") as file:
        for index, row in enumerate(watched(read_rows(source, any_groups=True), f"reading {source.name}")):
            where = f"{source}: record {index}"
            try:
                record, blobs = _as_json(row, index, lambda blob: _free_name(blob, folder, target.stem), questions)
                _checked(record, where, folder)
            except BadRecord as error:
                raise UserError(f"{where}: {error}") from None
            for name, blob in blobs.items():
                written += _save(folder / name, blob, where)
            text = _text(record)
            file.write(f"{text}\n" if lines else f"{',' if count else '['}\n{text}")
            count += 1
        if not count:
            raise UserError(f"{source} holds no records (an empty list).")
        file.write("" if lines else "\n]\n")
    return Converted(count, written)


def _as_json(row: Row, index: int, name: Callable[[Blob], str], questions: bool) -> tuple[Mapping[str, Any], dict[str, Blob]]:
    """The record as JSON has it, and the pictures that it held by their names from now on."""
    if not isinstance(row.content, Mapping):
        raise BadRecord(f"is a {type(row.content).__name__}, expected an object", "no object")
    if row.written is not None:
        return row.written, dict(zip(named_pictures(row.written), blobs_of(row.content)))
    blobs: dict[str, Blob] = {}

    def noted(blob: Blob) -> str:
        given = name(blob)
        if blobs.get(given, blob).content != blob.content:  # two pictures of a record that had one name
            given = _by_content(blob)
        blobs[given] = blob
        return given

    return as_record(row, index, noted, questions), blobs


def _by_content(blob: Blob) -> str:
    """A name by which equal pictures are one file: its own, in a folder that its content names.

    Raises:
        BadRecord: it has none, and nothing that a decoder knows says what it is.
    """
    digest = hashlib.sha256(blob.content).hexdigest()[:20]
    if own := own_name(blob.file):
        return f"{digest}/{own}"
    try:
        with opened(Path("of a record"), io.BytesIO(blob.content)) as image:
            return f"{digest}.{'jpg' if image.format == 'JPEG' else image.format.lower()}"
    except UserError:
        raise BadRecord("holds a picture that cannot be decoded; replace it", "undecodable picture") from None


def _free_name(blob: Blob, folder: Path, stem: str) -> str:
    """The path that a picture had, if it can have it in `folder`; else a name by its content, in a folder `stem` of its own."""
    path = PurePosixPath(blob.file or "")
    if path.name and not path.is_absolute() and ".." not in path.parts and "\\" not in str(path):
        there = folder / path
        if not there.exists() or there.read_bytes() == blob.content:
            return str(path)
    return f"{stem}/{_by_content(blob)}"


def _save(file: Path, blob: Blob, where: str) -> bool:
    """Write a picture's file; False where it is there already.

    Raises:
        UserError: it is there with another content.
    """
    if file.exists():
        if file.read_bytes() != blob.content:
            raise UserError(f"{where}: {file} is there with another content; choose another folder with --images.")
        return False
    write_bytes(file, blob.content)
    return True


# ---------------------------------------------------------------------------------------------------------------- Parquet


def _features() -> Features:
    from datasets import Features, Image, Value

    text = Value("string")
    return Features({
        "id": text, "images": [Image()], "conversations": [{"from": text, "value": text}], "text": text, "answer": text,
        FIELDS: text,
    })  # fmt: skip


def _to_parquet(source: Path, target: Path, folder: Path, questions: bool) -> Converted:
    import pyarrow
    from pyarrow import parquet

    schema = _features().arrow_schema
    schema = schema.with_metadata({**(schema.metadata or {}), OURS: b"1"})
    count, pictures, size, waiting = 0, 0, 0, []
    with complete(target) as temporary, parquet.ParquetWriter(
        temporary, schema, compression="zstd", use_dictionary=False, write_statistics=False
    ) as writer:  # fmt: skip

        def flush() -> None:
            if waiting:
                writer.write_table(pyarrow.Table.from_pylist(waiting, schema))

        for index, row in enumerate(watched(read_rows(source, any_groups=True), f"reading {source.name}")):
            where = f"{source}: record {index}"
            try:
                made = _as_row(row, index, where, folder, questions)
            except BadRecord as error:
                raise UserError(f"{where}: {error}") from None
            count, pictures = count + 1, pictures + len(made["images"])
            size += sum(len(picture["bytes"]) for picture in made["images"])
            waiting.append(made)
            if size > GROUP_BYTES or len(waiting) == GROUP_ROWS:
                flush()
                size, waiting = 0, []
        flush()
        if not count:
            raise UserError(f"{source} holds no records (an empty list).")
    return Converted(count, pictures)


def _as_row(row: Row, index: int, where: str, folder: Path, questions: bool) -> dict[str, Any]:
    """A record as a row of the Parquet file."""
    record, held = _as_json(row, index, _by_content, questions)
    listed = _checked(record, where, folder)
    images = [{"bytes": held[name].content if name in held else _content(folder / name, where), "path": name} for name in listed]
    turns, identity = record.get("conversations"), record.get("id", record.get("question_id"))
    columns = {
        "conversations": turns if _is_plain(turns) else None,
        "text": record.get("text") if isinstance(record.get("text"), str) else None,
    }
    fields = {key: None if columns.get(key) is not None else value for key, value in record.items()}
    return {
        "id": None if identity is None else str(identity), "images": images, **columns,
        "answer": record["answer"] if isinstance(record.get("answer"), str) else None,
        FIELDS: _text(fields),
    }  # fmt: skip


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)  # a date of a table is written as text


def _is_plain(turns: Any) -> bool:
    """Whether the column of conversations holds all of them."""
    listed = turns if isinstance(turns, list) else []
    return bool(listed) and all(isinstance(turn, Mapping) and turn.keys() == PLAIN_TURN for turn in listed)


def _content(file: Path, where: str) -> bytes:
    try:
        return embedded.read(file)
    except FileNotFoundError:
        raise UserError(f"{where}: Image {file} does not exist; name the folder of the pictures with --images.") from None
