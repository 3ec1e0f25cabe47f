"""Training data of which one part is trained after another: which optimizer steps are whose, and the order of the samples."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from torch.utils.data import Sampler


def ends_of(sizes: Sequence[int], steps: int) -> list[int]:
    """The optimizer step before which each part ends, of `steps` in all: shares of the parts' samples, rounded to whole steps.

    sizes: samples of each part. A part with samples has at least one step as long as there are steps; one without has none.
    """
    ends: list[int] = []
    for place, size in enumerate(sizes):
        begin, behind = (ends or [0])[-1], sum(1 for later in sizes[place + 1 :] if later)
        wanted = min(round(steps * sum(sizes[: place + 1]) / sum(sizes)), steps - behind)
        ends.append(min(steps, max(wanted, begin + 1)) if size else begin)
    return ends


class PartsSampler(Sampler[int]):
    """Yields samples of one part, then of the next: a run of epochs passes each part as often as it would have been mixed.

    orders: of the places inside each part, drawn anew each time it is passed (`set_epoch`). sizes: samples of each part,
    which lie one after another in the data. ends: `ends_of` these. batch: samples of a global batch.

    An epoch has as many samples as there are in all parts, cut into global batches of which the last may not be full; a
    global batch is never of two parts. So a part may lose less than a batch of its last pass, or begin another one.
    """

    def __init__(self, orders: Sequence[Sampler[int]], sizes: Sequence[int], ends: Sequence[int], batch: int) -> None:
        self.orders, self.sizes, self.ends, self.batch = list(orders), list(sizes), list(ends), batch
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return sum(self.sizes)

    def __iter__(self) -> Iterator[int]:
        """Of the epoch that was set: what the epochs before it have passed is passed over."""
        return itertools.islice(self._all(), self.epoch * len(self), (self.epoch + 1) * len(self))

    def _all(self) -> Iterator[int]:
        streams = [self._stream(part) for part in range(len(self.orders))]
        steps = -(-len(self) // self.batch)  # of an epoch
        for step in itertools.count():
            part = next((k for k, end in enumerate(self.ends) if step < end), self._last)
            yield from itertools.islice(streams[part], min(self.batch, len(self) - step % steps * self.batch))

    @property
    def _last(self) -> int:
        """The last part that has samples: of steps behind the end, which are looked at and never trained."""
        return max(k for k, size in enumerate(self.sizes) if size)

    def _stream(self, part: int) -> Iterator[int]:
        begin, order = sum(self.sizes[:part]), self.orders[part]
        for turn in itertools.count():
            if hasattr(order, "set_epoch"):
                order.set_epoch(turn)
            yield from (begin + place for place in list(order))
