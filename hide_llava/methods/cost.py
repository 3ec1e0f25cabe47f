"""What a method costs beside one forward and backward per training record and one answer of the (folded) base model.

A method states it in `Method.cost()`; `hide-llava plan` and docs/methods print it. What its adapters and modules hold and
train is counted from the method itself and is not stated here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal


def of_task(most: int | None = None) -> Callable[[list[int]], int]:
    """How many records of the task just trained: all, or at most so many."""
    return lambda counts: counts[-1] if most is None else min(most, counts[-1])


@dataclass(frozen=True)
class Pass:
    """Passes through the whole model, for every record of a training step, for some after a task, or for every answer.

    records: of a pass per `task` or `epoch`, how many, given the record counts of the tasks so far. Those of an `epoch` are
    trained in steps, as the task's own are.
    adapters: numbers of adapters that every token meets there; None: as in training.
    """

    what: str
    per: Literal["step", "epoch", "task", "answer"]
    forwards: int = 1
    backwards: int = 0
    records: Callable[[list[int]], int] = field(default_factory=of_task)
    text_only: bool = False  # the question without its image
    later: bool = False  # not in the first task
    adapters: int | None = None


@dataclass(frozen=True)
class Cost:
    """Numbers are of parameters, and of the state when T tasks were learned."""

    passes: tuple[Pass, ...] = ()
    state: dict[str, int] = field(default_factory=dict)  # bytes of what `state()` holds, after T tasks
    kept: int = 0  # of adapters of past tasks in memory while the last one trains
    past: int = 0  # of those, what every training token meets in the last task (frozen)
    later: dict[str, int] = field(default_factory=dict)  # adapters trained beside the Trainer, from the second task on
    routers: int = 0  # of `modules`, what every token meets in training and in answering
    live: int = 0  # of adapters, what every token of an answer meets after T tasks; what is folded costs nothing
    prompts: tuple[int, int] = (0, 0)  # tokens added in training and in answering, at most
    dropped: int = 0  # of `modules`, what is deleted when a task ends
    extra: int = 0  # FLOPs of the loss per micro-batch in the last task, backward included

    def added(self, counts: list[int]) -> int:
        """Records that an epoch of the last task of `counts` trains beside its own; counts: records of the tasks so far."""
        passes = [p for p in self.passes if p.per == "epoch" and (len(counts) > 1 or not p.later)]
        return sum(p.records(counts) for p in passes)
