"""How far two orders of the same methods agree: rank correlations, a permutation test and a bootstrap interval.

Both coefficients come from the signs of all differences, s_ij = sign(x_i − x_j), as Daniels wrote them down (Biometrika 33,
1944): Kendall's tau-b is the cosine of the two sign matrices; the sum of a row is twice a rank's distance from the mean
rank, so that Spearman's rho is the cosine of the row sums. Ties need no rule of their own in either. pandas leaves Kendall's
to scipy, which is no dependency, and neither takes thousands of orders at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from hide_llava.results.bootstrap import RESAMPLES, SEED, Interval, percentiles

Array = NDArray[np.float64]
FEWEST = 4  # methods; of three, any order is one of six
DISTINCT = 3  # methods that a resample needs; two can only agree or disagree
EXACT = 50_000  # orders that are all looked at: up to eight methods
SAMPLED = 10_000
SAME = 1e-9  # scores and coefficients that differ by less are tied: what is left of adding them up in another order


@dataclass(frozen=True)
class Coefficient:
    """value −1…1; p: two-sided; interval: None where no resample had what it needs."""

    value: float
    p: float
    interval: Interval | None


@dataclass(frozen=True)
class Correlation:
    """Of two lists of scores of the same n methods. orders: how many the p-values are from, all there are if exact.

    resamples: how many the intervals are from; dropped: how many had fewer than three distinct methods, or all scores tied.
    """

    n: int
    rho: Coefficient
    tau: Coefficient
    orders: int
    exact: bool
    resamples: int
    dropped: int


def signs(scores: Array) -> Array:
    """[…, n] → […, n, n]: 1 where the row's score is higher, −1 where the column's is, 0 where they are tied."""
    differences = scores[..., :, None] - scores[..., None, :]
    return np.sign(np.where(np.abs(differences) < SAME, 0.0, differences))


def coefficients(x: Array, y: Array) -> tuple[Array, Array]:
    """(rho, tau-b) […] of scores […, n] and […, n]; NaN where all scores of one side are tied."""
    a, b = signs(x), signs(y)
    tau = _cosine(a.reshape(*a.shape[:-2], -1), b.reshape(*b.shape[:-2], -1))
    return _cosine(a.sum(-1), b.sum(-1)), tau


def _cosine(a: Array, b: Array) -> Array:
    with np.errstate(invalid="ignore"):
        return (a * b).sum(-1) / np.sqrt((a * a).sum(-1) * (b * b).sum(-1))


def correlate(theirs: Array, ours: list[Array], resamples: int = RESAMPLES, seed: int = SEED) -> Correlation | None:
    """Published scores [n] against our scores of each method, one per run; the mean over its runs counts.

    None where all scores of one side are tied, so that there is no order.

    Raises:
        ValueError: fewer than four methods, a method without a run, or lists of different length.
    """
    theirs = np.asarray(theirs, dtype=np.float64)
    if len(theirs) != len(ours) or len(ours) < FEWEST or any(not len(one) for one in ours):
        raise ValueError(f"needs the scores of at least {FEWEST} methods from both sides")
    means = np.array([np.mean(one) for one in ours])
    values = [float(value) for value in coefficients(theirs, means)]
    if any(math.isnan(value) for value in values):
        return None
    ps, orders, exact = permutation_test(theirs, means, seed)
    rhos, taus, dropped = resampled(theirs, ours, resamples, seed)
    rho, tau = (Coefficient(value, p, percentiles(found) if len(found) else None)
                for value, p, found in zip(values, ps, (rhos, taus)))  # fmt: skip
    return Correlation(len(ours), rho, tau, orders, exact, len(rhos), dropped)


def permutation_test(x: Array, y: Array, seed: int = SEED) -> tuple[tuple[float, float], int, bool]:
    """((p of rho, p of tau-b), orders, whether these are all that there are).

    Two-sided: the share of orders of y whose coefficient is at least as far from zero, the given order among them. Up to eight
    methods all n! orders are looked at; of more, 10,000 drawn ones, where p = (k + 1) / (10,000 + 1), which is never zero
    (Phipson and Smyth 2010, Stat. Appl. Genet. Mol. Biol. 9).
    """
    n = len(y)
    exact = math.factorial(n) <= EXACT
    if exact:
        orders = np.array(list(permutations(range(n))))
    else:
        orders = np.random.default_rng(seed).permuted(np.tile(np.arange(n), (SAMPLED, 1)), axis=1)
    given = coefficients(x, y)
    far = [int((np.abs(found) >= abs(value) - SAME).sum()) for found, value in zip(coefficients(x, y[orders]), given)]
    rho, tau = (k / len(orders) if exact else (k + 1) / (len(orders) + 1) for k in far)
    return (rho, tau), len(orders), exact


def resampled(theirs: Array, ours: list[Array], resamples: int, seed: int) -> tuple[Array, Array, int]:
    """(rhos, taus, how many were dropped): n methods drawn with replacement, and for each draw as many of its runs as it has.

    A two-stage bootstrap: methods, then the seeds of each. A resample of fewer than three distinct methods, or of tied
    scores alone, has no coefficient worth the name and is dropped.
    """
    generator, n = np.random.default_rng(seed), len(ours)
    drawn = generator.integers(n, size=(resamples, n))
    means = np.stack([
        np.asarray(one)[generator.integers(len(one), size=(resamples, n, len(one)))].mean(-1) for one in ours
    ])  # fmt: skip
    scores = means[drawn, np.arange(resamples)[:, None], np.arange(n)]
    rhos, taus = coefficients(theirs[drawn], scores)
    distinct = 1 + (np.diff(np.sort(drawn, axis=1), axis=1) > 0).sum(axis=1)
    usable = (distinct >= DISTINCT) & ~np.isnan(rhos)
    return rhos[usable], taus[usable], int((~usable).sum())
