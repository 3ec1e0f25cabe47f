"""From the stated global batch to per-device × accumulation × processes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hide_llava.config import TrainConfig
from hide_llava.errors import UserError

LARGEST_MICRO_BATCH = 16


@dataclass(frozen=True)
class BatchPlan:
    """global_batch = per_device × accumulation × world."""

    per_device: int
    accumulation: int
    world: int

    @property
    def global_batch(self) -> int:
        return self.per_device * self.accumulation * self.world

    def steps(self, records: int, epochs: float, max_steps: int = -1) -> int:
        """Optimizer steps, as the Trainer counts them: one for each global batch, the last one of an epoch not full."""
        return max_steps if max_steps > 0 else math.ceil(epochs * max(1, math.ceil(records / self.global_batch)))


def plan_batches(train: TrainConfig, world: int, global_batch: int | None = None) -> BatchPlan:
    """Derive the plan.

    Raises:
        UserError: the global batch is not a multiple of processes × per-device batch, with the values that are.
    """
    total = global_batch or train.global_batch_size
    if total % world:
        raise UserError(
            f"train.global_batch_size={total} cannot be split over {world} processes; use a multiple of {world}."
        )
    share = total // world
    if train.per_device_batch_size is None:
        size = max(d for d in range(1, min(share, LARGEST_MICRO_BATCH) + 1) if share % d == 0)
        return BatchPlan(size, share // size, world)
    size = train.per_device_batch_size
    if size < 1 or share % size:
        fits = [d for d in range(1, share + 1) if share % d == 0]
        raise UserError(
            f"train.global_batch_size={total} over {world} process(es) is {share} each, which "
            f"train.per_device_batch_size={size} does not divide; possible: {', '.join(map(str, fits))}."
        )
    return BatchPlan(size, share // size, world)
