"""Every number computed from an accuracy matrix, each with its formula, its other names and its source, in one list.

A[t][j] is the score (percent) on task j after stage t, of T tasks learned in T stages; Z[j] the zero-shot score of task
j, M[j] the score of a model trained on all tasks at once. A number that needs a missing cell is None: never zero, never
a mean over what happens to be there. `reason` says what is missing.

Definitions and names: docs/METRICS.md, Aggregates; GEM = Lopez-Paz and Ranzato 2017 (arXiv 1706.08840); RWalk = Chaudhry et
al. 2018 (arXiv 1801.10112).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from hide_llava.errors import UserError
from hide_llava.results.matrix import AccuracyMatrix, Cell, column_means, last_row, mean, row_means


@dataclass(frozen=True)
class References:
    """Scores of other runs per task id: `zero_shot` of the untrained model, `multitask` of joint training."""

    zero_shot: dict[str, Cell] | None = None
    multitask: dict[str, Cell] | None = None


NO_REFERENCES = References()


def last(m: AccuracyMatrix) -> Cell:
    """(1/T) Σ_j A[T][j]. Also defined for a joint run: the mean of its one row."""
    return mean(last_row(m)) if m.sequential or m.joint else None


def avg(m: AccuracyMatrix) -> Cell:
    """COLUMN mean, the HiDe paper's: (1/T) Σ_j [1/(T−j+1) Σ_{t≥j} A[t][j]]. Not MAA."""
    return mean(column_means(m)) if m.sequential else None


def maa(m: AccuracyMatrix) -> Cell:
    """ROW mean, CoIN's and MCITlib's: (1/T) Σ_t (1/t) Σ_{j≤t} A[t][j]. Not the HiDe paper's Avg."""
    return mean(row_means(m)[min(m.learned_at, default=0) :]) if m.sequential else None


def mft(m: AccuracyMatrix) -> Cell:
    """(1/T) Σ_j A[j][j]: every task right after it was learned."""
    return mean(_diagonal(m)) if m.sequential else None


def bwt(m: AccuracyMatrix) -> Cell:
    """MCITlib's: 1/(T−1) Σ_{j<T} (A[T][j] − A[j][j]); None for a single task."""
    return mean(_before_the_end(m, _differences(last_row(m), _diagonal(m)))) if m.sequential else None


def bwt_coin(m: AccuracyMatrix) -> Cell:
    """CoIN's: (1/T) Σ_{j≤T} (A[T][j] − A[j][j]) = (T−1)/T × MCITlib's."""
    return mean(_differences(last_row(m), _diagonal(m))) if m.sequential else None


def forgetting(m: AccuracyMatrix) -> Cell:
    """1/(T−1) Σ_{j<T} (max_{j≤t<T} A[t][j] − A[T][j]); None for a single task."""
    if not m.sequential:
        return None
    drops: list[Cell] = []
    for j, at in enumerate(m.learned_at):
        earlier = [row[j] for row in m.cells[at:-1]]
        complete = m.cells[-1][j] is not None and all(value is not None for value in earlier)
        drops.append(max(earlier) - m.cells[-1][j] if complete and earlier else None)
    return mean(_before_the_end(m, drops))


def fwt(m: AccuracyMatrix, references: References) -> Cell:
    """GEM's: 1/(T−1) Σ_{j>1} (A[j−1][j] − Z[j]): what earlier tasks give a task that was not yet learned.

    GEM's baseline is a network at random initialisation; a pretrained model has its zero-shot score instead. The cells
    A[j−1][j] lie above the diagonal, where the benchmarks' protocol asks nothing: without them this stays empty.
    """
    if not m.sequential or references.zero_shot is None:
        return None
    later = [(j, at) for j, at in enumerate(m.learned_at) if at]
    ahead = [m.cells[at - 1][j] for j, at in later]
    known = _of(references.zero_shot, m)
    return mean(_differences(ahead, [known[j] for j, _ in later]))


def learning_gain(m: AccuracyMatrix, references: References) -> Cell:
    """(1/T) Σ_j (A[j][j] − Z[j]): what learning a task in its turn adds to the untrained model."""
    if not m.sequential or references.zero_shot is None:
        return None
    return mean(_differences(_diagonal(m), _of(references.zero_shot, m)))


def intransigence(m: AccuracyMatrix, references: References) -> Cell:
    """RWalk's: (1/T) Σ_j (M[j] − A[j][j]): what joint training reaches and learning in turn does not.

    RWalk's reference for task j is trained on tasks 1…j; here it is the one multi-task run on all T.
    """
    if not m.sequential or references.multitask is None:
        return None
    return mean(_differences(_of(references.multitask, m), _diagonal(m)))


def _diagonal(m: AccuracyMatrix) -> list[Cell]:
    return [m.cells[at][j] for j, at in enumerate(m.learned_at)]


def _before_the_end(m: AccuracyMatrix, values: list[Cell]) -> list[Cell]:
    """Those of tasks that are not learned in the last stage, after which nothing can be forgotten."""
    return [value for value, at in zip(values, m.learned_at) if at < len(m.stages) - 1]


def _of(scores: dict[str, Cell], m: AccuracyMatrix) -> list[Cell]:
    return [scores.get(task) for task in m.tasks]


def _differences(left: list[Cell], right: list[Cell]) -> list[Cell]:
    return [None if a is None or b is None else a - b for a, b in zip(left, right)]


@dataclass(frozen=True)
class Aggregate:
    """A named number: unambiguous title, formula in plain text, its names in the field, what else it needs."""

    key: str
    title: str
    formula: str
    compute: Callable[..., Cell]
    aliases: tuple[str, ...] = ()
    lower_is_better: bool = False
    needs: str = ""  # "zero_shot" or "multitask": the run that must be given

    def of(self, m: AccuracyMatrix, references: References = NO_REFERENCES) -> Cell:
        """Its value for this matrix; None where a needed cell is missing or the definition does not apply."""
        return self.compute(m, references) if self.needs else self.compute(m)


AGGREGATES = [
    Aggregate("last", "Last", "(1/T) Σ_j A[T][j]", last, ("MFN", "AP", "ACC")),
    Aggregate("avg", "Avg (column mean)", "(1/T) Σ_j [ 1/(T−j+1) Σ_{t≥j} A[t][j] ]", avg),
    Aggregate("maa", "MAA (row mean)", "(1/T) Σ_t (1/t) Σ_{j≤t} A[t][j]", maa, ("MAP",)),
    Aggregate("mft", "MFT (when learned)", "(1/T) Σ_j A[j][j]", mft),
    Aggregate("bwt", "BWT (MCITlib)", "1/(T−1) Σ_{j<T} (A[T][j] − A[j][j])", bwt),
    Aggregate("bwt_coin", "BWT (CoIN)", "(1/T) Σ_{j≤T} (A[T][j] − A[j][j])", bwt_coin),
    Aggregate("forgetting", "Forgetting", "1/(T−1) Σ_{j<T} (max_{j≤t<T} A[t][j] − A[T][j])", forgetting, (), True),
    Aggregate("fwt", "FWT (GEM)", "1/(T−1) Σ_{j>1} (A[j−1][j] − Z[j])", fwt, (), False, "zero_shot"),
    Aggregate("learning_gain", "Learning gain", "(1/T) Σ_j (A[j][j] − Z[j])", learning_gain, (), False, "zero_shot"),
    Aggregate("intransigence", "Intransigence", "(1/T) Σ_j (M[j] − A[j][j])", intransigence, (), True, "multitask"),
]


def by_name(name: str) -> Aggregate:
    """The aggregate of that key, title or other name of the field (MFN, AP, MAP, …); UserError when there is none."""
    wanted = name.casefold()
    for aggregate in AGGREGATES:
        if wanted in {known.casefold() for known in (aggregate.key, aggregate.title, *aggregate.aliases)}:
            return aggregate
    known = ", ".join([a.key for a in AGGREGATES] + [alias for a in AGGREGATES for alias in a.aliases])
    raise UserError(f"There is no aggregate {name!r}; known names: {known}.")


def aggregates(m: AccuracyMatrix, references: References = NO_REFERENCES) -> dict[str, Cell]:
    """{key: value} of every aggregate; None where a needed cell is missing or the definition does not apply."""
    return {aggregate.key: aggregate.of(m, references) for aggregate in AGGREGATES}


def reason(aggregate: Aggregate, m: AccuracyMatrix, references: References = NO_REFERENCES) -> str:
    """Why the aggregate has no value for this matrix; "" when it has one."""
    if aggregate.of(m, references) is not None:
        return ""
    if not m.stages:
        return "no stage is evaluated"
    if m.joint and aggregate.key != "last":
        return "a run with one stage has no sequence"
    if not m.sequential and not m.joint:
        return "not every task has a stage of its own"
    if len(m.tasks) < 2 and aggregate.key in ("bwt", "forgetting", "fwt"):
        return "there is a single task"
    if aggregate.needs and getattr(references, aggregate.needs) is None:
        return f"needs a {aggregate.needs} run"
    if aggregate.of(_filled(m, None), references) is None:  # not for want of a cell of this run
        return f"the {aggregate.needs} run has no score of some task" if aggregate.needs else "no stage is evaluated"
    holes = [(t, j) for t, row in enumerate(m.cells) for j, value in enumerate(row) if value is None]
    needed = [hole for hole in holes if aggregate.of(_filled(m, hole), references) is None]
    t, j = needed[0]
    return f"{len(needed)} cell{'s' * (len(needed) > 1)} missing, first {m.task_titles[j]} after {m.stage_titles[t]}"


def _filled(m: AccuracyMatrix, hole: tuple[int, int] | None) -> AccuracyMatrix:
    """The matrix with a zero in every hole but this one: to ask whether a number needs it, never to compute one."""
    cells = [
        [0.0 if value is None and (t, j) != hole else value for j, value in enumerate(row)]
        for t, row in enumerate(m.cells)
    ]
    return dataclasses.replace(m, cells=cells)


def to_json(m: AccuracyMatrix) -> dict:
    """The matrix and everything computed from it; empty cells are null."""
    return {
        "schema": 1,
        "stages": [{"name": n, "title": t} for n, t in zip(m.stages, m.stage_titles)],
        "tasks": [{"id": i, "title": t} for i, t in zip(m.tasks, m.task_titles)],
        "learned_at": m.learned_at,
        "cells": m.cells,
        "per_task": {"last": last_row(m), "avg": column_means(m)},
        "aggregates": aggregates(m),
        "missing": {a.key: reason(a, m) for a in AGGREGATES if reason(a, m)},
    }
