"""O-LoRA: a LoRA per task in a subspace of its own (Wang et al., arXiv 2310.14152).

y = W x + s Σ_{i≤t} B_i A_i x,  A_i, B_i frozen for i < t, s = alpha / rank of one task
L = CE + λ Σ_modules Σ_{i<t} ‖A_t A_iᵀ‖      norm: fro2  squared Frobenius (the paper)    norm: l1  Σ |·| (all published code)

Differences of published code and the option that restores each:
    norm: l1              authors, MCITlib, Prism; λ: 0.5, 0.05, 0.5. The authors' second term (λ2, 0 by default) is left out
    forward_past: false   MCITlib, Prism: task t trains without the past experts, which answer together with it later
    alpha                 MCITlib and Prism divide by the rank of all tasks: give alpha / number of tasks
MCITlib's penalty also moves the past A_i, which it neither freezes nor detaches; that is a defect and not offered.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from hide_llava.methods.base import Features, Route, register
from hide_llava.methods.cost import Cost
from hide_llava.methods.experts import SummedExperts
from hide_llava.settings import Strength

NORMS = {"fro2": lambda product: product.square().sum(), "l1": lambda product: product.abs().sum()}


@register
class OLora(SummedExperts):
    name = "olora"
    reads_parameters = True
    reads_logits = False

    class Config(SummedExperts.Config):
        strength: Strength[float] = Field(0.5, ge=0)  # λ, weight of the orthogonality term
        norm: Literal["fro2", "l1"] = "fro2"  # of A_t A_iᵀ: fro2 | l1
        forward_past: bool = True  # past experts are present while the new one trains

    def route(self, batch: dict, features: Features, train: bool) -> Route:
        if train and not self.config.forward_past:
            return Route([self.adapter])
        return super().route(batch, features, train)

    def cost(self) -> Cost:
        """The extra loss: A_t A_iᵀ for T − 1 past experts, and the gradient of A_t."""
        cost, rank, past = super().cost(), self.config.rank, len(self.tasks) - 1
        inputs = sum(layer.in_features for _, _, layer in self.core.layers(self.adapter))
        return replace(cost, past=cost.kept * self.config.forward_past, extra=4 * rank * rank * past * inputs)

    def loss(self, output: Any, batch: dict, features: Features) -> dict[str, Tensor]:
        *past, current = self.experts
        if not past:
            return {}
        terms = []
        for _, _, layer in self.core.layers(current):
            others = torch.cat([layer.lora_A[name].weight for name in past])
            terms.append(NORMS[self.config.norm](layer.lora_A[current].weight @ others.T))
        return {"orthogonality": self.config.strength * torch.stack(terms).sum()}
