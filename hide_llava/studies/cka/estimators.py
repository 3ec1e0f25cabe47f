"""Similarity of two sets of activations of the same inputs: HSIC and CKA, biased and debiased (docs/PROTOCOLS.md, Studies).

Rows of X [n, d] and Y [n, e] are examples, and row a of both must be the SAME input. With n rows, K and L the kernel
matrices and H = I − 11ᵀ/n:

    HSIC_b(K, L) = tr(K H L H)                                                                   biased (legacy)
    HSIC_u(K, L) = [tr(K̃L̃) + 1ᵀK̃1·1ᵀL̃1/((n−1)(n−2)) − 2·1ᵀK̃L̃1/(n−2)] / (n(n−3))                debiased
    CKA(K, L)    = HSIC(K, L) / sqrt(HSIC(K, K)·HSIC(L, L))

K̃ is K with a zero diagonal. The biased estimate of two unrelated sets is far above 0 when the effective dimension is
not small against n (0.99 for d = 4096, n = 50), so a map drawn with it shows dimension, not similarity. Always
read a value beside `permutation_null` and `effective_dimension`. All arithmetic is numpy float64.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hide_llava.errors import UserError

Array = NDArray[np.float64]
Kernel = str
KERNELS = ("linear", "rbf")


def activations(x: ArrayLike, name: str = "X") -> Array:
    """x as float64 [n, d]; UserError when it is no finite matrix of at least four rows (HSIC_u divides by n − 3)."""
    x = np.asarray(x, dtype=np.float64)
    if x.ndim != 2 or x.shape[0] < 4:
        raise UserError(f"{name} has shape {x.shape}; CKA needs a matrix [examples ≥ 4, features].")
    if not np.isfinite(x).all():
        row = int(np.argwhere(~np.isfinite(x))[0][0])
        raise UserError(f"{name} holds NaN or infinity (first in row {row}); recompute the activations of that input.")
    return x


def squared_distances(x: Array) -> Array:
    """‖x_a − x_b‖², with an exactly zero diagonal and no negative rounding."""
    centred = x - x.mean(axis=0)  # distances do not change, cancellation does
    norms = (centred**2).sum(axis=1)
    distances = np.maximum(norms[:, None] + norms[None, :] - 2.0 * centred @ centred.T, 0.0)
    np.fill_diagonal(distances, 0.0)
    return distances


def median_sigma2(x: Array) -> float:
    """σ² = median of the NON-ZERO entries of the squared-distance matrix; 1 when all rows are equal."""
    distances = squared_distances(x)
    nonzero = distances[distances > 0]
    return float(np.median(nonzero)) if nonzero.size else 1.0


def gram(x: Array, kernel: Kernel = "linear", sigma2: float | None = None) -> Array:
    """Kernel matrix [n, n]: linear K = XXᵀ, or RBF K_ab = exp(−‖x_a − x_b‖²/(2σ²)), σ² by the median rule."""
    if kernel == "linear":
        return x @ x.T
    if kernel == "rbf":
        return np.exp(-squared_distances(x) / (2.0 * (median_sigma2(x) if sigma2 is None else sigma2)))
    raise UserError(f"There is no kernel {kernel!r}; use one of {', '.join(KERNELS)}.")


def hsic_biased(k: Array, l: Array) -> float:
    """tr(KHLH), not normalised by n (it cancels in CKA)."""
    centre = k - k.mean(axis=0) - k.mean(axis=1)[:, None] + k.mean()
    return float((centre * l).sum())  # HKH is symmetric and H is idempotent, so one side is enough


def hsic_unbiased(k: Array, l: Array) -> float:
    """The U-statistic HSIC_u of the module's docstring; may be negative. n ≥ 4."""
    n = k.shape[0]
    k, l = k - np.diag(np.diag(k)), l - np.diag(np.diag(l))
    k_rows, l_rows = k.sum(axis=1), l.sum(axis=1)
    total = (k * l).sum() + k_rows.sum() * l_rows.sum() / ((n - 1) * (n - 2)) - 2.0 * k_rows @ l_rows / (n - 2)
    return float(total / (n * (n - 3)))


def cka_from_grams(k: Array, l: Array, debiased: bool = True) -> float:
    """HSIC(K, L)/sqrt(HSIC(K, K)·HSIC(L, L)); 0 when one set shows no variation beyond the estimator's noise."""
    hsic = hsic_unbiased if debiased else hsic_biased
    scale = hsic(k, k) * hsic(l, l)
    return hsic(k, l) / float(np.sqrt(scale)) if scale > 0 else 0.0


def cka(
    x: ArrayLike,
    y: ArrayLike,
    kernel: Kernel = "linear",
    debiased: bool = True,
    sigma2: float | str | None = None,
) -> float:
    """CKA of two activation sets whose rows are the same inputs.

    sigma2 (RBF): None for each set's own median (legacy), "shared" for the mean of the two medians used in
    both kernels, or a number. debiased=False with kernel="rbf" is the published measure.
    UserError when the row counts differ.
    """
    x, y = activations(x, "X"), activations(y, "Y")
    if x.shape[0] != y.shape[0]:
        raise UserError(f"X has {x.shape[0]} rows and Y {y.shape[0]}; CKA compares the same inputs in both sets.")
    return cka_from_grams(*_grams(x, y, kernel, sigma2), debiased)


def _grams(x: Array, y: Array, kernel: Kernel, sigma2: float | str | None) -> tuple[Array, Array]:
    if sigma2 == "shared":
        sigma2 = float(np.mean([median_sigma2(x), median_sigma2(y)]))
    elif isinstance(sigma2, str):
        raise UserError(f'sigma2 is {sigma2!r}; it may be a number, "shared" or None.')
    return gram(x, kernel, sigma2), gram(y, kernel, sigma2)


def effective_dimension(x: ArrayLike) -> float:
    """Participation ratio (Σλ)²/Σλ² of the covariance eigenvalues: 1 for a line, d for an isotropic cloud."""
    x = activations(x)
    centred = x - x.mean(axis=0)
    # The eigenvalues of XXᵀ and XᵀX agree; only traces are needed, so take the smaller product.
    product = centred @ centred.T if x.shape[0] <= x.shape[1] else centred.T @ centred
    square = float((product**2).sum())
    return float(np.trace(product)) ** 2 / square if square > 0 else 0.0


def permutation_null(
    x: ArrayLike,
    y: ArrayLike,
    kernel: Kernel = "linear",
    debiased: bool = True,
    sigma2: float | str | None = None,
    n_permutations: int = 100,
    seed: int = 0,
) -> Array:
    """CKA after permuting the rows of Y, [n_permutations]: what the estimator says about unrelated inputs."""
    return _resample(
        x, y, kernel, debiased, sigma2, n_permutations, seed, lambda rng, n: (np.arange(n), rng.permutation(n))
    )


def bootstrap_interval(
    x: ArrayLike,
    y: ArrayLike,
    kernel: Kernel = "linear",
    debiased: bool = True,
    sigma2: float | str | None = None,
    level: float = 0.95,
    n_resamples: int = 200,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval of CKA over subsamples of the examples.

    Drawing WITH replacement would put equal rows into a kernel matrix, whose off-diagonal then holds diagonal values
    and defeats the debiasing. So each resample keeps the distinct rows of a bootstrap draw (about 63 % of them), and
    the spread about the full-sample value is scaled by sqrt(m/n) to the full size n.
    """
    x, y = activations(x, "X"), activations(y, "Y")
    centre = cka(x, y, kernel, debiased, sigma2)
    n = x.shape[0]
    kept: list[int] = []

    def draw(rng: np.random.Generator, n: int) -> tuple[Array, Array]:
        rows = np.unique(rng.integers(0, n, n))
        while rows.size < 4:
            rows = np.unique(rng.integers(0, n, n))
        kept.append(rows.size)
        return rows, rows

    values = _resample(x, y, kernel, debiased, sigma2, n_resamples, seed, draw)
    # A subsample of m of n rows, drawn without replacement, has variance (1 − m/n)·n/m of the full sample's.
    m = np.asarray(kept)
    spread = (values - values.mean()) / np.sqrt((1 - m / n) * n / m)
    low, high = np.quantile(spread, [(1 - level) / 2, (1 + level) / 2])
    return float(centre + low), float(centre + high)


def _resample(
    x: ArrayLike,
    y: ArrayLike,
    kernel: Kernel,
    debiased: bool,
    sigma2: float | str | None,
    times: int,
    seed: int,
    draw: Callable[[np.random.Generator, int], tuple[Array, Array]],
) -> Array:
    """CKA of K[rows, rows] and L[columns, columns]; the kernels, and with them σ², come from the full data once."""
    x, y = activations(x, "X"), activations(y, "Y")
    if x.shape[0] != y.shape[0]:
        raise UserError(f"X has {x.shape[0]} rows and Y {y.shape[0]}; CKA compares the same inputs in both sets.")
    k, l = _grams(x, y, kernel, sigma2)
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(times):
        rows, columns = draw(rng, k.shape[0])
        values.append(cka_from_grams(k[np.ix_(rows, rows)], l[np.ix_(columns, columns)], debiased))
    return np.asarray(values)


def pairwise(
    sets: list[ArrayLike], kernel: Kernel = "linear", debiased: bool = True, sigma2: float | str | None = None
) -> Array:
    """Symmetric matrix [k, k] of CKA between all pairs of activation sets (one per task model) of one layer."""
    matrix = np.eye(len(sets))
    for i in range(len(sets)):
        for j in range(i):
            matrix[i, j] = matrix[j, i] = cka(sets[i], sets[j], kernel, debiased, sigma2)
    return matrix


def mean_off_diagonal(matrix: ArrayLike) -> float:
    """Mean of the entries above the diagonal of a symmetric matrix of at least 2×2."""
    matrix = np.asarray(matrix, dtype=np.float64)
    return float(matrix[np.triu_indices(matrix.shape[0], k=1)].mean())


def legacy_matrix(sets: list[ArrayLike]) -> Array:
    """What the published script draws per layer: biased RBF CKA, σ² per set, rounded to four decimals."""
    return np.round(pairwise(sets, kernel="rbf", debiased=False), 4)
