"""DGG: replay, and a gradient of the past guessed from how far the model has moved (CVPR 2026, arXiv 2511.15164).

Task t > 1 trains on L = CE(D_t) + CE(M): beside every new record one of the buffer M, in turn (of a buffer larger than D_t,
evenly spaced ones, so that every earlier task has its share). θ*: what trains, as the task found it. After the backward pass of
a step, with probability `probability`, the gradient of what is no longer there is added:
    g ← ∇L + ĝ · min(1, ‖∇L‖ / ‖ĝ‖),   ĝ = θ − θ*
(near θ*, where the old loss had its minimum, its gradient points from θ* to θ). Norms are over all that trains together. The draw
depends on seed, task and step alone: the same in every process, and in a task that is resumed.

Written from the formulas of the paper; its code was not at hand. There the probability is 0.1, 0.1, 0.05, 0.05 and 0.1 for
UCIT's tasks 2 to 6. Where train.max_grad_norm clips, ∇L is clipped before ĝ is added.
    unit: each   m_i = C: so many records of every earlier task (records, percent: as in replay)
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from typing_extensions import Self

from hide_llava.adapters.observe import sample
from hide_llava.methods.base import Context, Task, register
from hide_llava.methods.cost import Cost, Pass
from hide_llava.methods.replay import Replay
from hide_llava.settings import Searched


def guided(gradients: list[Tensor], displacements: list[Tensor]) -> list[Tensor]:
    """∇L + ĝ min(1, ‖∇L‖ / ‖ĝ‖) of lists of tensors, with the norms of all of them together; no value is read."""
    norm, distance = (torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(t.double()) for t in tensors]))
                      for tensors in (gradients, displacements))  # fmt: skip
    factor = (norm / distance.clamp(min=torch.finfo(torch.float64).tiny)).clamp(max=1.0)
    return [g + (factor * d).to(g.dtype) for g, d in zip(gradients, displacements)]


@register
class Dgg(Replay):
    name = "dgg"
    labels = ("from the paper",)

    class Config(Replay.Config):
        rank: int = Field(48, ge=1)
        alpha: float = Field(96.0, gt=0)
        buffer: float = Field(2000.0, gt=0)  # C, size of the memory in `unit`
        unit: Literal["each", "records", "percent"] = (
            "each"  # each (of every task) | records (of all together) | percent
        )
        probability: Annotated[float, Searched((0.03, 0.3, 1.0))] = Field(
            0.1, ge=0, le=1
        )  # of a step in which the guessed gradient is added
        seed: int = Field(0, ge=0)  # of that draw

        @model_validator(mode="after")
        def _whole(self) -> Self:
            if self.unit == "each" and self.buffer % 1:
                raise ValueError(f"buffer={self.buffer:g}: must be a whole number of records, with unit=each")
            return self

    def setup(self) -> None:
        super().setup()
        self.task = 0
        self.start: list[Tensor] = []  # θ*, of what trains; nothing in the first task

    def trained(self) -> list[nn.Parameter]:
        return [parameter for group in self.params() for parameter in group["params"]]

    def before_task(self, task: Task, context: Context) -> None:
        """A task that is resumed begins at the stage before it, too, so that θ* need not be stored."""
        super().before_task(task, context)
        self.task = task.index
        self.start = [p.detach().clone() for p in self.trained()] if task.index else []

    def share(self, count: int, position: int, tasks: int) -> int:
        return (
            min(count, int(self.config.buffer)) if self.config.unit == "each" else super().share(count, position, tasks)
        )

    def train_data(self, task: Task, records: Any, context: Context) -> Any:
        """As many records of the buffer as there are new ones: all in turn, or of a larger buffer evenly spaced ones, so that
        every earlier task has its share."""
        from datasets import concatenate_datasets

        self.buffer, kept = {}, []
        for i in range(task.index):
            past = context.records(i)
            self.buffer[i] = sample(len(past), self.share(len(past), i, task.index), self.config.buffer_seed + i)
            kept.append(past.select(self.buffer[i]))
        if not any(map(len, kept)):
            return records
        memory = concatenate_datasets(kept)
        there, new = len(memory), len(records)
        places = [i * there // new if there > new else i % there for i in range(new)]
        return concatenate_datasets([records, memory.select(places)])

    def added(self, step: int) -> bool:
        """Whether ĝ is added in a step: a draw of its own from (seed, task, step)."""
        place = ((self.config.seed * 1_000 + self.task) * 1_000_000_000 + step) % 2**63
        return bool(torch.rand((), generator=torch.Generator().manual_seed(place)) < self.config.probability)

    @torch.no_grad()
    def on_gradients(self, step: int) -> None:
        if not self.start or not self.added(step):
            return
        pairs = [(p, before) for p, before in zip(self.trained(), self.start) if p.grad is not None]
        gradients = guided([p.grad for p, _ in pairs], [p - before for p, before in pairs])
        for (parameter, _), gradient in zip(pairs, gradients):
            parameter.grad.copy_(gradient)

    def cost(self) -> Cost:
        beside = Pass(
            "a record of earlier tasks beside every new one", "epoch", 1, 1, lambda counts: counts[-1], later=True
        )
        return Cost((beside,), {"places of the records kept": 8 * int(self.config.buffer)})
