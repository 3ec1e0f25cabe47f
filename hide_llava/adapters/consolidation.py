"""A finished LoRA update B A with every singular value scaled by a gain, in the space of its rank (LLaVA-c, arXiv 2506.08666)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hide_llava.adapters.spectrum import leading

Gains = Callable[[Tensor], Tensor]  # singular values [r], largest first → factor of each [r]


def constant(values: Tensor, mix: float) -> Tensor:
    """α for every direction: plain mixing of the weights before and after."""
    return torch.full_like(values, mix)


def by_energy(values: Tensor, mix: float, energy: float) -> Tensor:
    """1 for the leading directions that it takes to pass the share `energy` of Σ σ², α for the others."""
    kept = leading(values.square(), energy)
    return torch.cat([torch.ones_like(values[:kept]), torch.full_like(values[kept:], mix)])


def soft(values: Tensor, softness: float) -> Tensor:
    """σ / (σ + c · mean σ), so that σ becomes σ² / (σ + c · mean σ)."""
    return values / (values + softness * values.mean())


@torch.no_grad()
def rescaled(a: Tensor, b: Tensor, gains: Gains) -> Tensor:
    """B' [d_out, r] with B' A = U (gains(σ) ⊙ Σ) Vᵀ, where B A = U Σ Vᵀ; A [r, d_in], B [d_out, r].

    B' = U diag(gains) Uᵀ B: neither the signs of singular vectors nor their order matter, and A stays. The SVD is that
    of a matrix of at most r×r, R_B R_Aᵀ with B = Q_B R_B and Aᵀ = Q_A R_A. fp64 inside. An update of zero stays zero.
    """
    q, rows = torch.linalg.qr(b.double())
    columns = torch.linalg.qr(a.double().T).R
    left, values, _ = torch.linalg.svd(rows @ columns.T, full_matrices=False)
    if not values[0] > 0:
        return b.clone()
    return (q @ (left * gains(values)) @ (left.T @ rows)).to(b.dtype)
