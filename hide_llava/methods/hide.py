"""HiDe-LLaVA: Hierarchical Decoupling for Continual Instruction Tuning of Multimodal LLMs (ACL 2025, arXiv 2503.12941).

Training of task t: expert t alone, on every decoder linear:  y = W x + s B_t A_t x.
Inference after task t, for a sample with CLIP image embedding f_v and CLIP text embedding f_i:
    lower layers     y = W x + s Σ_{i≤t} ε B_i A_i x                     the fused expert Ē = Σ ε_i E_i
    expanded layers  y = W x + s Σ_{i≤t} w_i B_i A_i x                   w = softmax(r / τ)
    r_i = α cos(f_v, a^v_i) + β cos(f_i, a^i_i)                          anchors a_i: mean features of task i's data

Differences from published code and the option that restores each (docs/PROTOCOLS.md, Methods):
    fusion: factor_sum        (Σ B_i)(Σ A_i) with cross terms, as the authors' code computes it
    routing: softmax_all      softmax over all `slots`, unlearned slots at random anchors included
    routing: top1             Prism's hard choice
    anchors: reference        running mean with a random first sample and a bf16 count
    text_only: reference      text-only samples: an all-zero image counts, the question loses its first line

Other routers, of methods/routers.py, which put all weight on one expert; `routing` and τ are those of `anchors`:
    router: nearest_mean      the task whose mean features are nearest
    router: ranpac            ridge regression on random features, with statistics that training collects if it is told to
    router: oracle            the question's own task, which is told

What only studies use, both told the task id of a question:
    routing: oracle           w_i = 1 for the question's own task, as router: oracle
    routing: wrong            w_i = 1 for the task learned after it; after the last one the first (its own, while it is alone)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from typing_extensions import Self

from hide_llava.adapters.anchors import Anchors, ReferenceAnchors
from hide_llava.adapters.core import LoraSpec
from hide_llava.adapters.folding import MODES
from hide_llava.adapters.projectors import restore_projectors, stored_projectors
from hide_llava.backbones.base import Backbone
from hide_llava.errors import UserError
from hide_llava.methods.base import Context, Features, Method, MethodConfig, Route, Task, register
from hide_llava.methods.cost import Cost
from hide_llava.methods.decided import Decision, separate_layers
from hide_llava.methods.routers import NEEDS, Router, RouterOptions, Statistics, similarity
from hide_llava.settings import Inference

Routing = Literal["softmax_learned", "softmax_all", "top1", "oracle", "wrong"]
Projector = Literal["shared", "frozen", "per_task"]


@register
class HiDe(Method):
    name = "hide"
    reads_logits = False

    class Config(RouterOptions, LoraSpec):
        rank: int = Field(8, ge=1)  # of one expert; the papers state rank × number of tasks
        alpha: float = Field(16.0, gt=0)
        init_std: float | None = Field(0.01, ge=0)
        fusion: Inference[Literal[MODES]] = "delta_sum"  # delta_sum (the paper) | factor_sum (authors' code)
        fusion_weight: Inference[float | None] = Field(1.0, ge=0)  # ε; None: 1/t, the mean of the t experts learned so far
        router: Inference[Router] = "anchors"  # anchors (w as `routing` says) | nearest_mean | ranpac | oracle
        router_statistics: Literal["means", "ranpac"] = "means"  # collected in training: means | ranpac (moments too)
        routing: Inference[Routing] = "softmax_learned"  # w: softmax_learned | softmax_all (slots) | top1 | oracle | wrong
        image_weight: Inference[float] = Field(0.5, ge=0)  # α, weight of the image's cosine
        text_weight: Inference[float] = Field(0.5, ge=0)  # β, weight of the text's cosine
        temperature: Inference[float] = Field(0.1, gt=0)  # τ, of the softmax over experts
        expanded_layers: Inference[list[int] | Literal["auto"]] = [-1]  # decoder layers that are routed | auto (from CKA)
        projector: Projector = "shared"  # shared (trained, carried from task to task) | frozen | per_task (mixed by w)
        anchors: Literal["exact", "reference"] = "exact"  # exact (means) | reference (the authors' running mean)
        text_only: Literal["text", "reference"] = "text"  # text (routed by text alone) | reference
        slots: Inference[int | None] = Field(None, ge=1)  # of softmax_all; None: as many as tasks (experts beyond get weight 0)

        @model_validator(mode="after")
        def _some_weight(self) -> Self:
            if self.image_weight + self.text_weight == 0:
                raise ValueError(f"image_weight={self.image_weight}: must not be 0 together with text_weight")
            return self

    @classmethod
    def is_oracle(cls, options: dict[str, Any]) -> bool:
        return super().is_oracle(options) or options.get("routing") == "wrong"

    @classmethod
    def decided_by_studies(cls, options: dict[str, Any], run: Path) -> dict[str, Decision]:
        return {"expanded_layers": separate_layers(run)} if options.get("expanded_layers") == "auto" else {}

    @classmethod
    def unfit(cls, options: MethodConfig, family: type[Backbone]) -> str | None:
        if getattr(options, "text_only", None) == "reference" and not family.recorded:
            return "text_only=reference repeats what the authors' code does on LLaVA-1.5; set method.text_only=text"
        return super().unfit(options, family)

    def __init__(self, config: Any, core: Any, tasks: list[Task]):
        super().__init__(config, core, tasks)
        self.needs = NEEDS | {"zero_image"} if config.text_only == "reference" else NEEDS
        self.slots = config.slots or len(tasks)
        kind = ReferenceAnchors if config.anchors == "reference" else Anchors
        moments = config.random_features if config.router_statistics == "ranpac" else None
        self.statistics = Statistics(kind, config.text_only == "reference", moments)
        self.image_anchors, self.text_anchors = self.statistics.image, self.statistics.text
        self.learned: list[int] = []  # finished tasks and the current one, in order
        self.slot_anchors: dict[str, Tensor] = {}  # softmax_all: anchors of unlearned slots
        self.current: int | None = None

    @staticmethod
    def expert(task: int) -> str:
        return f"expert-{task + 1:02d}"

    @property
    def experts(self) -> list[str]:
        return [self.expert(task) for task in self.learned]

    def setup(self) -> None:
        self.expanded = self.core.layer_indices(self.config.expanded_layers)
        self.initial_projector = self.core.projector_state()

    # ---- training --------------------------------------------------------------------------------------------------
    def before_task(self, task: Task, context: Context) -> None:
        self.current = task.index
        self.core.add(self.expert(task.index), self.config)
        self.statistics.start(task.index, context.widths, self.core.llava.device)
        if task.index not in self.learned:
            self.learned.append(task.index)
        if self.config.projector == "per_task":
            self.core.load_projector(self.initial_projector)

    def params(self) -> list[dict[str, Any]]:
        groups = [{"params": self.core.parameters_of(self.expert(self.current)), "lr": "adapter"}]
        if self.config.projector != "frozen":
            groups.append({"params": list(self.core.projector.parameters()), "lr": "projector"})
        return groups

    def adapters(self) -> list[str]:
        return [self.expert(self.current)]

    def loss(self, output: Any, batch: dict, features: Features) -> dict[str, Tensor]:
        """No extra term; gathers the anchors, once per sample seen in training."""
        self.statistics.add(self.current, features, batch)
        return {}

    def after_task(self, task: Task, context: Context) -> None:
        self.statistics.finish(task.index)
        if self.config.projector == "per_task":
            self.core.projectors[self.expert(task.index)] = self.core.projector_state()

    def cost(self) -> Cost:
        size, tasks = self.core.size(self.expert(self.current)), len(self.tasks)
        state = self.statistics.sizes(tasks)
        if self.config.projector == "per_task":
            state["a projector per task"] = tasks * self.core.projector_bytes()
        live = tasks * size * len(self.expanded) // self.core.num_layers
        return Cost(state=state, kept=(tasks - 1) * size, live=live)

    # ---- inference -------------------------------------------------------------------------------------------------
    def prepare_inference(self) -> None:
        experts = self.experts
        epsilon = 1 / len(experts) if self.config.fusion_weight is None else self.config.fusion_weight
        weights = [epsilon] * len(experts)
        self.core.fold(experts, weights, self.config.fusion, self.expanded)
        self.ranks = torch.tensor([self.core.peft.peft_config[e].r for e in experts])
        self.routed = ["routed"] if self.core.concatenate("routed", experts, self.expanded) else []
        self.statistics.prepare(self.config, self.learned)

    def route(self, batch: dict, features: Features, train: bool) -> Route:
        if train:
            return Route([self.expert(self.current)])
        weights = self.routing_weights(features, batch.get("task"))
        named = {self.expert(t): weights[:, i] for i, t in enumerate(self.learned)}
        gate = weights.repeat_interleave(self.ranks.to(weights.device), dim=1)  # one gate value per rank of each expert
        projectors = named if self.config.projector == "per_task" else None
        gates = dict.fromkeys(self.routed, gate)  # no expanded layer: everything is folded, nothing is gated
        return Route(self.routed, gates, projectors=projectors, weights=named)

    def routing_weights(self, features: Features, task: int | None = None) -> Tensor:
        """w [B, number of learned tasks] fp32 (paper: w = softmax(r / τ)); rows sum to 1 unless softmax_all."""
        if self.config.routing in ("oracle", "wrong") or self.config.router == "oracle":
            weights = torch.zeros(len(features.text), len(self.learned), device=features.text.device)
            further = self.config.routing == "wrong"
            weights[:, (self.learned.index(task) + further) % len(self.learned)] = 1.0
            return weights
        if self.config.router != "anchors":
            chosen = self.statistics.choose(self.config, features, self.learned)
            return torch.nn.functional.one_hot(chosen, len(self.learned)).float()
        logits = self.similarity(features, *self._anchors()) / self.config.temperature
        if self.config.routing == "top1":
            chosen = logits.argmax(1)
            return torch.nn.functional.one_hot(chosen, logits.shape[1]).float()
        weights = logits.softmax(1)[:, : len(self.learned)]
        return torch.nn.functional.pad(weights, (0, len(self.learned) - weights.shape[1]))

    def similarity(self, features: Features, image: list[Tensor | None], text: list[Tensor]) -> Tensor:
        """r [B, E] = α cos(f_v, a^v) + β cos(f_i, a^i); without an image, the text cosine alone."""
        return similarity(features, image, text, self.config.image_weight, self.config.text_weight)

    def _anchors(self) -> tuple[list[Tensor | None], list[Tensor]]:
        image, text = self.statistics.means(self.learned)
        if self.config.routing == "softmax_all":
            image = (image + self._unlearned("image", self.image_anchors.sums[self.learned[0]]))[: self.slots]
            text = (text + self._unlearned("text", text[0]))[: self.slots]
        return image, text

    def _unlearned(self, kind: str, like: Tensor) -> list[Tensor]:
        """Anchors of the slots that are not learned: imported ones, or 0.1 · N(0, 1) drawn from a fixed seed."""
        stored = self.slot_anchors.get(kind)
        if stored is None:
            seed = torch.Generator().manual_seed(0 if kind == "image" else 1)
            stored = 0.1 * torch.randn(self.slots, like.shape[-1], generator=seed)
        elif self.slots > len(stored):
            raise UserError(f"method.slots={self.slots}: the imported checkpoint has {len(stored)} slots with anchors; it takes "
                            "no more.")  # fmt: skip
        return [stored[i].to(like.device) for i in range(self.slots) if i not in self.learned]

    # ---- state -----------------------------------------------------------------------------------------------------
    def state(self) -> dict[str, Any]:
        tensors = self.statistics.state(self.current)
        tensors |= {f"slot_anchor.{k}": v for k, v in self.slot_anchors.items()}
        tensors |= stored_projectors(self.core)
        gathering = self.statistics.gathering
        return {**tensors, "learned": list(self.learned), "current": self.current, "gathering": gathering}

    def load_state(self, state: dict[str, Any]) -> None:
        self.learned, self.current = list(state["learned"]), state["current"]
        self.statistics.load(state, self.current, state["gathering"], self.core.llava.device)
        slots = {k: v for k, v in state.items() if k.startswith("slot_anchor.")}
        self.slot_anchors = {k.removeprefix("slot_anchor."): v for k, v in slots.items()}
        restore_projectors(self.core, state)
