"""What is counted of routed answers: confusion, right answers by right routing, and whether weights mean what they say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from hide_llava.studies.router.answers import Answers, Routed

BINS = 10


@dataclass
class Confusion:
    """experts: names. counts, weights [tasks][experts]: how often an expert had the most weight, and its mean weight."""

    tasks: list[str]
    experts: list[str]
    counts: list[list[int]]
    weights: list[list[float]]


def confusion(answers: Answers, order: Iterable[str] = ()) -> Confusion:
    """True task × expert. order: experts that come first, in their order; an expert that an answer does not name has weight 0."""
    named = dict.fromkeys(expert for rows in answers.values() for row in rows for expert in row.weights)
    experts = [*(e for e in order if e in named), *(e for e in named if e not in set(order))]
    counts, weights = [], []
    for rows in answers.values():
        tops = Counter(row.top for row in rows)
        counts.append([tops[expert] for expert in experts])
        weights.append([fmean(row.weights.get(expert, 0.0) for row in rows) for expert in experts])
    return Confusion(list(answers), experts, counts, weights)


@dataclass
class Agreement:
    """Shares 0…1 over the answers that have what they need; None where there are none.

    routed: routed right. answered: answered right. if_right, if_wrong: answered right, of those routed right or wrong.
    strict: routed right and answered right.
    """

    questions: int
    routed: float | None
    answered: float | None
    if_right: float | None
    if_wrong: float | None
    strict: float | None
    routed_wrong: int


def agreement(rows: list[Routed]) -> Agreement:
    """Of one task's answers, or of all."""
    placed = [row for row in rows if row.right is not None]
    both = [row for row in placed if row.answered is not None]
    return Agreement(
        len(rows),
        share(row.right for row in placed),
        share(row.answered for row in rows if row.answered is not None),
        share(row.answered for row in both if row.right),
        share(row.answered for row in both if not row.right),
        share(row.right and row.answered for row in both),
        sum(not row.right for row in placed),
    )


def share(values: Iterable[bool]) -> float | None:
    found = list(values)
    return fmean(map(float, found)) if found else None


@dataclass
class Calibration:
    """bins: (mean weight of the top expert, share routed right, answers) of those that hold answers. hard: every answer has
    all of its weight on one expert, so that the weights say nothing.

    error: the expected calibration error Σ_b n_b / n · |right_b − weight_b| (Guo et al. 2017, arXiv 1706.04599, eq. 3).
    """

    bins: list[tuple[float, float, int]]
    error: float
    mean_weight: float
    hard: bool


def calibration(rows: list[Routed], bins: int = BINS) -> Calibration | None:
    """Of the answers whose task has an expert; None without any."""
    placed = [row for row in rows if row.right is not None]
    if not placed:
        return None
    weights = np.array([row.weights[row.top] / max(1.0, sum(row.weights.values())) for row in placed])
    right = np.array([float(row.right) for row in placed])
    places = np.minimum((weights * bins).astype(int), bins - 1)
    found = [(float(weights[places == b].mean()), float(right[places == b].mean()), int((places == b).sum()))
             for b in range(bins) if (places == b).any()]  # fmt: skip
    error = sum(count * abs(accuracy - weight) for weight, accuracy, count in found) / len(placed)
    return Calibration(found, error, float(weights.mean()), bool((weights > 1 - 1e-6).all()))
