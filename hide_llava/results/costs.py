"""What a row of a comparison cost: parameters trained in one task, time of training and of an answer.

Times are what the manifest recorded (`train_seconds`, `eval_seconds` of each stage, wall time). A run that was
interrupted has none, and times are only comparable on one machine with one load.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from hide_llava.results.grouping import Row, Stat, Table, stat
from hide_llava.results.tables import number

BASELINE = "lora"  # times are shown as multiples of this method's


@dataclass(frozen=True)
class RowCost:
    """Of one row: trained parameters (mean over the stages), seconds of training all tasks, milliseconds of an answer
    (scoring included), and both against the baseline."""

    trainable: float | None
    train: Stat | None
    answer: Stat | None
    train_ratio: float | None = None
    answer_ratio: float | None = None


def costs(table: Table) -> list[RowCost]:
    """One per row. Ratios are to the only `lora` row of the table, if there is one."""
    found = [_cost(row) for row in table.rows]
    of_baseline = [c for c, row in zip(found, table.rows) if row.runs[0].manifest.get("method") == BASELINE]
    base = of_baseline[0] if len(of_baseline) == 1 else RowCost(None, None, None)
    return [
        RowCost(c.trainable, c.train, c.answer, _ratio(c.train, base.train), _ratio(c.answer, base.answer))
        for c in found
    ]


def _cost(row: Row) -> RowCost:
    stages = [run.manifest["stages"] for run in row.finished]
    sizes = [s["trainable"] for entries in stages for s in entries if s.get("trainable") is not None]
    answers = [
        sum(cell.data.get("n_scored") or 0 for cell in [*r.cells.values(), *r.general.values()]) for r in row.finished
    ]
    training, evaluation = _seconds(stages, "train_seconds"), _seconds(stages, "eval_seconds")
    per_answer = [1000 * s / n for s, n in zip(evaluation, answers) if s is not None and n]
    return RowCost(fmean(sizes) if sizes else None, stat([s for s in training if s is not None]), stat(per_answer))


def _seconds(runs: list[list[dict[str, Any]]], key: str) -> list[float | None]:
    """Of each run over all stages; None when a stage has none."""
    whole = [[s.get(key) for s in stages] for stages in runs]
    return [None if None in values else sum(values) for values in whole]


def _ratio(value: Stat | None, base: Stat | None) -> float | None:
    return value.mean / base.mean if value and base and base.mean else None


def _whole(value: Stat | None) -> str:
    return "" if value is None else number(value.mean, 0)


COLUMNS: tuple[tuple[str, Callable[[RowCost], str]], ...] = (
    ("Trained in one task", lambda c: "" if c.trainable is None else f"{c.trainable:,.0f}"),
    ("Training, s", lambda c: _whole(c.train)),
    (f"Training ÷ {BASELINE}", lambda c: number(c.train_ratio)),
    ("ms per answer", lambda c: _whole(c.answer)),
    (f"Answer ÷ {BASELINE}", lambda c: number(c.answer_ratio)),
)
NOTE = (
    "Parameters trained in a task (mean over the tasks), wall time of training all tasks, and of one answer with its "
    "scoring, on the machine of the runs. An interrupted run has no time."
)


def cost_table(table: Table) -> tuple[list[str], list[list[str]]]:
    """(titles, one list of texts per row) without the columns that no row fills; ([], …) when nothing is known."""
    found = costs(table)
    columns = [(title, [show(cost) for cost in found]) for title, show in COLUMNS]
    columns = [(title, values) for title, values in columns if any(values)]
    return [title for title, _ in columns], [[values[k] for _, values in columns] for k in range(len(found))]
