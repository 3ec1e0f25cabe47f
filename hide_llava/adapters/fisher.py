"""The diagonal of the empirical Fisher information, from the gradient of one loss at a time."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from hide_llava.distributed import all_reduce


def fisher_diagonal(losses: Iterable[Tensor], parameters: list[nn.Parameter]) -> list[Tensor]:
    """F_p = 1/N Σ_n (∂ℓ_n / ∂θ_p)², fp32, for N scalar losses ℓ_n; `losses` makes one graph at a time.

    With ℓ_n the negative log-likelihood of one example this is the Fisher diagonal at the data; with ℓ_n the mean of a
    batch of B independent examples it is about B times too small (docs/PROTOCOLS.md, Methods). Over all processes, each of
    which brings its own losses.
    """
    sums = [torch.zeros_like(p, dtype=torch.float32) for p in parameters]
    count = torch.zeros((), dtype=torch.int64, device=parameters[0].device)
    for loss in losses:
        for total, gradient in zip(sums, torch.autograd.grad(loss, parameters)):
            total += gradient.float() ** 2
        count += 1
    all_reduce(*sums, count)
    return [total / count for total in sums]
