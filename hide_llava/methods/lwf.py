"""Learning without forgetting: sequential LoRA taught by itself before the task (Li & Hoiem, arXiv 1606.09282).

L = CE + α T² KL( softmax(z_old / T) ‖ softmax(z / T) ), a mean over the answer tokens of an example, then over examples.

z_old: logits of the adapter (and projector) as they were when the task began, on the current batch, without dropout or
gradient. Recording them once, as the paper does, would take 32 k numbers a token. The use in LLaVA is ours: published
tables have LwF rows without code. The teacher is never stored: it is the end of the last stage.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import kl_div

from hide_llava.adapters.probe import logits
from hide_llava.data.turns import IGNORE
from hide_llava.methods.base import Context, Features, Route, Task, register
from hide_llava.methods.cost import Cost, Pass
from hide_llava.methods.lora import SequentialLora
from hide_llava.settings import Strength


@register
class Lwf(SequentialLora):
    name = "lwf"
    reads_parameters = True  # the teacher's projector
    reads_logits = True
    teacher = "teacher"

    class Config(SequentialLora.Config):
        strength: Strength[float] = Field(0.5, ge=0)  # α, weight of the distillation
        temperature: float = Field(2.0, gt=0)  # T, of both distributions

    def setup(self) -> None:
        self.taught = False

    def before_task(self, task: Task, context: Context) -> None:
        super().before_task(task, context)
        self.taught = task.index > 0
        if not self.taught:
            return
        if self.teacher not in self.core.names():
            self.core.add(self.teacher, self.config)
        with torch.no_grad():
            for old, new in zip(self.core.parameters_of(self.teacher), self.core.parameters_of(self.adapter)):
                old.copy_(new)
        self.core.projectors[self.teacher] = self.core.projector_state()

    def cost(self) -> Cost:
        return Cost((Pass("the teacher", "step", later=True),), kept=self.core.size(self.adapter))

    def loss(self, output: Any, batch: dict, features: Features) -> dict[str, Tensor]:
        if not self.taught:
            return {}
        ones = torch.ones_like(batch["has_image"], dtype=torch.float32)
        old = logits(self.core, batch, Route([self.teacher], projectors={self.teacher: ones}))
        return {
            "lwf": self.config.strength * distillation(output.logits, old, batch["labels"], self.config.temperature)
        }


def distillation(new: Tensor, old: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """T² KL(old ‖ new) of logits [B, N, V] where the next label [B, N] is an answer's; scalar, see the module."""
    answers = labels[:, 1:] != IGNORE
    student = (new[:, :-1][answers].float() / temperature).log_softmax(-1)
    teacher = (old[:, :-1][answers].float() / temperature).log_softmax(-1)
    tokens = kl_div(student, teacher, reduction="none", log_target=True).sum(-1)
    share = 1.0 / answers.sum(1, keepdim=True).expand_as(answers)[answers]  # of a token in its example
    return temperature**2 * (tokens * share).sum() / len(labels)
