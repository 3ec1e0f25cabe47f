"""Key elements of RegLoRA: the largest entries of a task's update BA, kept as one bit per entry (SEFE, arXiv 2505.02486).

A 7B has 6.5 G entries in its 224 linears: 0.8 GB of bits for all tasks together, however many (lists of indices, as
the authors keep them, take 2.1 GB per task).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def select(a: Tensor, b: Tensor, fraction: float) -> Tensor:
    """Bits [d_out · d_in] bool: True at the ⌊fraction · d_out · d_in⌋ largest |B A| of A [r, d_in], B [d_out, r]."""
    update = (b.float() @ a.float()).abs().flatten()
    chosen = torch.zeros_like(update, dtype=torch.bool)
    chosen[update.topk(int(fraction * update.numel())).indices] = True
    return chosen


def pack(bits: Tensor) -> Tensor:
    """[n] bool → [⌈n / 8⌉] uint8, first bit lowest."""
    padded = torch.nn.functional.pad(bits.to(torch.uint8), (0, -len(bits) % 8)).view(-1, 8)
    return (padded << torch.arange(8, dtype=torch.uint8, device=bits.device)).sum(1, dtype=torch.uint8)


def unpack(packed: Tensor, count: int) -> Tensor:
    """Inverse of `pack`: [count] bool."""
    bits = packed[:, None] >> torch.arange(8, dtype=torch.uint8, device=packed.device)
    return (bits & 1).flatten()[:count].bool()


def key_mean(a: Tensor, b: Tensor, masks: list[Tensor]) -> Tensor:
    """Mean of |B A| over the key elements of packed `masks`; an element in several of them counts as often.

    B A, as large as the linear itself, exists in one linear at a time: it is computed again in backward.
    """

    def mean(a: Tensor, b: Tensor) -> Tensor:
        with torch.autocast(a.device.type, enabled=False):
            update = (b @ a).abs().flatten()
            times = unpack(masks[0], len(update))
            for mask in masks[1:]:
                times = times.to(torch.uint8) + unpack(mask, len(update))  # at most one of each task
            return (update * times).sum() / times.sum().clamp_min(1)

    return checkpoint(mean, a, b, use_reentrant=False, preserve_rng_state=False)


class OncePerStep:
    """A term of the loss that depends on parameters alone: value and gradient are computed once, for all micro-batches
    of an optimizer step, until `forget` or until a parameter has another value.

    Every call returns the term with the gradient that computing it again would give.
    """

    def __init__(self) -> None:
        self.made: tuple[Any, Tensor, tuple[Tensor, ...]] | None = None

    def forget(self) -> None:
        self.made = None

    def __call__(self, parameters: list[Tensor], compute: Callable[[], Tensor], *settings: Any) -> Tensor:
        """The scalar `compute()` of `parameters` and `settings`; without gradients it is computed as it stands."""
        if not torch.is_grad_enabled() or not all(p.requires_grad for p in parameters):
            return compute()
        state = (settings, [(id(p), p.data_ptr(), p._version) for p in parameters])
        if self.made is None or self.made[0] != state:
            value = compute()
            self.made = (state, value.detach(), torch.autograd.grad(value, parameters))
        return _WithGradient.apply(self.made[1], self.made[2], *parameters)


class _WithGradient(torch.autograd.Function):
    """A known value whose gradient with respect to the parameters is known too."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: tuple[Tensor, ...], *parameters: Tensor) -> Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        return (None, None, *(outer * g for g in ctx.gradients))
