"""What is measured of low-rank updates, without forming one of them: all of it needs only products of their factors.

An update is Δ = B A with A [r, d_in] and B [d_out, r] (the scale is in B), so that ⟨Δ_i, Δ_j⟩ = Σ (B_iᵀ B_j) ⊙ (A_i A_jᵀ).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
LowRank = tuple[Array, Array]
TINY = 1e-10  # singular values below this share of the largest are rounding


def products(updates: list[LowRank]) -> Array:
    """[T, T]: inner products of all pairs; the diagonal holds the squared Frobenius norms."""
    return np.array([[float(np.sum((b.T @ d) * (a @ c.T))) for c, d in updates] for a, b in updates])


def spaces(update: LowRank) -> LowRank:
    """Orthonormal bases U [d_out, k] of Δ's columns and V [d_in, k] of its rows; k is Δ's rank, 0 for an update of zero."""
    a, b = update
    (q_b, r_b), (q_a, r_a) = np.linalg.qr(b), np.linalg.qr(a.T)
    left, values, right = np.linalg.svd(r_b @ r_a.T)
    rank = int((values > TINY * values[0]).sum()) if values.size and values[0] > 0 else 0
    return q_b @ left[:, :rank], q_a @ right[:rank].T


def mean_cosine(u: Array, v: Array) -> float | None:
    """Mean cosine of the principal angles between the spaces that two orthonormal bases span (Björck and Golub 1973).

    The smaller space decides how many angles there are. None where one of them is empty.
    """
    if not u.shape[1] or not v.shape[1]:
        return None
    return float(np.clip(np.linalg.svd(u.T @ v, compute_uv=False), 0.0, 1.0).mean())


def by_chance(u: Array, v: Array) -> float | None:
    """√(max(k_u, k_v) / d): the root mean square cosine between random spaces of these sizes, which their mean is just below."""
    if not u.shape[1] or not v.shape[1]:
        return None
    return float(np.sqrt(max(u.shape[1], v.shape[1]) / u.shape[0]))


def cross_share(experts: list[LowRank]) -> float | None:
    """‖C‖² / (‖C‖² + ‖D‖²) of the fusion of factors F = (Σ B_i)(Σ A_i) = D + C, where D = Σ B_i A_i is what the experts say
    together and C = Σ_{i≠j} B_i A_j are terms that no expert learned.

    1 − 1/T for T experts of equal size whose factors have nothing to do with each other. None for fewer than two, and for
    experts of different rank, whose factors cannot be added.
    """
    if len(experts) < 2 or len({len(a) for a, _ in experts}) > 1:
        return None
    fused = (np.sum([a for a, _ in experts], axis=0), np.sum([b for _, b in experts], axis=0))
    stacked = (np.concatenate([a for a, _ in experts]), np.concatenate([b for _, b in experts], axis=1))
    cross = (np.concatenate([fused[0], stacked[0]]), np.concatenate([fused[1], -stacked[1]], axis=1))
    c, d = float(products([cross])[0, 0]), float(products([stacked])[0, 0])
    return c / (c + d) if c + d > 0 else None


def sum_ratio(products_of_all: Array) -> float | None:
    """‖Σ Δ_i‖ / Σ ‖Δ_i‖: 1 where all updates point the same way, 1/√T where T of equal size are at right angles."""
    norms = np.sqrt(np.diag(products_of_all))
    return float(np.sqrt(max(products_of_all.sum(), 0.0)) / norms.sum()) if len(norms) > 1 and norms.sum() > 0 else None
