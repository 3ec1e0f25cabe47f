"""Precision of fp32 products on a GPU: TF32 (10 bits of mantissa instead of 23) where a run allows it, in one place.

Set when a model is loaded, so that training, evaluation, a resumed run and `predict` compute alike: transformers sets it
only when a Trainer is built, and then for the rest of the process.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


def allow_tf32(allowed: bool) -> None:
    """Whether fp32 products and convolutions may use TF32. Without effect on a CPU and on GPUs before Ampere."""
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Inside the block fp32 products are exact to fp32, whatever the run allows: routing features and folded weights."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
