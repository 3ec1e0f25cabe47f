"""DISCO, without its federation: Federated Continual Instruction Tuning (ICCV 2025, arXiv 2503.12897).

Training of task t: a LoRA subspace of its own, alone:  y = W x + s B_t A_t x.
Inference, on every adapted linear:  y = W x + s Σ_{i≤t} w_i B_i A_i x,  w = softmax(cos(f, e_i) / τ)
f is the CLIP text embedding of the sample's question, e_i the identity token of task i: the mean of its questions'
embeddings. That is HiDe with all layers expanded and routed by the text alone, so it is written as that. The other values
of `router` (methods/routers.py) are not DISCO's: they put all weight on one expert.

Published code (MCITlib) differs where this project allows no option: it averages f over the batch, so that an answer
depends on its neighbours; it keeps the sum instead of the mean, in bf16 (the direction is the same but for rounding);
a weight of exactly 0 leaves the block of the call before switched on. Its scale is alpha / (slots · rank); give `alpha`.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from hide_llava.adapters.core import LoraSpec
from hide_llava.adapters.spec import Targets
from hide_llava.methods.base import Task, register
from hide_llava.methods.hide import HiDe, Projector
from hide_llava.methods.routers import Router, RouterOptions
from hide_llava.settings import Inference, Strength


@register
class Disco(HiDe):
    name = "disco"

    class Config(RouterOptions, LoraSpec):
        rank: int = Field(16, ge=1)  # of one subspace
        alpha: float = Field(32.0, gt=0)
        init_std: float | None = Field(0.01, ge=0)
        targets: Targets = "ffn"
        router: Inference[Router] = "anchors"  # anchors (w as above) | nearest_mean | ranpac | oracle: one expert
        router_statistics: Literal["means", "ranpac"] = "means"  # collected in training: means | ranpac (moments too)
        temperature: Strength[Inference[float]] = Field(0.05, gt=0)  # τ, of the softmax over experts
        projector: Projector = "shared"  # shared (trained, carried from task to task) | frozen | per_task (mixed by w)

    def __init__(self, config: Any, core: Any, tasks: list[Task]):
        shape = {name: getattr(config, name) for name in (*LoraSpec.model_fields, *RouterOptions.model_fields)}
        rest = {name: getattr(config, name) for name in ("router", "router_statistics", "temperature", "projector")}
        super().__init__(HiDe.Config(**shape, **rest, image_weight=0.0, text_weight=1.0), core, tasks)

    def setup(self) -> None:
        self.config.expanded_layers = list(range(self.core.num_layers))
        super().setup()
