"""Published figures, read from `published.yaml`, and their spread per method: a range with its protocols, no target.

The same method on the same benchmark differs by ten points between papers, so a single published number says little.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import NamedTuple

import yaml

from hide_llava.errors import UserError
from hide_llava.results.aggregates import AGGREGATES, aggregates
from hide_llava.results.matrix import AccuracyMatrix, Cell, column_means, last_row, mean
from hide_llava.yaml_text import parse_yaml

FILE = Path(__file__).parent / "published.yaml"
KEYS = {"same_method", "same_preset", "joined", "sources", "tables"}
JOINED_KEYS = {"name", "benchmark", "model", "protocols", "because"}
TABLE_KEYS = {"paper", "table", "benchmark", "model", "protocol", "evidence", "source", "verified", "rows"}
TABLE_OPTIONS = {"kind", "note", "tasks"}
PER_TASK = {"last_per_task", "avg_per_task"}
ROW_KEYS = {"method", "matrix", "other", "note", *PER_TASK} | {a.key for a in AGGREGATES}


@dataclass(frozen=True)
class Entry:
    """One row of a published table. Scores in percent; `computed` names the values nobody printed: its matrix gives them."""

    paper: str
    table: str
    benchmark: str
    model: str
    protocol: str
    evidence: str
    source: list[str]
    verified: bool
    kind: str
    note: str
    method: str
    tasks: list[str]
    last_per_task: list[Cell]
    avg_per_task: list[Cell]
    values: dict[str, float]
    computed: frozenset[str]
    other: dict[str, float] = field(default_factory=dict)
    matrix: AccuracyMatrix | None = None

    @property
    def label(self) -> str:
        """Whose protocol, and how far to trust it."""
        doubts = [] if self.verified else ["not verified"]
        return f"{self.protocol}, {self.table}" + (f" ({'; '.join(doubts)})" if doubts else "")


@dataclass(frozen=True)
class Joined:
    """Protocols of one benchmark and model whose rows are printed side by side; `because` is the reason to think so."""

    name: str
    benchmark: str
    model: str
    protocols: list[str]
    because: str


class Published(NamedTuple):
    """The file. methods: plain published name → method of this library; presets: preset → the method it stands for."""

    entries: list[Entry]
    methods: dict[str, str]
    presets: dict[str, str]
    joined: list[Joined]


@dataclass(frozen=True)
class Spread:
    """The published values of one quantity: lowest, highest, how many."""

    low: float
    high: float
    count: int


def plain(name: str) -> str:
    """`CLEVR-Math` → `clevrmath`: papers, configurations and this file write names differently."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


@cache
def load(path: Path = FILE) -> Published:
    """All that the file holds.

    Raises:
        UserError: not YAML, an unknown key, method or protocol, a value that is no number, or columns that do not fit the tasks.
    """
    try:
        content = parse_yaml(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read ({' '.join(str(error).split())}).") from None
    if not isinstance(content, dict) or set(content) != KEYS:
        raise UserError(f"{path}: expected the keys {', '.join(sorted(KEYS))}.")
    entries = [
        _entry(table, row, content["sources"], f"{path}: table {number}")
        for number, table in enumerate(content["tables"], 1)
        for row in _rows(table, f"{path}: table {number}")
    ]
    printed, presets = content["same_method"], content["same_preset"]
    if odd := sorted(presets.keys() - printed.keys()):
        raise UserError(f"{path}: same_preset: {odd[0]} is no method of same_method; add it there.")
    return Published(
        entries,
        {plain(name): ours for ours, names in printed.items() for name in [*names, ours]},
        {preset: ours for ours in printed for preset in [ours, *presets.get(ours, [])]},
        [_joined(one, entries, path) for one in content["joined"]],
    )


def _joined(one: dict, entries: list[Entry], path: Path) -> Joined:
    if not isinstance(one, dict) or set(one) != JOINED_KEYS:
        raise UserError(f"{path}: joined: each needs the keys {', '.join(sorted(JOINED_KEYS))}, and no other.")
    known = {e.protocol for e in entries if (e.benchmark, e.model) == (one["benchmark"], one["model"])}
    if odd := [protocol for protocol in one["protocols"] if protocol not in known]:
        raise UserError(f"{path}: joined, {one['name']}: no table of {one['benchmark']} with {one['model']} has the protocol "
                        f"'{odd[0]}'.")  # fmt: skip
    return Joined(**one)


def _rows(table: dict, where: str) -> list[dict]:
    if not isinstance(table, dict) or not set(table) >= TABLE_KEYS or set(table) - TABLE_KEYS - TABLE_OPTIONS:
        odd = set(table) ^ TABLE_KEYS - TABLE_OPTIONS if isinstance(table, dict) else {"a mapping"}
        raise UserError(f"{where}: missing or unknown: {', '.join(sorted(map(str, odd - TABLE_OPTIONS)))}.")
    for row in table["rows"]:
        odd = set(row) - ROW_KEYS if isinstance(row, dict) and row.get("method") else {"a row without method"}
        if odd:
            raise UserError(f"{where}: unknown: {', '.join(sorted(map(str, odd)))}.")
    return table["rows"]


def _entry(table: dict, row: dict, sources: dict, where: str) -> Entry:
    where, tasks = f"{where}, {row['method']}", table.get("tasks") or []
    unknown = [source for source in table["source"] if source not in sources]
    if unknown:
        raise UserError(f"{where}: unknown source {unknown[0]}; add it to sources.")
    values = {key: _number(row[key], where) for key in row if key in {a.key for a in AGGREGATES}}
    per_task = {key: _columns(row.get(key), tasks, where) for key in PER_TASK}
    matrix = None
    if "matrix" in row:
        matrix = AccuracyMatrix.from_rows(row["matrix"], tasks, learned_at=list(range(len(tasks))))
        if matrix.sequential:  # else the source stops before the last task
            per_task = {"last_per_task": last_row(matrix), "avg_per_task": column_means(matrix)}
            printed, values = values, {k: v for k, v in aggregates(matrix).items() if v is not None}
            values |= printed
    elif "last" not in values and mean(per_task["last_per_task"]) is not None:
        values["last"] = mean(per_task["last_per_task"])
    return Entry(
        *(table[key] for key in ("paper", "table", "benchmark", "model", "protocol", "evidence")),
        source=[sources[source] for source in table["source"]],
        verified=table["verified"],
        kind=table.get("kind", "result"),
        note="; ".join(filter(None, (table.get("note"), row.get("note")))),
        method=row["method"],
        tasks=tasks,
        values=values,
        computed=frozenset(values) - frozenset(row),
        other={key: _number(value, where) for key, value in row.get("other", {}).items()},
        matrix=matrix,
        **per_task,
    )


def _number(value: object, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise UserError(f"{where}: {value!r} is not a number.")
    return float(value)


def _columns(values: list | None, tasks: list[str], where: str) -> list[Cell]:
    if values is None:
        return [None] * len(tasks)
    if len(values) != len(tasks):
        raise UserError(f"{where}: {len(values)} values for {len(tasks)} tasks.")
    return [None if value is None else _number(value, where) for value in values]


def of_benchmark(benchmark: str) -> dict[tuple[str, str], list[Entry]]:
    """{(method, model): entries with comparable numbers} of a benchmark, ablations left out, best Last first.

    Methods carry this library's name where they have one, else the printed one.
    """
    entries, ours, *_ = load()
    groups: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        has_numbers = entry.values or any(value is not None for value in entry.last_per_task)
        if plain(entry.benchmark) == plain(benchmark) and entry.kind == "result" and has_numbers:
            name = ours.get(plain(entry.method), entry.method)
            key = next((k for k in groups if (plain(k[0]), k[1]) == (plain(name), entry.model)), (name, entry.model))
            groups.setdefault(key, []).append(entry)
    return dict(sorted(groups.items(), key=lambda item: -max(e.values.get("last", 0.0) for e in item[1])))


def spread(values: list[Cell]) -> Spread | None:
    """Lowest, highest and number of the values that are there; None when there are none."""
    present = [value for value in values if value is not None]
    return Spread(min(present), max(present), len(present)) if present else None


def task_spread(entries: list[Entry], task_names: set[str]) -> Spread | None:
    """The spread of the last scores on the task that has one of those names."""
    wanted = {plain(name) for name in task_names}
    return spread([value for e in entries for task, value in zip(e.tasks, e.last_per_task) if plain(task) in wanted])
