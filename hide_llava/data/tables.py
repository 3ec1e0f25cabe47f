"""Parquet and Arrow files, row by row: streamed from one end to the other, or a single row by its number.

A picture in a table is never held longer than its row is looked at. Parquet is compressed in groups of rows, so a single row
costs the reading of its group: groups that are too large for that are refused. Arrow files are mapped into memory.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from hide_llava.errors import UserError

if TYPE_CHECKING:
    import pyarrow
    from pyarrow import parquet

AT_ONCE, MOST_ROWS = 8 << 20, 1024  # bytes and rows that are turned into Python objects together
LARGEST_GROUP = 256 << 20  # bytes of a Parquet file's group of rows, unpacked, of which a single row is still taken out
BUFFER = 1 << 20  # bytes that are read of a column at a time
MAGIC = {b"PAR1": "parquet", b"ARROW1": "arrow file"}  # what a file of that kind begins with
STREAM = b"\xff\xff\xff\xff"  # what Arrow's streams begin with, which is how `datasets` saves
_lock = Lock()  # several threads that ask for rows of one group unpack it once


def kind_of(file: Path) -> str | None:
    """"parquet", "arrow file" or "arrow stream", by how the file begins; None: it is no table."""
    with file.open("rb") as handle:
        head = handle.read(8)
    known = next((kind for magic, kind in MAGIC.items() if head.startswith(magic)), None)
    return known or ("arrow stream" if head.startswith(STREAM) and file.suffix == ".arrow" else None)


def rows(file: Path, any_groups: bool = False) -> Iterator[dict[str, Any]]:
    """All rows in order, each as {column: Python value}. any_groups: no picture is looked for again, so groups may be large.

    Raises:
        UserError: a damaged file, or a Parquet file of pictures whose groups are too large to find one of them again.
    """
    import pyarrow

    try:
        for batch in _parquet_batches(file, any_groups) if kind_of(file) == "parquet" else _arrow_batches(file):
            step = _rows_at_once(batch.nbytes, batch.num_rows)
            for start in range(0, batch.num_rows, step):
                yield from batch.slice(start, step).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{file} is damaged ({_short(error)}); copy it again, it may have been cut short.") from None


def row_at(file: Path, number: int, columns: Sequence[str]) -> dict[str, Any]:
    """These columns of a single row, those that the file has.

    Raises:
        IndexError: there is no such row; the file is another than it was.
        UserError: a damaged file.
    """
    import pyarrow

    state = os.stat(file)
    key = (str(file), state.st_size, state.st_mtime_ns, os.getpid())  # a forked process opens files of its own
    try:
        with _lock:
            if _kind(key) == "parquet":
                start, group = _group_with(key, number, tuple(columns))
            else:
                start, group = 0, _mapped(key)
        here = [name for name in columns if name in group.column_names]
        return group.select(here).slice(number - start, 1).to_pylist()[0]
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{file} is damaged ({_short(error)}); copy it again, it may have been cut short.") from None


def metadata(file: Path) -> Mapping[bytes, bytes]:
    """What the writer of a Parquet or Arrow file noted about it."""
    import pyarrow
    from pyarrow import parquet

    try:
        if kind_of(file) == "parquet":
            return parquet.read_schema(file).metadata or {}
        with _reader(file) as reader:
            return reader.schema.metadata or {}
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{file} is damaged ({_short(error)}); copy it again, it may have been cut short.") from None


# ---------------------------------------------------------------------------------------------------------------- Parquet


def _parquet_batches(file: Path, any_groups: bool) -> Iterator[pyarrow.RecordBatch]:
    from pyarrow import parquet

    with parquet.ParquetFile(file, buffer_size=BUFFER, pre_buffer=False) as opened:
        if not any_groups:
            _check_groups(file, opened)
        size = sum(opened.metadata.row_group(i).total_byte_size for i in range(opened.num_row_groups))
        yield from opened.iter_batches(_rows_at_once(size, opened.metadata.num_rows), use_threads=False)


def _check_groups(file: Path, opened: parquet.ParquetFile) -> None:
    """Raises UserError for a file of pictures with groups that are too large."""
    if not any(map(_holds_bytes, (field.type for field in opened.schema_arrow))):
        return
    sizes = [opened.metadata.row_group(i).total_byte_size for i in range(opened.num_row_groups)]
    if (largest := max(sizes, default=0)) > LARGEST_GROUP:
        raise UserError(
            f"{file} holds pictures in groups of rows of up to {largest / 2**20:,.0f} MiB, which are too large to take one "
            f"picture out; `hide-llava convert {file} TARGET.parquet` writes it in small groups."
        )


def _holds_bytes(kind: pyarrow.DataType) -> bool:
    import pyarrow.types as types

    if types.is_binary(kind) or types.is_large_binary(kind):
        return True
    return any(_holds_bytes(kind.field(i).type) for i in range(kind.num_fields)) if types.is_nested(kind) else False


@lru_cache(maxsize=1024)
def _kind(key: tuple) -> str | None:
    return kind_of(Path(key[0]))


@lru_cache(maxsize=64)
def _opened(key: tuple) -> tuple[parquet.ParquetFile, list[int]]:
    """A Parquet file, and the number of the first row of each of its groups."""
    from pyarrow import parquet

    opened = parquet.ParquetFile(key[0], pre_buffer=False)
    starts = [0]
    for i in range(opened.num_row_groups):
        starts.append(starts[-1] + opened.metadata.row_group(i).num_rows)
    return opened, starts


@lru_cache(maxsize=2)  # two, for threads that stand on both sides of a border
def _group(key: tuple, group: int, columns: tuple[str, ...]) -> pyarrow.Table:
    opened, _ = _opened(key)
    return opened.read_row_group(group, [c for c in columns if c in opened.schema_arrow.names], use_threads=False)


def _group_with(key: tuple, number: int, columns: tuple[str, ...]) -> tuple[int, pyarrow.Table]:
    import bisect

    _, starts = _opened(key)
    group = bisect.bisect_right(starts, number) - 1
    if group >= len(starts) - 1:
        raise IndexError(number)
    return starts[group], _group(key, group, columns)


# ------------------------------------------------------------------------------------------------------------------ Arrow


def _reader(file: Path) -> Any:
    import pyarrow

    source = pyarrow.OSFile(str(file))
    return pyarrow.ipc.open_file(source) if kind_of(file) == "arrow file" else pyarrow.ipc.open_stream(source)


def _arrow_batches(file: Path) -> Iterator[pyarrow.RecordBatch]:
    with _reader(file) as reader:
        if hasattr(reader, "num_record_batches"):
            yield from (reader.get_batch(i) for i in range(reader.num_record_batches))
        else:
            yield from reader


@lru_cache(maxsize=64)
def _mapped(key: tuple) -> pyarrow.Table:
    """The whole file, of which the memory holds what was looked at and nothing else needs."""
    import pyarrow

    source, file = pyarrow.memory_map(key[0]), Path(key[0])
    reader = pyarrow.ipc.open_file(source) if kind_of(file) == "arrow file" else pyarrow.ipc.open_stream(source)
    return reader.read_all()


def _rows_at_once(size: int, count: int) -> int:
    return max(1, min(MOST_ROWS, AT_ONCE * count // max(size, 1)))


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:160]
