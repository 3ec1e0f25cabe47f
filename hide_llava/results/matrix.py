"""The accuracy matrix of a run: its cells, and their means by row and by column (docs/METRICS.md, Aggregates).

A[t][j] is the score (percent) on task j of the checkpoint after stage t. A cell that was not evaluated is None, and a
mean that needs a missing cell is None: never zero, never a mean over what happens to be there.

Notation below: T tasks learned in T stages, task j learned at stage j, indices from 1.
"""

from __future__ import annotations

from collections.abc import Iterable
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
    selected: bool = False  # whether columns were left out on purpose, while the stages of their tasks stay

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
        """Whether every task has a stage of its own, in the order of the columns: what the formulas assume.

        Where columns were selected, the stages of the tasks that were left out stay and count as stages.
        """
        if self.selected:
            own = [at for at in self.learned_at if at is not None]
            return len(self.stages) > 1 and len(own) == len(self.tasks) > 0 and own == sorted(set(own))
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
            self.selected,
        )


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
    return [mean(row[j] for row in m.cells[at:]) for j, at in enumerate(m.learned_at)]


def row_means(m: AccuracyMatrix) -> list[Cell]:
    """Mean over the tasks seen after each stage: (1/t) Σ_{j≤t} A[t][j]; over all tasks when the run is joint."""
    if m.joint:
        return [mean(row) for row in m.cells]
    seen = [[j for j, at in enumerate(m.learned_at) if at is not None and at <= t] for t in range(len(m.stages))]
    return [mean(row[j] for j in columns) for row, columns in zip(m.cells, seen)]
