"""Sequential LoRA fine-tuning ("FineTune", "SeqLoRA"): one adapter carried through all tasks.

y = W x + s B A x, cross-entropy only; optimizer and schedule restart with every task. The baseline that forgets.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from hide_llava.adapters.core import LoraSpec
from hide_llava.methods.base import Context, Features, Method, Route, Task, register


@register
class SequentialLora(Method):
    name = "lora"
    adapter = "sequential"

    class Config(LoraSpec):
        rank: int = Field(16, ge=1)
        alpha: float = Field(32.0, gt=0)
        projector: Literal["shared", "frozen"] = "shared"  # shared (trained, carried from task to task) | frozen

    def before_task(self, task: Task, context: Context) -> None:
        if self.adapter not in self.core.names():
            self.core.add(self.adapter, self.config)

    def params(self) -> list[dict[str, Any]]:
        groups = [{"params": self.core.parameters_of(self.adapter), "lr": "adapter"}]
        if self.config.projector != "frozen":
            groups.append({"params": list(self.core.projector.parameters()), "lr": "projector"})
        return groups

    def adapters(self) -> list[str]:
        return [self.adapter]

    def route(self, batch: dict, features: Features, train: bool) -> Route:
        return Route([self.adapter] if train else [])

    def prepare_inference(self) -> None:
        self.core.fold([self.adapter], [1.0], "delta_sum", [])
