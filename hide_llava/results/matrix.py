"""The accuracy matrix of a run and what is computed from it (spec hide.md §4.7).

A[t][j] is the score (percent) on task j of the checkpoint after stage t. A cell that was not evaluated is None, and an
aggregate that needs a missing cell is None: never zero, never a mean over what happens to be there.

Notation below: T tasks learned in T stages, task j learned at stage j, indices from 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from hide_llava.errors import UserError

Cell = float | None


def mean(values: Iterable[Cell]) -> Cell:
    """Arithmetic mean; None when there is no value or one of them is missing."""
    values = list(values)
    if not values or any(value is None for value in values):
        return None
    return sum(values) / len(values)


@dataclass(frozen=True)
class AccuracyMatrix:
    """stages × tasks. `learned_at[j]` is the index of the stage that trained task j, None if none did."""

    stages: list[str]
    tasks: list[str]
    cells: list[list[Cell]]
    learned_at: list[int | None]
    stage_titles: list[str]
    task_titles: list[str]

    @classmethod
    def from_rows(
        cls,
        rows: list[list[Cell]],
        tasks: list[str],
        stages: list[str] | None = None,
        learned_at: list[int | None] | None = None,
    ) -> AccuracyMatrix:
        """A matrix from rows "after stage t"; short rows are filled with None.

        Without `learned_at` a square matrix is sequential (stage t trains task t) and a single row is joint (no task
        has its own stage). UserError when the sizes do not fit together.
        """
        if any(len(row) > len(tasks) for row in rows) or (stages is not None and len(stages) != len(rows)):
            raise UserError(f"The matrix has {len(rows)} rows for {len(tasks)} tasks; the sizes do not fit together.")
        cells = [[*map(_cell, row), *[None] * (len(tasks) - len(row))] for row in rows]
        if learned_at is None:
            joint = len(rows) == 1 and len(tasks) > 1
            learned_at = [None if joint or j >= len(rows) else j for j in range(len(tasks))]
        stages = stages or [f"{t + 1:02d}" for t in range(len(rows))]
        return cls(stages, list(tasks), cells, learned_at, list(stages), list(tasks))

    def cell(self, stage: int, task: int) -> Cell:
        """A[stage][task], 0-based."""
        return self.cells[stage][task]

    @property
    def sequential(self) -> bool:
        """Whether every task has a stage of its own, in the order of the columns: what the formulas assume."""
        return len(self.stages) == len(self.tasks) and self.learned_at == list(range(len(self.tasks)))

    @property
    def joint(self) -> bool:
        """A single stage evaluated on all tasks (zero-shot, multi-task training)."""
        return len(self.stages) == 1 and not self.sequential

    def prefix(self, n: int) -> AccuracyMatrix:
        """The matrix of the first n stages and the tasks they trained: the aggregates of a run in progress."""
        keep = [j for j, at in enumerate(self.learned_at) if at is not None and at < n]
        return AccuracyMatrix(
            self.stages[:n],
            [self.tasks[j] for j in keep],
            [[row[j] for j in keep] for row in self.cells[:n]],
            [self.learned_at[j] for j in keep],
            self.stage_titles[:n],
            [self.task_titles[j] for j in keep],
        )

    def to_json(self) -> dict:
        """A JSON-able form; empty cells are null."""
        return {
            "schema": 1,
            "stages": [{"name": n, "title": t} for n, t in zip(self.stages, self.stage_titles)],
            "tasks": [{"id": i, "title": t} for i, t in zip(self.tasks, self.task_titles)],
            "learned_at": self.learned_at,
            "cells": self.cells,
            "per_task": {"last": last_row(self), "avg": column_means(self)},
            "aggregates": aggregates(self),
        }


def _cell(value: object) -> Cell:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
        raise UserError(f"A matrix cell is {value!r}; it must be a number (percent) or empty.")
    return float(value)


# ----------------------------------------------------------------------------------------------- per task


def last_row(m: AccuracyMatrix) -> list[Cell]:
    """A[T][j] for every task j: the paper's per-task "Last" row."""
    return list(m.cells[-1]) if m.cells else [None] * len(m.tasks)


def column_means(m: AccuracyMatrix) -> list[Cell]:
    """1/(T−j+1) Σ_{t≥j} A[t][j] for every task j: the paper's per-task "Avg" row."""
    if not m.sequential:
        return [None] * len(m.tasks)
    return [mean(row[j] for row in m.cells[j:]) for j in range(len(m.tasks))]


def row_means(m: AccuracyMatrix) -> list[Cell]:
    """Mean over the tasks seen after each stage: (1/t) Σ_{j≤t} A[t][j]; over all tasks when the run is joint."""
    if m.joint:
        return [mean(row) for row in m.cells]
    seen = [[j for j, at in enumerate(m.learned_at) if at is not None and at <= t] for t in range(len(m.stages))]
    return [mean(row[j] for j in columns) for row, columns in zip(m.cells, seen)]


# ---------------------------------------------------------------------------------------------- aggregates


def last(m: AccuracyMatrix) -> Cell:
    """Last (MFN, ACC) = (1/T) Σ_j A[T][j]. Also defined for a joint run: the mean of its one row."""
    return mean(last_row(m)) if m.sequential or m.joint else None


def avg(m: AccuracyMatrix) -> Cell:
    """Avg of the HiDe paper = COLUMN mean = (1/T) Σ_j [1/(T−j+1) Σ_{t≥j} A[t][j]]. Not MAA."""
    return mean(column_means(m)) if m.sequential else None


def maa(m: AccuracyMatrix) -> Cell:
    """MAA of CoIN and MCITlib = ROW mean = (1/T) Σ_t (1/t) Σ_{j≤t} A[t][j]. Not the paper's Avg."""
    return mean(row_means(m)) if m.sequential else None


def mft(m: AccuracyMatrix) -> Cell:
    """MFT = (1/T) Σ_j A[j][j]: every task right after it was learned."""
    return mean(m.cells[j][j] for j in range(len(m.tasks))) if m.sequential else None


def bwt(m: AccuracyMatrix) -> Cell:
    """BWT (MCITlib) = 1/(T−1) Σ_{j<T} (A[T][j] − A[j][j]); None for a single task."""
    return mean(_drifts(m)[:-1]) if m.sequential else None


def bwt_coin(m: AccuracyMatrix) -> Cell:
    """BWT (CoIN) = (1/T) Σ_{j≤T} (A[T][j] − A[j][j]) = (T−1)/T × BWT (MCITlib)."""
    return mean(_drifts(m)) if m.sequential else None


def forgetting(m: AccuracyMatrix) -> Cell:
    """Forgetting = 1/(T−1) Σ_{j<T} (max_{j≤t<T} A[t][j] − A[T][j]); None for a single task."""
    if not m.sequential:
        return None
    drops: list[Cell] = []
    for j in range(len(m.tasks) - 1):
        earlier = [row[j] for row in m.cells[j:-1]]
        complete = m.cells[-1][j] is not None and all(value is not None for value in earlier)
        drops.append(max(earlier) - m.cells[-1][j] if complete else None)
    return mean(drops)


def _drifts(m: AccuracyMatrix) -> list[Cell]:
    pairs = [(m.cells[-1][j], m.cells[j][j]) for j in range(len(m.tasks))]
    return [None if now is None or then is None else now - then for now, then in pairs]


@dataclass(frozen=True)
class Aggregate:
    """A named number: unambiguous title, formula in plain text, and whether smaller is better."""

    key: str
    title: str
    formula: str
    compute: Callable[[AccuracyMatrix], Cell]
    lower_is_better: bool = False


AGGREGATES = [
    Aggregate("last", "Last", "(1/T) Σ_j A[T][j]", last),
    Aggregate("avg", "Avg (column mean)", "(1/T) Σ_j [ 1/(T−j+1) Σ_{t≥j} A[t][j] ]", avg),
    Aggregate("maa", "MAA (row mean)", "(1/T) Σ_t (1/t) Σ_{j≤t} A[t][j]", maa),
    Aggregate("mft", "MFT (when learned)", "(1/T) Σ_j A[j][j]", mft),
    Aggregate("bwt", "BWT (MCITlib)", "1/(T−1) Σ_{j<T} (A[T][j] − A[j][j])", bwt),
    Aggregate("bwt_coin", "BWT (CoIN)", "(1/T) Σ_{j≤T} (A[T][j] − A[j][j])", bwt_coin),
    Aggregate("forgetting", "Forgetting", "1/(T−1) Σ_{j<T} (max_{j≤t<T} A[t][j] − A[T][j])", forgetting, True),
]


def aggregates(m: AccuracyMatrix) -> dict[str, Cell]:
    """{key: value} of every aggregate; None where a needed cell is missing or the definition does not apply."""
    return {aggregate.key: aggregate.compute(m) for aggregate in AGGREGATES}
