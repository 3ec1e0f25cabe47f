"""L2P: learning to prompt with a pool (Wang et al., arXiv 2112.08654), in LLaVA.

Input: [BOS, P_{s_1}, …, P_{s_k}, prompt, image, answer],  s_1 … s_k = the k keys of the pool with the largest cos(q, κ_m)
L = CE − λ Σ_{j≤k} cos(q, κ_{s_j})

M prompts P_m [L, d] with keys κ_m, shared by all tasks; each sample selects its own, in training as at inference.

The adaptation to LLaVA is ours: published tables have L2P rows without code. q: frozen CLIP features (`query`). Prompts
start as random word embeddings, because the uniform (−1, 1) of L2P's code is some fifty times as large as LLaMA's.
Not offered: the selection by majority of a batch, with which an answer depends on its neighbours.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from typing_extensions import Self

from hide_llava.methods.base import Features, Route, register
from hide_llava.methods.cost import Cost
from hide_llava.methods.prompt_pool import best, chosen_weights, word_prompts
from hide_llava.methods.prompts import Keyed


@register
class L2P(Keyed):
    name = "l2p"
    reads_logits = False

    class Config(Keyed.Config):
        size: int = Field(10, ge=1)  # M, prompts in the pool
        top_k: int = Field(5, ge=1)  # k, prompts of a sample

        @model_validator(mode="after")
        def _enough_prompts(self) -> Self:
            if self.top_k > self.size:
                raise ValueError(f"top_k={self.top_k}: must be at most size={self.size}")
            return self

    def build(self) -> None:
        if "pool" not in self.modules:
            keys = torch.empty(self.config.size, self.query_width, device=self.core.llava.device).uniform_(-1, 1)
            prompts = word_prompts(self.core, self.config.size, self.config.length)
            self.modules["pool"] = nn.ParameterDict({"prompts": nn.Parameter(prompts), "key": nn.Parameter(keys)})

    def prompt_parameters(self) -> list[nn.Parameter]:
        return list(self.modules["pool"].values())

    def scores(self, features: Features) -> tuple[Tensor, Tensor]:
        """cos(q, κ) [B, M] and the chosen prompts [B, k], best first."""
        cosines = self.cosines(features, list(self.modules["pool"]["key"]))
        return cosines, best(cosines, self.config.top_k)

    def route(self, batch: dict, features: Features, train: bool) -> Route:
        _, chosen = self.scores(features)
        names = [f"prompt-{m + 1:02d}" for m in range(self.config.size)]
        prompts = self.modules["pool"]["prompts"][chosen].flatten(1, 2)
        return Route(prompts=prompts, weights=chosen_weights(chosen, names))

    def cost(self) -> Cost:
        return Cost(prompts=(self.config.top_k * self.config.length,) * 2)

    def loss(self, output: Any, batch: dict, features: Features) -> dict[str, Tensor]:
        cosines, chosen = self.scores(features)
        return {"pull": -self.config.strength * cosines.gather(1, chosen).sum(1).mean()}
