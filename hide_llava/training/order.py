"""The order of a stage's samples, and the learning rate schedules of its parts."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

from torch.utils.data import Sampler

from hide_llava.data.dataset import TrainingDataset
from hide_llava.data.parts import PartsSampler, ends_of
from hide_llava.data.sampler import ModalityLengthSampler
from hide_llava.schema import TrainConfig
from hide_llava.training.batching import BatchPlan, warmup_steps


@dataclass(frozen=True)
class Order:
    """In which order a stage's samples are trained, and, where one part of them is trained after another, when (parts.py)."""

    sampler: Sampler[int]
    ends: list[int] = field(default_factory=list)  # the step before which each part ends
    schedules: list[tuple[int, int]] = field(default_factory=list)  # (steps, of these the warm-up) of each part


def order_of(
    parts: list[int], dataset: TrainingDataset, train: TrainConfig, batch: BatchPlan, epochs: float, seed: int
) -> Order:
    """The order of a stage's samples: mixed, or of the parts one after another, each mixed in itself.

    parts: `Method.parts`, in records; of those, some may be left out of the data set.
    """
    lengths = dataset.modality_lengths if train.group_by_modality_length else [1] * len(dataset)

    def mixed(lengths: list[int]) -> ModalityLengthSampler:
        return ModalityLengthSampler(lengths, batch.per_device * batch.accumulation, batch.world, seed)

    if len(parts) < 2:
        return Order(mixed(lengths))
    cuts = [0, *(bisect_left(dataset.indices, end) for end in accumulate(parts))]  # records that are left out count in none
    sizes = [b - a for a, b in pairwise(cuts)]
    ends = ends_of(sizes, batch.steps(len(dataset), epochs, train.max_steps))
    sampler = PartsSampler([mixed(lengths[a:b]) for a, b in pairwise(cuts)], sizes, ends, batch.global_batch)
    steps = [b - a for a, b in pairwise([0, *ends]) if b > a]
    return Order(sampler, ends, [(count, warmup_steps(train, count)) for count in steps])
