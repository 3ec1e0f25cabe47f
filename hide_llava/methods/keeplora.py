"""KeepLoRA: each task learns in the part of a weight's input space that nothing before it uses
(Luo et al., ICLR 2026, arXiv 2601.19659; layer scales: KeepLoRA++, arXiv 2606.16256).

y = W x + s Σ_{i≤t} B_i A_i x,  s = alpha / rank; past experts are frozen, and at inference all are folded into W
M [d_in, k] of every linear: at first the leading input directions of W with the share `weight_energy` of its energy
before task t   A_t = c_l U_rᵀ, frozen; U_r: the `rank` leading left singular vectors of (I − M Mᵀ) Gᵀ,
                G = mean ∂ℓ/∂W_t over the share `share` of the task's records, at the model as it is; B_t = 0
in task t       B_t trains, so that the update reads nothing of an input inside the span of M
after task t    the leading directions of (I − M Mᵀ) X join M until it holds the share `task_energy` of ‖X‖²,
                X: the linear's inputs on these records (features: activations)
c_l grows linearly from `first_scale` in the first decoder layer to 1 in the last: 1 everywhere in KeepLoRA, from 0.2 in
KeepLoRA++. Where M leaves fewer than `rank` directions, the other rows of A_t are 0, and a linear whose inputs are all in
use learns nothing more.

Differences of published code (its part for LLaVA-1.5) and the option that restores each:
    features: gradients         X is the gradient Gᵀ of the finished model instead of the inputs, which it calls activations
    decomposition: randomised   U_r by `torch.svd_lowrank` with no more random directions than it wants (there unseeded)
Not offered: M, G and A in fp16 and gradients that underflow there; W rounded to the model's dtype after every task (here
the update of a task stays its adapter until answers are asked for).
"""

from __future__ import annotations

from typing import Any

from peft.tuners.lora import LoraLayer
from pydantic import Field
from torch import Tensor, nn

from hide_llava.methods.base import register
from hide_llava.methods.residual import ResidualExperts


@register
class KeepLora(ResidualExperts):
    name = "keeplora"
    reads_parameters = True  # the frozen A, to store it

    class Config(ResidualExperts.Config):
        rank: int = Field(32, ge=1)
        alpha: float = Field(8.0, gt=0)
        first_scale: float = Field(1.0, gt=0, le=1)  # c of the first decoder layer; KeepLoRA++: 0.2

    def params(self) -> list[dict[str, Any]]:
        """B of the current expert and the projector; A is frozen."""
        mine: list[nn.Parameter] = [layer.lora_B[self.adapter].weight for layer in self.linears().values()]
        return [{"params": mine, "lr": "adapter"}, *super().params()[1:]]

    def begin(self, path: str, layer: LoraLayer, left: Tensor, right: Tensor) -> None:
        first = self.config.first_scale
        scale = first + (1 - first) * self.depths()[path]
        layer.lora_A[self.adapter].weight.data.copy_(scale * left.T)

    def frozen_rows(self) -> dict[str, Tensor]:
        return {path: layer.lora_A[self.adapter].weight.data for path, layer in self.linears().items()}
