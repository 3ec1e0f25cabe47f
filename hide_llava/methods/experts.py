"""One LoRA per task: what the methods with task experts share (no method by itself).

Task t trains a fresh expert (A_t, B_t); experts of past tasks are frozen.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from torch import Tensor, nn

from hide_llava.adapters.projectors import restore_projectors, stored_projectors
from hide_llava.methods.base import Context, Features, Route, Task
from hide_llava.methods.cost import Cost
from hide_llava.methods.lora import SequentialLora

OwnProjector = Literal["per_task", "shared", "frozen"]


class TaskExperts(SequentialLora):
    """y = W x + s B_t A_t x in training of task t. Subclasses say how the experts answer."""

    name = ""

    def setup(self) -> None:
        self.learned: list[int] = []  # finished tasks and the current one, in order

    @staticmethod
    def expert(task: int) -> str:
        return f"expert-{task + 1:02d}"

    @property
    def experts(self) -> list[str]:
        """Names of all experts so far, the current one last."""
        return [self.expert(task) for task in self.learned]

    @property
    def adapter(self) -> str:
        """The expert of the current task, which trains."""
        return self.expert(self.learned[-1])

    def before_task(self, task: Task, context: Context) -> None:
        self.learned.append(task.index)
        super().before_task(task, context)

    def cost(self) -> Cost:
        return Cost(kept=(len(self.tasks) - 1) * self.core.size(self.adapter))

    def state(self) -> dict[str, Any]:
        return {"learned": list(self.learned)}

    def load_state(self, state: dict[str, Any]) -> None:
        self.learned = list(state["learned"])


class SummedExperts(TaskExperts):
    """y = W x + s Σ_{i≤t} B_i A_i x, in training and at inference, where all experts are folded into W."""

    def before_task(self, task: Task, context: Context) -> None:
        """Past experts are part of the base from now on: dropout is for the one that trains."""
        for name in self.experts:
            for _, _, layer in self.core.layers(name):
                layer.lora_dropout[name] = nn.Identity()
        super().before_task(task, context)

    def route(self, batch: dict, features: Features, train: bool) -> Route:
        return Route(self.experts if train else [])

    def prepare_inference(self) -> None:
        self.core.fold(self.experts, [1.0] * len(self.learned), "delta_sum", [])

    def cost(self) -> Cost:
        cost = super().cost()
        return replace(cost, past=cost.kept)


class IndependentExperts(TaskExperts):
    """Experts that know nothing of each other. `projector: per_task`: the projector too starts from the base model's
    with every task, and its copy answers together with the expert of that name."""

    class Config(TaskExperts.Config):
        projector: OwnProjector = "per_task"  # per_task | shared (trained, carried from task to task) | frozen

    def setup(self) -> None:
        super().setup()
        self.initial_projector = self.core.projector_state()

    def before_task(self, task: Task, context: Context) -> None:
        super().before_task(task, context)
        if self.config.projector == "per_task":
            self.core.load_projector(self.initial_projector)

    def after_task(self, task: Task, context: Context) -> None:
        if self.config.projector == "per_task":
            self.core.projectors[self.adapter] = self.core.projector_state()

    def prepare_inference(self) -> None:
        """Nothing is folded yet: the expert changes with the question. What no expert answers has the base's projector."""
        if self.config.projector == "per_task":
            self.core.load_projector(self.initial_projector)

    def chosen_projectors(self, weights: dict[str, Tensor]) -> dict[str, Tensor] | None:
        """The projectors of a route whose samples use the experts with `weights` (expert → [B])."""
        return weights if self.config.projector == "per_task" else None

    def cost(self) -> Cost:
        cost = super().cost()
        if self.config.projector != "per_task":
            return cost
        return replace(cost, state={"a projector per task": len(self.tasks) * self.core.projector_bytes()})

    def state(self) -> dict[str, Any]:
        return {**super().state(), **stored_projectors(self.core)}

    def load_state(self, state: dict[str, Any]) -> None:
        super().load_state(state)
        restore_projectors(self.core, state)
