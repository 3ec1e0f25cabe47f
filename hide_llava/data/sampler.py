"""An order of samples in which the batches that are processed together have similar lengths and one modality.

The order is the reference's for the same seed. There it is drawn from torch's global generator, so it depends on what
ran before; here the sampler owns its generator. `GlobalBatches` then deals such an order out to the processes.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Dataset, Sampler

from hide_llava.data.turns import IGNORE
from hide_llava.errors import UserError


class ModalityLengthSampler(Sampler[int]):
    """Yields every index once per epoch.

    `lengths`: words per sample, positive with an image and negative without (`TrainingDataset.modality_lengths`).
    `batch_size`: samples per process and optimizer step; a megabatch is `world_size` times as many. Every process
    iterates over the same global order. Epoch e is drawn with seed + e (`set_epoch`).
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, world_size: int = 1, seed: int = 42) -> None:
        if any(length == 0 for length in lengths):
            raise UserError(f"Sample {list(lengths).index(0)} has length zero, so its modality is unknown.")
        if batch_size < 1 or world_size < 1:
            raise UserError(f"batch_size and world_size must be positive, got {batch_size} and {world_size}.")
        self.lengths, self.batch_size, self.world_size, self.seed = list(lengths), batch_size, world_size, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        with_image = [index for index, length in enumerate(self.lengths) if length > 0]
        without = [index for index, length in enumerate(self.lengths) if length < 0]
        if not with_image or not without:
            # One modality: signed lengths, so a text-only set is sorted shortest first, as in the reference.
            yield from _flatten(self._megabatches(range(len(self)), self.lengths, generator))
            return

        sizes = [abs(length) for length in self.lengths]
        full: list[list[int]] = []
        rest: list[int] = []
        for group in (with_image, without):
            *others, last = self._megabatches(group, sizes, generator)
            full += others
            rest += last  # even when it is full: the reference always keeps the last one of each modality back
        yield from _flatten(full[i] for i in torch.randperm(len(full), generator=generator).tolist())
        yield from sorted(rest)

    def _megabatches(
        self, indices: Sequence[int], lengths: Sequence[int], generator: torch.Generator
    ) -> list[list[int]]:
        """A random permutation of `indices` cut into megabatches, each arranged for balanced processes.

        Returned as slices of `world_size * batch_size` of the arranged order, the last one possibly shorter.
        """
        size = self.world_size * self.batch_size
        shuffled = [indices[i] for i in torch.randperm(len(indices), generator=generator).tolist()]
        cuts = (shuffled[at : at + size] for at in range(0, len(shuffled), size))
        longest_first = (sorted(cut, key=lambda index: lengths[index], reverse=True) for cut in cuts)
        return [_balance(cut, lengths, self.world_size) for cut in longest_first]


class GlobalBatches(Sampler[list[int]]):
    """The micro-batches of one process, for an order of samples that is cut into global batches.

    Micro-batch k of process r holds `per_device` places of its global batch, from (k · world + r) · per_device on. The
    last global batch holds what is left, and nothing is repeated to fill it: some of its micro-batches are shorter, and
    one that would be empty while another process still has samples is `[~i]`, a stand-in for sample i by which its
    process takes part in the step and which must not count in any sum. (accelerate's sharding fills up with samples
    that were seen before, so that several processes learn something else than one.)
    """

    def __init__(self, order: Sampler[int], per_device: int, accumulation: int, world: int = 1, rank: int = 0) -> None:
        self.order, self.per_device, self.accumulation = order, per_device, accumulation
        self.world, self.rank = world, rank

    @property
    def size(self) -> int:
        """Samples of a full global batch."""
        return self.per_device * self.accumulation * self.world

    @property
    def steps(self) -> int:
        """Global batches of an epoch."""
        return -(-len(self.order) // self.size)

    def rows(self, step: int) -> int:
        """Samples of all processes in global batch `step`, counted from 0 over all epochs."""
        return min(self.size, len(self.order) - step % self.steps * self.size)

    def set_epoch(self, epoch: int) -> None:
        if hasattr(self.order, "set_epoch"):
            self.order.set_epoch(epoch)

    def __len__(self) -> int:
        """Micro-batches of an epoch, the same in every process."""
        full, rest = divmod(len(self.order), self.size)
        return full * self.accumulation + -(-rest // (self.per_device * self.world))

    def __iter__(self) -> Iterator[list[int]]:
        places = iter(self.order)
        while batch := list(itertools.islice(places, self.size)):
            for at in range(0, len(batch), self.per_device * self.world):
                mine = at + self.rank * self.per_device
                yield batch[mine : mine + self.per_device] or [~batch[at]]


class StandIns(Dataset):
    """A training data set that also answers `~i`: sample i without a label and with `counts` False."""

    def __init__(self, samples: Dataset) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index >= 0:
            return self.samples[index]
        sample = self.samples[~index]
        return {**sample, "labels": torch.full_like(sample["labels"], IGNORE), "counts": False}


def _balance(longest_first: list[int], lengths: Sequence[int], parts: int) -> list[int]:
    """Deal the indices into `parts` hands of equal count and nearly equal total length; the hands one after another."""
    if len(longest_first) % parts:
        return _flatten(longest_first[part::parts] for part in range(parts))
    room = len(longest_first) // parts
    hands: list[list[int]] = [[] for _ in range(parts)]
    totals = [(0, part) for part in range(parts)]  # a heap of the hands that still have room; ties go to the first
    for index in longest_first:
        total, part = heapq.heappop(totals)
        hands[part].append(index)
        if len(hands[part]) < room:
            heapq.heappush(totals, (total + lengths[index], part))
    return _flatten(hands)


def _flatten(groups: Iterable[Sequence[int]]) -> list[int]:
    return [index for group in groups for index in group]
