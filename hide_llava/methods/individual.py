"""Individual: one expert per task, trained from the base model and chosen by the task's id (MCITlib's "Individual").

y = W x + s B_t A_t x,  t = the task of the question, known: an oracle, the upper reference of methods with task experts.
A task that was not learned yet is answered by the base model.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from hide_llava.methods.base import Features, Route, register
from hide_llava.methods.cost import Cost
from hide_llava.methods.experts import IndependentExperts


@register
class Individual(IndependentExperts):
    name = "individual"
    oracle = True

    def cost(self) -> Cost:
        return replace(super().cost(), live=self.core.size(self.adapter))

    def route(self, batch: dict, features: Features, train: bool) -> Route:
        if train:
            return Route([self.adapter])
        if batch["task"] not in self.learned:
            return Route()
        expert, one = self.expert(batch["task"]), torch.ones_like(batch["has_image"], dtype=torch.float32)
        return Route([expert], projectors=self.chosen_projectors({expert: one}), weights={expert: one})
