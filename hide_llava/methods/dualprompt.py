"""DualPrompt: one prompt for all tasks, one for each (Wang et al., arXiv 2204.04799), in LLaVA.

Input: [BOS, G, E_e, prompt, image, answer]      e: the current task in training, argmax_t cos(q, κ_t) at inference
L = CE + λ (1 − cos(q, κ_t)),  t: the current task

G [L_g, d] is trained by every task; E_t [L, d] and its key κ_t by task t alone, E_t starting from E_{t−1}.

The adaptation to LLaVA is ours, see methods/l2p.py for the query q and the first prompts. DualPrompt puts G and E_t as
prefixes into the keys and values of layers 0–1 and 2–4; here both are tokens of the input.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from hide_llava.methods.base import Features, Route, register
from hide_llava.methods.cost import Cost
from hide_llava.methods.prompt_pool import best, chosen_weights, resize, word_prompts
from hide_llava.methods.prompts import Keyed
from hide_llava.settings import Strength


@register
class DualPrompt(Keyed):
    name = "dualprompt"
    reads_logits = False

    class Config(Keyed.Config):
        general_length: int = Field(5, ge=1)  # L_g, tokens of the general prompt; `length` is that of E_t
        strength: Strength[float] = Field(1.0, ge=0)  # λ, weight of the key's pull

    def setup(self) -> None:
        super().setup()
        self.modules["general"] = nn.ParameterDict(
            {"prompt": nn.Parameter(word_prompts(self.core, self.config.general_length))}
        )
        self.modules["experts"], self.modules["task_keys"] = nn.ParameterDict(), nn.ParameterDict()

    def build(self) -> None:
        def expert() -> Tensor:
            past = list(self.modules["experts"].values())
            return past[-1].detach().clone() if past else word_prompts(self.core, self.config.length)

        def key() -> Tensor:
            return torch.empty(self.query_width, device=self.core.llava.device).uniform_(-1, 1)

        resize(self.modules["experts"], self.names, expert)
        resize(self.modules["task_keys"], self.names, key)

    def prompt_parameters(self) -> list[nn.Parameter]:
        current = self.names[-1]
        return [self.modules["general"]["prompt"], self.modules["experts"][current], self.modules["task_keys"][current]]

    def route(self, batch: dict, features: Features, train: bool) -> Route:
        count = len(features.has_image)
        if train:
            chosen = torch.full((count, 1), self.learned - 1, device=features.has_image.device)
        else:
            chosen = best(self.cosines(features, list(self.modules["task_keys"].values())), 1)
        general = self.modules["general"]["prompt"].expand(count, -1, -1)
        experts = torch.stack(list(self.modules["experts"].values()))[chosen[:, 0]]
        return Route(prompts=torch.cat([general, experts], 1), weights=chosen_weights(chosen, self.names))

    def cost(self) -> Cost:
        return Cost(prompts=(self.config.general_length + self.config.length,) * 2)

    def loss(self, output: Any, batch: dict, features: Features) -> dict[str, Tensor]:
        cosines = self.cosines(features, [self.modules["task_keys"][self.names[-1]]])
        return {"pull": self.config.strength * (1 - cosines).mean()}
