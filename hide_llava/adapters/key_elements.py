"""Key elements of RegLoRA: the largest entries of a task's update BA, kept as one bit per entry (methods.md §3.14).

A 7B has 6.5 G entries in its 224 linears: 0.8 GB of bits for all tasks together, however many (lists of indices, as
the authors keep them, take 2.1 GB per task).
"""

from __future__ import annotations

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
            times = torch.stack([unpack(mask, len(update)) for mask in masks]).sum(0)
            return (update * times).sum() / times.sum().clamp_min(1)

    return checkpoint(mean, a, b, use_reentrant=False, preserve_rng_state=False)
