"""The principal directions of a stream of vectors, without ever forming the d×d covariance."""

from __future__ import annotations

import torch
from torch import Tensor


class Spectrum:
    """The leading eigenpairs of C = mean of x xᵀ over all vectors seen so far (uncentred, methods.md §3.18).

    basis: V [d, K] fp32 with orthonormal columns, values: Σ [K] fp32, largest first, count: α, the vectors seen.
    Adding n vectors replaces (V, Σ) by the eigenpairs of (α V Σ Vᵀ + Σ_j x_j x_jᵀ) / (α + n), cut to `components`:
    exact while no more than `components` directions were ever met. d×(K + n) numbers at a time. Directions that are not
    there (fewer independent vectors than K) are zero columns with value 0.
    """

    def __init__(self, components: int):
        self.components, self.count = components, 0
        self.basis, self.values = torch.zeros(0, 0), torch.zeros(0)

    def add(self, x: Tensor) -> None:
        """Take in x [n, d]."""
        columns = x.detach().double().T
        if self.count:
            columns = torch.cat([self.basis.double() * (self.values.double() * self.count).sqrt(), columns], 1)
        squares, vectors = torch.linalg.eigh(columns.T @ columns)  # the Gram matrix has the covariance's eigenvalues
        squares, vectors = squares.flip(0)[: self.components], vectors.flip(1)[:, : self.components]
        squares = torch.where(squares > 1e-10 * squares[0], squares, 0.0)
        self.count += len(x)
        self.basis = (columns @ vectors * torch.where(squares > 0, squares.rsqrt(), 0.0)).float()
        self.values = (squares / self.count).float()


def leading(values: Tensor, energy: float) -> int:
    """How many leading directions it takes to pass the share `energy` of Σ values (the published code's count)."""
    share = values.cumsum(0) / values.sum()
    return min(int((share <= energy).sum()) + 1, int((values > 0).sum()))
