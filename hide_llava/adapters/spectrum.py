"""The principal directions of a stream of vectors, without ever forming the d×d covariance."""

from __future__ import annotations

import torch
from torch import Tensor


class Spectrum:
    """The leading eigenpairs of C = mean of x xᵀ over all vectors seen so far (uncentred; SAME, arXiv 2602.01990).

    basis: V [d, K] fp32 with orthonormal columns, values: Σ [K] fp32, largest first, count: α, the vectors seen,
    energy: the trace of C, which the cut directions are part of. Adding n vectors replaces (V, Σ) by the eigenpairs of
    (α V Σ Vᵀ + Σ_j x_j x_jᵀ) / (α + n), cut to `components`: exact while no more than `components` directions were ever
    met, too small after that. d×(K + n) numbers at a time. Directions that are not there (fewer independent vectors than
    K) are zero columns with value 0.
    """

    def __init__(self, components: int):
        self.components, self.count, self.energy = components, 0.0, 0.0
        self.basis, self.values = torch.zeros(0, 0), torch.zeros(0)

    def add(self, x: Tensor, weight: float = 1.0) -> None:
        """Take in x [n, d], each row as if it had come `weight` times."""
        add_all([self], [x], weight)

    def _columns(self, x: Tensor, weight: float) -> Tensor:
        """[d, K + n] fp64, whose Gram matrix has the eigenvalues of (α V Σ Vᵀ + Σ_j x_j x_jᵀ)."""
        columns = x.detach().double().T * weight**0.5
        if self.count:
            columns = torch.cat([self.basis.double() * (self.values.double() * self.count).sqrt(), columns], 1)
        return columns

    def _take(self, columns: Tensor, squares: Tensor, vectors: Tensor, weight: float, added: float) -> None:
        before = self.count * self.energy
        squares, vectors = squares.flip(0)[: self.components], vectors.flip(1)[:, : self.components]
        squares = torch.where(squares > 1e-10 * squares[0], squares, 0.0)
        self.count += weight
        self.energy = (before + added) / self.count
        self.basis = (columns @ vectors * torch.where(squares > 0, squares.rsqrt(), 0.0)).float()
        self.values = (squares / self.count).float()


def add_all(spectra: list[Spectrum], rows: list[Tensor], weight: float = 1.0) -> None:
    """`add` to many spectra: one batch of eigenproblems where they have the same size, and one wait for the device."""
    columns = [spectrum._columns(x, weight) for spectrum, x in zip(spectra, rows)]
    added = torch.stack([weight * x.detach().double().square().sum() for x in rows]).tolist()
    of_size: dict[int, list[int]] = {}
    for i, part in enumerate(columns):
        of_size.setdefault(part.shape[1], []).append(i)
    for places in of_size.values():
        squares, vectors = torch.linalg.eigh(torch.stack([columns[i].T @ columns[i] for i in places]))
        for i, values, basis in zip(places, squares, vectors):
            spectra[i]._take(columns[i], values, basis, weight * len(rows[i]), added[i])


def leading(values: Tensor, share: float, energy: float | None = None) -> int:
    """How many leading directions it takes to pass the share of `energy` (None: of Σ values), or all there are."""
    passed = values.cumsum(0) / (values.sum() if energy is None else energy)
    return min(int((passed <= share).sum()) + 1, int((values > 0).sum()))
