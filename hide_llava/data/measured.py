"""How long each training record is, kept by content: tokenising all of them takes minutes, and every start needs it.

A record that cannot be used is kept with its reason. What is kept is told apart by the records themselves, the tokenizer,
the settings that decide what becomes of a record, and the version of this package.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, Dataset

from hide_llava import __version__
from hide_llava.data.cache import cache_folder
from hide_llava.errors import UserError
from hide_llava.progress import Bar
from hide_llava.storage import write_text

if TYPE_CHECKING:
    import datasets

RULE = "1"  # part of the key; raise it when a record is tokenised or judged otherwise
MANY = 20_000  # records from which on starting processes pays: about five seconds of one core
TOGETHER, BLOCK = 256, 4096  # records that a process measures at a time, and that are hashed at a time
Measure = Callable[[Mapping[str, Any]], list]  # a record to [words, tokens, labels], or to [kind, reason] of a bad one


def measured(records: Any, measure: Measure, settings: Sequence[Any], workers: int, name: str) -> list[list]:
    """`measure` of every record, in order; from the cache folder where it is known, else on `workers` processes.

    Only a table of `load_records` is kept: its content is hashed in a moment. settings: all that `measure` depends on beside
    the record, as plain values.
    """
    import datasets  # here, because questions need none of it and it takes a second

    file = None
    if isinstance(records, datasets.Dataset):
        file = cache_folder() / "measured" / f"{_key(records, settings)}.json"
        with contextlib.suppress(OSError, ValueError):
            known = json.loads(file.read_text(encoding="utf-8"))
            if len(known) == len(records):
                return known
    found: list[list] = []
    with Bar(f"checking {name}", len(records), "record") as bar:
        for block in _blocks(records, measure, workers):
            found += block
            bar.at(len(found))
    if file is not None:
        with contextlib.suppress(OSError, UserError):  # a cache that cannot be written costs time, not the run
            write_text(file, json.dumps(found, ensure_ascii=False))
    return found


class _Blocks(Dataset):
    """Blocks of records, measured."""

    def __init__(self, records: Any, measure: Measure, size: int) -> None:
        self.records, self.measure, self.size = records, measure, size

    def __len__(self) -> int:
        return -(-len(self.records) // self.size)

    def __getitem__(self, block: int) -> list[list]:
        at = range(block * self.size, min(len(self.records), (block + 1) * self.size))
        return [self.measure(self.records[i]) for i in at]


def _blocks(records: Any, measure: Measure, workers: int) -> Iterable[list[list]]:
    blocks = _Blocks(records, measure, TOGETHER)
    if workers < 2 or len(records) < MANY:
        return (blocks[i] for i in range(len(blocks)))
    # a generator of its own: a loader draws a seed, and a start from the cache must leave the same random numbers behind
    return DataLoader(blocks, batch_size=None, num_workers=workers, collate_fn=list, generator=torch.Generator())


def _key(records: datasets.Dataset, settings: Sequence[Any]) -> str:
    """SHA-256 of the columns that tokenising reads, and of the settings."""
    digest = hashlib.sha256(json.dumps([RULE, __version__, len(records), *settings]).encode())
    columns = records.select_columns(["image", "conversations"]).with_format("arrow")
    for block in columns.iter(batch_size=BLOCK):
        for column in block.columns:
            digest.update(json.dumps(column.to_pylist(), ensure_ascii=False).encode())
    return digest.hexdigest()


def file_of(tokenizer: Any) -> str:
    """SHA-256 of all that a fast tokenizer does to a text."""
    whole = [tokenizer.backend_tokenizer.to_str(), tokenizer.all_special_tokens, tokenizer.pad_token_id]
    return hashlib.sha256(json.dumps(whole).encode()).hexdigest()
