"""How far a score could be chance: percentile bootstrap over questions, of one run and of two runs on the same ones.

Drawing n questions with replacement gives a multinomial count for each distinct verdict, so the resampled means are
counts · values / n: the exact bootstrap distribution without ever drawing an index (Efron and Tibshirani 1993, §13.3).
The questions are the only thing resampled: nothing here says how far another seed of the training would land.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hide_llava.metrics import METRICS

RESAMPLES = 2_000
SEED = 0
DRAWS = 20_000_000  # counts held at once: 160 MB
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A percentile interval, in the unit of what was resampled: percent for scores."""

    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """Score minus baseline on the same questions (percent), its interval, and a two-sided bootstrap p-value."""

    value: float
    interval: Interval
    p: float
    questions: int


def resampled_means(values: np.ndarray, resamples: int = RESAMPLES, seed: int = SEED) -> np.ndarray:
    """[n] → [resamples]: means of `resamples` samples of n values drawn with replacement. ValueError when n = 0."""
    distinct, counts = np.unique(np.asarray(values, dtype=np.float64), return_counts=True)
    if not counts.size:
        raise ValueError("there is nothing to resample")
    n, generator = counts.sum(), np.random.default_rng(seed)
    rows = max(1, DRAWS // len(distinct))
    parts = [
        generator.multinomial(n, counts / n, size=min(rows, resamples - start)) @ distinct
        for start in range(0, resamples, rows)
    ]
    return np.concatenate(parts) / n


def interval(values: np.ndarray, resamples: int = RESAMPLES, seed: int = SEED) -> Interval:
    """95 % percentile interval of 100 × mean(values), values in 0…1."""
    return percentiles(100 * resampled_means(values, resamples, seed))


def paired(
    ours: dict[str, float], theirs: dict[str, float], resamples: int = RESAMPLES, seed: int = SEED
) -> Difference:
    """Verdicts {question id: 0…1} of two runs on the SAME questions: 100 × (mean(ours) − mean(theirs)).

    p = 2 (min(#{d* ≤ 0}, #{d* ≥ 0}) + 1) / (resamples + 1), at most 1: the level at which the percentile interval would
    just touch zero. ValueError when the questions differ.
    """
    if ours.keys() != theirs.keys():
        raise ValueError("the two runs answered different questions")
    differences = np.array([ours[question] - theirs[question] for question in sorted(ours)])
    means = resampled_means(differences, resamples, seed)
    tail = min(int((means <= 0).sum()), int((means >= 0).sum()))
    p = min(1.0, 2 * (tail + 1) / (resamples + 1))
    return Difference(100 * float(differences.mean()), percentiles(100 * means), p, len(differences))


def percentiles(values: np.ndarray) -> Interval:
    """The interval that holds the middle 95 % of resampled values, in their unit."""
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high))


def usable_verdicts(score: dict) -> tuple[dict[str, float] | None, str]:
    """(verdicts of a score.json whose mean IS its headline score, "" ) or (None, why there is no interval).

    The metric says whether its headline is a mean over questions at all; equal numbers alone may be a coincidence.
    """
    verdicts, metric = score.get("verdicts"), METRICS.get(score.get("metric"))
    if not verdicts:
        return None, "no per-question verdicts are stored"
    averages = metric.averages if metric else ("legacy", "clean")
    mean = 100 * sum(verdicts.values()) / len(verdicts)

    def is_mean(value: float | None) -> bool:
        return value is not None and abs(mean - value) <= 1e-6 * max(1.0, abs(mean))

    if score.get("headline", "legacy") in averages and is_mean(score["score"]):
        return verdicts, ""
    if "clean" in averages and is_mean((score.get("clean") or {}).get("score")):
        return None, "the verdicts average to the clean score, the headline is the legacy one"
    return None, "the score is not the mean of per-question verdicts"
