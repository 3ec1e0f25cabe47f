"""From the stated global batch to per-device × accumulation × processes, and from records to steps and warm-up."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hide_llava.config import names
from hide_llava.errors import UserError
from hide_llava.schema import TASK_RECIPE, BenchmarkConfig, TrainConfig

LARGEST_MICRO_BATCH = 16
FEW_STEPS = 10  # fewer than these are hardly training: `plan` and `run` say so


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


def micro_batches(share: int) -> list[int]:
    """The sizes of micro-batches that a process may take to get through its share of a global batch, the largest first."""
    return [d for d in range(min(share, LARGEST_MICRO_BATCH), 0, -1) if share % d == 0]


def plan_batches(train: TrainConfig, world: int, global_batch: int | None = None) -> BatchPlan:
    """Derive the plan; per_device_batch_size=auto may yet end smaller than this, when the memory is known (memory.py).

    Raises:
        UserError: the global batch is not a multiple of processes × per-device batch, with the values that are.
    """
    total = global_batch or train.global_batch_size
    if total % world:
        raise UserError(
            f"train.global_batch_size={total} cannot be split over {world} processes; use a multiple of {world}."
        )
    share = total // world
    if train.per_device_batch_size in (None, "auto"):
        size = micro_batches(share)[0]
        return BatchPlan(size, share // size, world)
    size = train.per_device_batch_size
    if size < 1 or share % size:
        fits = [d for d in range(1, share + 1) if share % d == 0]
        raise UserError(
            f"train.global_batch_size={total} over {world} process(es) is {share} each, which "
            f"train.per_device_batch_size={size} does not divide; possible: {', '.join(map(str, fits))}."
        )
    return BatchPlan(size, share // size, world)


def recipe_warnings(train: TrainConfig, benchmark: BenchmarkConfig) -> list[str]:
    """What a user wrote and what does not act, or not as one would think."""
    found = []
    if train.name not in names("train"):
        for key in TASK_RECIPE:
            stated, value = {t.id: getattr(t, key) for t in benchmark.tasks if t.train}, getattr(train, key)
            above = ", ".join(f"{i} {own:g}" for i, own in stated.items() if own is not None and own != value)
            if above:
                found.append(
                    f"tasks of benchmark '{benchmark.name}' state their own {key} ({above}), which stand above the "
                    f"{value:g} of train={train.name}; train.{key}={value:g} on the command line is for all tasks."
                )
    if train.max_steps > 0:
        found.append(f"train.max_steps={train.max_steps} ends every task, whatever its epochs are.")
    if train.adapter_dtype == "bfloat16":
        found.append("train.adapter_dtype=bfloat16: what trains has no fp32 copy, so updates below 1/256 of a weight are lost, "
                     "as they are late in a cosine schedule.")  # fmt: skip
    return found


def warmup_steps(train: TrainConfig, steps: int) -> int:
    """Steps of a task with `steps` steps in which the learning rate rises; the first of them has the rate 0.

    The reference rounds up, ⌈ratio · steps⌉. So does this from one whole step on; less than that is no warm-up, or else
    a task of no more records than one global batch would have its only step at the rate 0 and learn nothing.

    Raises:
        UserError: the ratio is no share.
    """
    if not 0 <= train.warmup_ratio <= 1:
        raise UserError(f"train.warmup_ratio={train.warmup_ratio:g}: must be between 0 and 1, a share of a task's steps.")
    share = train.warmup_ratio * steps
    return 0 if share < 1 and train.warmup == "whole_steps" else math.ceil(share)


def few_steps(steps: dict[str, int]) -> list[str]:
    """The warnings about stages (name → optimizer steps) that have hardly any, one for all with the same number."""
    names: dict[int, list[str]] = {}
    for name, count in steps.items():
        if count < FEW_STEPS:
            names.setdefault(count, []).append(name)
    return [
        f"{', '.join(found)}: {count} optimizer step{'s' if count > 1 else ''} {'each' if len(found) > 1 else 'in all'}, so "
        "hardly anything is learned; more train.epochs or a smaller train.global_batch_size give more."
        for count, found in names.items()
    ]
