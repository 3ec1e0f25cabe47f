"""Matrices with orthonormal columns under an optimizer that knows nothing of them: the Stiefel manifold (EBLoRA, arXiv
2602.00722).

X [d, r] with XᵀX = I. What the optimizer gets is the gradient's tangent part; what it made of X is taken as a step, of which the
tangent part is gone, and the nearest matrix with orthonormal columns is the new X.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hide_llava.precision import full_precision


def tangent(x: Tensor, change: Tensor) -> Tensor:
    """D − X Dᵀ X of a change D [d, r] at X [d, r] with orthonormal columns: its part in the tangent space (canonical metric)."""
    with full_precision():
        return change - x @ (change.T @ x)


def retracted(x: Tensor, change: Tensor) -> Tensor:
    """The polar factor of X + D [d, r]: (X + D) ((X + D)ᵀ(X + D))^(−1/2). Columns that are 0 stay 0."""
    moved = x + change
    with full_precision():
        values, vectors = torch.linalg.eigh((moved.T @ moved).double())
        inverse = torch.where(values > 1e-10 * values[-1:], values.clamp(min=1e-30).rsqrt(), 0.0)
        return moved @ ((vectors * inverse) @ vectors.T).to(moved.dtype)
