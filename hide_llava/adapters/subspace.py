"""The subspace of a linear's inputs that its weight and the earlier tasks use, and what of a new task lies outside of it.

A basis is M [d, k] in fp32 with orthonormal columns. Principal directions are the left singular vectors of a matrix [d, n]; they
are found as eigenvectors of its smaller Gram matrix in fp64, and each has the sign that makes its largest entry positive, so
that they are the same on every machine up to rounding. Used by KeepLoRA (arXiv 2601.19659) and EBLoRA (arXiv 2602.00722).
"""

from __future__ import annotations

import torch
from torch import Tensor

from hide_llava.precision import full_precision

NOTHING = 1e-10  # of the energy: a direction with less is rounding


def principal(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Left singular vectors [d, min(d, n)] fp64 of `matrix` [d, n], and the squares of the singular values, largest first.

    Directions that the matrix does not have are zero columns.
    """
    matrix = matrix.double()
    wide = matrix.shape[1] >= matrix.shape[0]
    squares, vectors = torch.linalg.eigh(matrix @ matrix.T if wide else matrix.T @ matrix)
    squares, vectors = squares.flip(0).clamp(min=0), vectors.flip(1)
    squares = torch.where(squares > NOTHING * squares[:1], squares, 0.0)
    if not wide:
        vectors = matrix @ vectors * torch.where(squares > 0, squares.rsqrt(), 0.0)
    return signed(torch.where(squares > 0, vectors, 0.0)), squares


def signed(vectors: Tensor) -> Tensor:
    """[d, k] with the sign of each column that makes its largest entry positive."""
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    return torch.where(largest < 0, -vectors, vectors)


def of_weight(weight: Tensor, energy: float) -> Tensor:
    """M [d_in, k]: the leading input directions of a weight [d_out, d_in] that together hold less than the share `energy` of
    its squared singular values, and at least one (KeepLoRA: the principal subspace of the pre-trained model)."""
    vectors, squares = principal(weight.T)
    k = max(1, int((squares.cumsum(0) / squares.sum() < energy).sum()))
    return vectors[:, :k].float()


def outside(matrix: Tensor, basis: Tensor) -> Tensor:
    """`matrix` [d, n] without its part inside the span of `basis` [d, k]: (I − M Mᵀ) X, in the dtype of `matrix`.

    Without TF32, of which a part of a thousandth would be left inside.
    """
    basis = basis.to(matrix)
    with full_precision():
        return matrix - basis @ (basis.T @ matrix)


def leading(matrix: Tensor, rank: int, seed: int | None = None) -> tuple[Tensor, Tensor]:
    """U [d, rank] and V [n, rank] in fp32: the leading singular vectors of `matrix` [d, n].

    seed: of the random projection by which upstream's `torch.svd_lowrank` finds them approximately, as the published code has
    it; None: exactly. Directions that are not there are zero columns.
    """
    matrix = matrix.float()
    if seed is None:
        vectors, squares = principal(matrix)
        left = vectors[:, :rank]
        inverse = torch.where(squares > 0, squares.rsqrt(), 0.0)[: left.shape[1]]
        right = matrix.double().T @ left * inverse
    else:
        with torch.random.fork_rng([matrix.device] if matrix.is_cuda else []):
            torch.manual_seed(seed)
            left, values, right = torch.svd_lowrank(matrix, q=min(rank, *matrix.shape))
        there = values.square() > NOTHING * values[:1].square()
        fixed = torch.where(there, signed(left), 0.0)
        right, left = right * (fixed * left).sum(0), fixed  # +1 or −1 for a pair of directions, 0 where there is none
    return _padded(left, rank), _padded(right, rank)


def _padded(vectors: Tensor, rank: int) -> Tensor:
    return torch.nn.functional.pad(vectors, (0, rank - vectors.shape[1])).float().contiguous()


def added(basis: Tensor, matrix: Tensor, energy: float, moments: bool) -> Tensor:
    """Directions [d, k], orthogonal to `basis`, with which it holds the share `energy` of what a task uses; k may be 0.

    matrix: [d, n] whose columns the task uses, or with `moments` their second moments C [d, d]. Those leading directions of the
    part outside of the basis are taken with which the share, what the basis held before included, reaches `energy`
    (KeepLoRA, as the criterion of GPM, arXiv 2103.09762, eq. 9).
    """
    matrix = matrix.double()
    rest = outside(matrix, basis)
    if moments:
        total = matrix.trace()
        rest = outside(rest.T, basis)  # (I − M Mᵀ) C (I − M Mᵀ)
        squares, vectors = torch.linalg.eigh((rest + rest.T) / 2)
        squares, vectors = squares.flip(0).clamp(min=0), signed(vectors.flip(1))
    else:
        total = matrix.square().sum()
        vectors, squares = principal(rest)
    if not total:
        return vectors[:, :0].float()
    held = 1 - squares.sum() / total + torch.cat([squares.new_zeros(1), squares.cumsum(0)[:-1] / total])
    wanted = (held < energy) & (squares > NOTHING * total)
    room = basis.shape[0] - basis.shape[1]
    return vectors[:, : min(int(wanted.sum()), room)].float()
