"""Model merging: one expert per task, trained alone from the base model, all merged into one without data or training.

Each combination is upstream peft's `add_weighted_adapter` of that name, in weights w, applied to every linear (`cat` is
formed in fp32 here; peft rounds the others' factors to the base model's dtype, 0.2 % in bf16):
    cat              Δ = Σ w s B_i A_i, exactly: task arithmetic on the updates (Ilharco et al., arXiv 2212.04089)
    linear           on factors: Δ = (Σ √(ws) B_i)(Σ √(ws) A_i); has cross terms B_i A_j
    magnitude_prune  as linear, of each factor only the fraction `density` with the largest magnitude
    ties             as magnitude_prune; then per element only the values of the majority's sign, and their mean
                     (Yadav et al., arXiv 2306.01708)
    dare_linear      as linear, each element kept with probability `density` and divided by it (Yu et al., arXiv 2311.03099)
    dare_ties        the same before the sign vote
    svd, …_svd       the same on the updates s B_i A_i instead of the factors, cut back to the rank of one expert
Default w: 1 where the combination averages by itself (ties), 1 / number of tasks elsewhere. The projector stays the
base model's: the experts must be independent of each other.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field

from hide_llava.methods.base import register
from hide_llava.methods.experts import TaskExperts
from hide_llava.settings import Inference, Searched

DENSE = ("cat", "linear", "svd")  # these take no density
SPARSE = ("magnitude_prune", "ties", "dare_linear", "dare_ties")
COMBINATIONS = (*DENSE, *SPARSE, *(f"{name}_svd" for name in SPARSE))


@register
class Merge(TaskExperts):
    name = "merge"
    merged = "routed-merged"  # of one inference: the engine deletes it

    class Config(TaskExperts.Config):
        projector: Literal["frozen"] = "frozen"  # the base model's
        combination: Inference[Literal[COMBINATIONS]] = "linear"  # how the experts become one, see above
        weight: Annotated[Inference[float | None], Searched((0.3, 0.5, 1.0))] = Field(
            None, gt=0
        )  # w, of every expert; None: see above
        density: Inference[float] = Field(0.2, gt=0, le=1)  # fraction of values that survive
        seed: Inference[int] = Field(0, ge=0)  # of the random drop

    def prepare_inference(self) -> None:
        how = self.config.combination
        weight = self.config.weight or (1.0 if "ties" in how else 1.0 / len(self.learned))
        if how == "cat":  # peft would round the factors to the base's dtype on the way
            self.core.fold(self.experts, [weight] * len(self.learned), "delta_sum", [])
            return
        with torch.random.fork_rng():
            torch.manual_seed(self.config.seed)
            self.core.combine(
                self.merged,
                self.experts,
                [weight] * len(self.learned),
                how,
                None if how in DENSE else self.config.density,
            )
        self.core.fold([self.merged], [1.0], "delta_sum", [])
