"""A JSON list, or JSON lines, one record at a time, whatever its size; and what is wrong with a file that is neither."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import ijson

from hide_llava.errors import UserError

RECORD = {"id", "question_id", "text", "conversations", "messages", "problem"}  # an object with none of them is no record


def rows(file: Path) -> Iterator[tuple[int | None, Any]]:
    """The elements of a JSON list, or the JSON value of each line, with the first byte of that line; None in a list.

    Which of the two it is, the first character says, not the file's name. A byte order mark is read over.

    Raises:
        UserError: empty, another encoding than UTF-8 (with the byte), or broken JSON (with the line).
    """
    with file.open("rb") as handle:
        start = _start(handle, file)
        handle.seek(start)
        if _first_character(handle) != b"[":
            handle.seek(start)
            yield from _lines(handle, file, start)
            return
        handle.seek(start)
        try:
            yield from ((None, value) for value in ijson.items(handle, "item", use_float=True))
        except (ijson.JSONError, UnicodeDecodeError) as error:
            _check_encoding(file)
            said = _position(file) or " ".join(str(error).split())
            raise UserError(f"{file} is not valid JSON: {said}; it may have been cut short.") from error


def line_at(file: Path, first_byte: int) -> Any:
    """The value of the line that begins there.

    Raises:
        ValueError: no line of JSON does; the file is another than it was.
    """
    with file.open("rb") as handle:
        handle.seek(first_byte)
        return json.loads(handle.readline().decode("utf-8"))


def _lines(handle: BinaryIO, file: Path, first_byte: int) -> Iterator[tuple[int, Any]]:
    count, value = 0, None
    for number, line in enumerate(handle, start=1):
        here, first_byte = first_byte, first_byte + len(line)
        if not line.strip():
            continue
        try:
            value = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError:
            _check_encoding(file)
            raise
        except ValueError as error:
            if number == 1 and line.strip() == b"{":  # an object over many lines: say it of the file
                raise UserError(f"{file} is not a JSON list of records, nor one record a line.") from error
            raise UserError(f"{file}, line {number} is not valid JSON: {error}") from error
        count += 1
        yield here, value
    if count == 1 and not (isinstance(value, Mapping) and value.keys() & RECORD):
        raise UserError(f"{file} is not a JSON list of records, nor one record a line.")


def _start(handle: BinaryIO, file: Path) -> int:
    """Where the text begins: after a byte order mark, if there is one."""
    head = handle.read(4)
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or head[:2].count(0) == 1 or head.count(0) == 3:
        raise UserError(f"{file} is not UTF-8 text (byte 0 begins UTF-16 or UTF-32); save it as UTF-8.")
    return len(codecs.BOM_UTF8) if head.startswith(codecs.BOM_UTF8) else 0


def _first_character(handle: BinaryIO) -> bytes:
    while block := handle.read(4096):
        if stripped := block.lstrip():
            return stripped[:1]
    raise UserError(f"{handle.name} is empty; expected a JSON list of records, or one record a line.")


def _check_encoding(file: Path) -> None:
    """Raises UserError that names the first byte that is not UTF-8. Only on the way to an error."""
    decoder, read = codecs.getincrementaldecoder("utf-8")(), 0
    with file.open("rb") as handle:
        while True:
            block = handle.read(1 << 20)
            waiting = len(decoder.getstate()[0])  # of the block before: the beginning of a character
            try:
                decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                at = read - waiting + error.start
                raise UserError(f"{file} is not UTF-8 text (byte {at}); save it as UTF-8.") from None
            if not block:
                return
            read += len(block)


def _position(file: Path) -> str | None:
    """Line and column of the first syntax error; the streaming parser does not tell. Only on the way to an error,
    and not for a file too large to be held in memory."""
    if file.stat().st_size > 1 << 26:
        return None
    try:
        json.loads(file.read_bytes())
    except ValueError as error:
        return str(error)
    return None
