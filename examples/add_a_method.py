"""Nearest expert: a LoRA per task, and at inference the one whose training questions are most like the question.

    hide-llava run benchmark=mini-ucit method=./examples/add_a_method.py method.rank=4

Training of task t:  y = W x + s B_t A_t x,  expert t alone, from the base model.
Inference:           y = W x + s B_e A_e x,  e = argmax_i cos(f, a_i)
f is the CLIP text embedding of the question and a_i the mean of those of task i's training questions. Each question of a batch
takes its own expert: all experts lie side by side in one adapter, and a gate of ones and zeros chooses among them.

docs/ADD_A_METHOD.md explains every hook that is used here.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field
from torch import Tensor
from torch.nn.functional import one_hot

from hide_llava.adapters.anchors import Anchors, similarities
from hide_llava.adapters.core import LoraSpec
from hide_llava.methods.base import Context, Features, Method, Route, Task, register


@register
class NearestExpert(Method):
    name = "nearest-expert"
    needs = frozenset({"clip_text"})  # the engine computes it once per batch and passes it as features.text
    reads_logits = False  # loss() below does not look at the output

    class Config(LoraSpec):  # rank, alpha, dropout, targets, init_std, and:
        rank: int = Field(8, ge=1)  # of one expert
        alpha: float = Field(16.0, gt=0)
        projector: Literal["shared", "frozen"] = "frozen"  # frozen | shared (trained, carried from task to task)

    def setup(self) -> None:
        self.learned: list[int] = []
        self.anchors = Anchors()

    @staticmethod
    def expert(task: int) -> str:
        return f"expert-{task + 1:02d}"

    # ---- training --------------------------------------------------------------------------------------------------------
    def before_task(self, task: Task, context: Context) -> None:
        self.current = task.index
        self.core.add(self.expert(task.index), self.config)
        self.anchors.start(task.index, context.widths["clip_text"], self.core.llava.device)

    def params(self) -> list[dict[str, Any]]:
        groups = [{"params": self.core.parameters_of(self.expert(self.current)), "lr": "adapter"}]
        if self.config.projector == "shared":
            groups.append({"params": list(self.core.projector.parameters()), "lr": "projector"})
        return groups

    def adapters(self) -> list[str]:
        return [self.expert(self.current)]

    def after_task(self, task: Task, context: Context) -> None:
        """The anchor, from one pass over the task's questions; every process sees all of them, so nothing is summed up."""
        for batch in context.loader(context.train_data, 16):
            self.anchors.add(task.index, context.features(batch).text)
        self.learned.append(task.index)

    # ---- inference -------------------------------------------------------------------------------------------------------
    def prepare_inference(self) -> None:
        names = [self.expert(task) for task in self.learned]
        self.core.concatenate("routed", names, list(range(self.core.num_layers)))

    def route(self, batch: dict, features: Features, train: bool) -> Route:
        if train:
            return Route([self.expert(self.current)])
        cosines = similarities(features.text, [self.anchors.mean(task) for task in self.learned])
        chosen = one_hot(cosines.argmax(1), len(self.learned)).float()  # [B, experts]
        gate = chosen.repeat_interleave(self.config.rank, dim=1)  # one value for each rank of each expert
        weights = {self.expert(task): chosen[:, i] for i, task in enumerate(self.learned)}  # for predictions.jsonl
        return Route(["routed"], {"routed": gate}, weights=weights)

    # ---- what a stored stage needs besides adapters and projector ------------------------------------------------------------
    def state(self) -> dict[str, Any]:
        anchors: dict[str, Tensor] = {f"anchor.{key}": value for key, value in self.anchors.state().items()}
        return {"learned": list(self.learned), **anchors}

    def load_state(self, state: dict[str, Any]) -> None:
        self.learned = list(state["learned"])
        anchors = {key.removeprefix("anchor."): value for key, value in state.items() if key.startswith("anchor.")}
        self.anchors.load(anchors, self.core.llava.device)
