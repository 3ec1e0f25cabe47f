"""One pass over a sample of a task's data, without gradient or dropout, that shows the input of every adapted linear.

Statistics of a mixture (which experts a task uses, how its inputs are spread) come from here and never from a forward
that trains: activation recomputation would count twice, and batches would have to be gathered over processes. Every
process sees the same sample, so nothing needs to be summed; `distributed.from_main` makes the results equal to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Subset

from hide_llava.adapters.core import Core
from hide_llava.adapters.probe import without_dropout


def sample(count: int, size: int, seed: int) -> list[int]:
    """`size` distinct places of `count` (all, if there are fewer), in order."""
    return sorted(torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:size].tolist())


@torch.no_grad()
def observe(
    core: Core, adapter: str, context: Any, size: int, seed: int, see: Callable[[str, Tensor, dict], None]
) -> None:
    """Call `see(path, x [1, n, d_in], batch)` for every linear with `adapter` and each of `size` records, unpadded."""
    chosen = sample(len(context.train_data), size, seed)
    now: dict = {}
    handles = [
        layer.register_forward_pre_hook(lambda _, args, path=path: see(path, args[0], now))
        for path, _, layer in core.layers(adapter)
    ]
    try:
        with without_dropout(core):
            for batch in context.loader(Subset(context.train_data, chosen), 1):  # one record: no padding
                now = batch
                context.forward(batch)
    finally:
        for handle in handles:
            handle.remove()
