"""MoELoRA as in CoIN (NeurIPS 2024, arXiv 2403.08350): a token-wise mixture of LoRA experts.

On every adapted linear, for every token:  y = W x + s Σ_i g_i B_i A_i x,  g = softmax(W_g x),  s = α / r.
E experts of rank r/E. Cross-entropy only: no balance term and nothing against forgetting; experts and routers are
carried from task to task. A ~ N(0, 0.01²), B = 0. The gate depends on the token, so nothing can be folded.

Differences from published code:
    reference: prism    (Σ_j g_j B_j)(Σ_i g_i A_i) x, with E² cross terms and squared gates, as Prism's code computes it
Dropout: one mask for all experts, and the router reads the undropped input. (CoIN draws one mask per expert, Prism's
router reads the dropped-out input: equal to ours only without dropout.)
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

from pydantic import Field
from torch import Tensor, nn

from hide_llava.adapters.route import RankMap
from hide_llava.adapters.token_gates import Mixture, Routers, per_rank, product_of_sums, weighted
from hide_llava.methods.base import Features, Route, register
from hide_llava.methods.cost import Cost
from hide_llava.methods.lora import SequentialLora
from hide_llava.settings import DividedRank


@register
class MoELora(SequentialLora):
    name = "moelora"
    adapter = "experts"

    class Config(DividedRank, SequentialLora.Config):
        rank: int = Field(128, ge=1)  # r, of all experts together
        alpha: float = Field(256.0, gt=0)
        init_std: float | None = Field(0.01, ge=0)
        experts: int = Field(8, ge=1)  # E, in every adapted linear
        reference: Literal["none", "prism"] = "none"  # none (the paper) | what published code computes, see above

    def setup(self) -> None:
        self.core.add(self.adapter, self.config)
        self.modules["router"] = Routers(self.core, self.adapter, self.config.experts)

    def params(self) -> list[dict[str, Any]]:
        return [*super().params(), {"params": list(self.modules["router"].parameters()), "lr": "adapter"}]

    def expert_weights(self, path: str, x: Tensor) -> Tensor:
        """g [..., E] of layer inputs x [..., d_in]."""
        return self.modules["router"](path, x).softmax(-1)

    def gate(self, path: str, layer: nn.Module, x: Tensor) -> Tensor | RankMap:
        weights = self.expert_weights(path, x)
        if self.config.reference == "prism":
            return partial(product_of_sums, weights)
        return per_rank(weights, self.config.rank)

    def route(self, batch: dict, features: Features, train: bool) -> Route:
        if train:
            return Route([self.adapter], {self.adapter: self.gate})
        combine = product_of_sums if self.config.reference == "prism" else weighted
        gate = Mixture(self.gate, self.modules["router"].weight, self.weigh, combine)
        return Route([self.adapter], {self.adapter: gate})

    def weigh(self, paths: list[str]) -> Callable[[Tensor, Tensor], Tensor]:
        """Of the router's logits [..., L, E], for the linears `paths`."""
        return lambda x, logits: logits.softmax(-1)

    def cost(self) -> Cost:
        routers = sum(p.numel() for p in self.modules["router"].parameters())
        return Cost(routers=routers, live=self.core.size(self.adapter))

    def prepare_inference(self) -> None:
        """Nothing is folded: every gate depends on its token."""
