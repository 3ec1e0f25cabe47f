"""Individual: one expert per task, trained from the base model and chosen by the task's id (MCITlib's "Individual").

y = W x + s B_t A_t x,  t = the task of the question, known: an oracle, the upper reference of methods with task experts.
A task that was not learned yet is answered by the base model. The expert of the task that is asked is folded into the
base weights while its questions are answered, so that a token costs what the base model's does.

`router` with another value (methods/routers.py) is told nothing: e is then chosen for each question by its CLIP features, all
experts are held side by side, and what is lost against the oracle is the router's alone. It needs `router_statistics`, which
training collects.
"""

from __future__ import annotations

import torch

from hide_llava.methods.base import Features, Route, register
from hide_llava.methods.chosen import ChosenExperts
from hide_llava.methods.routers import Router
from hide_llava.settings import Inference


@register
class Individual(ChosenExperts):
    name = "individual"

    class Config(ChosenExperts.Config):
        router: Inference[Router] = "oracle"  # oracle (told the task) | anchors | nearest_mean | ranpac

    def prepare_inference(self) -> None:
        super().prepare_inference()
        self.folded: int | None = None  # the task whose expert is in the base weights

    def route(self, batch: dict, features: Features, train: bool) -> Route:
        if train:
            return Route([self.adapter])
        if self.by_features:
            return self.hard_route(self.choose_by_features(features))
        task, learned = batch["task"], batch["task"] in self.learned
        names = [self.expert(task)] if learned else []
        if self.core.answering and self.folded != task:  # once in a cell of the matrix, whose task is one
            self.core.refold(names, [1.0] * len(names), "delta_sum", [])
            self.folded = task
        ones = dict.fromkeys(names, torch.ones_like(batch["has_image"], dtype=torch.float32))
        active = [] if self.core.answering else names
        return Route(active, projectors=self.chosen_projectors(ones) if learned else None, weights=ones)
