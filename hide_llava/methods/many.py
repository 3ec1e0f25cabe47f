"""MAny: task experts and projectors merged without training (Merge Anything for Multimodal Continual Instruction Tuning,
arXiv 2604.14016).

Training of task t: a LoRA and a projector of its own, both from the base model:  y = W x + s B_t A_t x,  Δ_t = s B_t A_t.
Language side. Of every linear, the update that answers every task's inputs as that task's own update did, in least squares:
    M = argmin Σ_t E_{x of task t} ‖M x − Δ_t x‖² + λ ‖M‖²  =  (Σ_t Δ_t S_t)(G + λ I)⁻¹,  S_t = E x xᵀ,  G = Σ_t S_t
which is folded into W. After a task G ← G + S_t, and the rows A_t S_t [rank, d_in] are kept; no data and no past S_t is read
again. As recursive least squares M_t = M_{t−1} + (Δ_t − M_{t−1}) S_t (G_t + λ I)⁻¹ is the same M, the ridge being there from the
start. M itself is never formed: it is [s B_1 | s B_2 | …] times the kept rows times (G + λ I)⁻¹, of rank T · rank at most.
Perception side. The outputs P_t of the tasks' projectors are mixed for each sample,
    Σ_t w_t P_t(v),  w = softmax(cos(f, p_t) / τ)
f: the CLIP embedding of its image; p_t, the prototype: the mean of f over task t's training images. A sample without an image
needs no projector.

Written from the paper's description of it, its abstract and two summaries; neither all of its formulas nor its code were
at hand. Not known from there, so chosen here, default values included:
    ridge        λ in units of the mean of G's diagonal, so that it does not depend on how large the inputs are
    inputs       own: x as the model with the task's own expert and projector sees it; base: as the base model does
    share        of a task's records, evenly spaced, that S_t is measured on
    balance      tasks: S_t is a mean over tokens, so every task counts alike; records: times its number of records
    scale, merged_rank   M times a factor, and only its leading singular directions; as they are: M itself
    temperature  τ; a task without a single image has w_t = 0
M is the optimum for inputs that stay as they were measured; those of a layer change when layers below it are merged.
With a frozen projector only the language side is at work; scripts/compare_methods.sh compares it so.
G is quadratic in the width: q, k and v share one, so do gate and up, and still it is 22 GB at 7B in fp32 (32 layers of three
matrices of 4096² and one of 11008²), in the host memory of every process, with every stage and every checkpoint. Solving
with it takes 20 TFLOP in fp64 on the CPU, in every process and before every evaluation.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
from peft.tuners.lora import LoraLayer
from pydantic import Field
from torch import Tensor

from hide_llava.adapters.anchors import Anchors, similarities
from hide_llava.adapters.consolidation import rescaled
from hide_llava.adapters.core import Core, LoraSpec
from hide_llava.adapters.fused import source
from hide_llava.adapters.gradients import evenly, input_moments
from hide_llava.errors import UserError
from hide_llava.methods.base import Context, Features, Route, Task, register
from hide_llava.methods.cost import Cost, Pass
from hide_llava.methods.experts import IndependentExperts
from hide_llava.settings import Inference, Strength


def solved(rows: Tensor, gram: Tensor, ridge: float) -> Tensor:
    """rows (G + λ I)⁻¹ [r, d] fp64, λ = ridge · mean of G's diagonal; of rows [r, d] and G [d, d].

    Raises:
        UserError: G + λ I is not positive definite in fp64.
    """
    total = gram.to(torch.float64, copy=True)
    mean = float(total.diagonal().mean())
    total.diagonal().add_(ridge * mean if mean > 0 else 1.0)  # inputs that are all zero have rows of zero
    factor, wrong = torch.linalg.cholesky_ex(total)
    if int(wrong):
        raise UserError(f"method.ridge={ridge:g}: the moments of a linear's inputs cannot be inverted; give a larger one.")
    return torch.cholesky_solve(rows.double().T, factor).T


def truncated(a: Tensor, b: Tensor, rank: int) -> Tensor:
    """B' [d_out, r] with B' A = the leading `rank` singular directions of B A; A [r, d_in], B [d_out, r]."""
    return rescaled(a, b, lambda values: (torch.arange(len(values), device=values.device) < rank).to(values))


@register
class Many(IndependentExperts):
    name = "many"
    labels = ("from the paper's description",)
    reads_logits = False
    merged = "routed-merged"  # of one inference: the engine deletes it

    class Config(IndependentExperts.Config):
        ridge: Strength[Inference[float]] = Field(1e-4, gt=0)  # λ, in units of the mean of G's diagonal
        scale: Inference[float] = Field(1.0, gt=0)  # of M, when it is folded
        merged_rank: Inference[int | None] = Field(None, ge=1)  # of M, its leading singular directions; None: all
        temperature: Inference[float] = Field(0.1, gt=0)  # τ, of the softmax over projectors
        inputs: Literal["own", "base"] = "own"  # x of S_t: own (with the task's expert and projector) | base (with neither)
        share: float = Field(0.2, gt=0, le=1)  # of a task's records, evenly spaced, that S_t is measured on
        balance: Literal["tasks", "records"] = "tasks"  # tasks: all alike | records: each as many times as it has records

    def __init__(self, config: Any, core: Core, tasks: list[Task]):
        super().__init__(config, core, tasks)
        self.mixes = config.projector == "per_task"
        self.needs = frozenset({"clip_image"}) if self.mixes else frozenset()

    def setup(self) -> None:
        super().setup()
        self.gram: dict[str, Tensor] = {}  # first linear of those with one input → G [d_in, d_in] fp32, in host memory
        self.rows: dict[str, Tensor] = {}  # linear → A_t S_t of all finished tasks [T · rank, d_in] fp64, in host memory
        self.prototypes = Anchors()
        self.gathering = False  # the current task's prototype is still a sum of this process
        self.bare = False  # while S_t is measured: the base model alone

    def linears(self) -> dict[str, LoraLayer]:
        """The linears of the current expert, in order."""
        return {path: layer for path, _, layer in self.core.layers(self.adapter)}

    # ---- training ----------------------------------------------------------------------------------------------------
    def before_task(self, task: Task, context: Context) -> None:
        super().before_task(task, context)
        if self.mixes:
            self.prototypes.start(task.index, context.widths["clip_image"], self.core.llava.device)
            self.gathering = True

    def loss(self, output: Any, batch: dict, features: Features) -> dict[str, Tensor]:
        """No extra term; gathers the task's prototype, once per sample seen in training."""
        if self.mixes:
            self.prototypes.add(self.learned[-1], features.image[features.has_image])
        return {}

    def after_task(self, task: Task, context: Context) -> None:
        super().after_task(task, context)
        if self.mixes:
            self.prototypes.sums[task.index], self.prototypes.counts[task.index] = self.prototypes.reduced(task.index)
            self.gathering = False
        self.measure(context)

    def measure(self, context: Context) -> None:
        """Add S_t of the task just trained to G, and A_t S_t to the kept rows."""
        layers, records = self.linears(), len(context.train_data)
        factor = records if self.config.balance == "records" else 1

        def take(path: str, moment: Tensor) -> None:
            moment = moment * factor
            rows = (layers[path].lora_A[self.adapter].weight.detach().double() @ moment.double()).cpu()
            self.rows[path] = torch.cat([self.rows[path], rows]) if path in self.rows else rows
            if first_reader(path, layers) == path:
                self.gram[path] = self.gram[path] + moment.cpu() if path in self.gram else moment.cpu()

        own, self.bare = self.core.projector_state(), self.config.inputs == "base"
        if self.bare:
            self.core.load_projector(self.initial_projector)
        input_moments(self.core, self.adapter, context, evenly(records, self.config.share), take, of_tokens=True)
        if self.bare:
            self.core.load_projector(own)
        self.bare = False

    # ---- inference ---------------------------------------------------------------------------------------------------
    def prepare_inference(self) -> None:
        super().prepare_inference()
        layers = self.linears()
        rank = self.config.rank * len(self.learned)
        with torch.random.fork_rng():  # a new adapter draws values, which are replaced
            self.core.add(self.merged, LoraSpec(rank=rank, alpha=float(rank), dropout=0.0), list(layers))
        for path, layer in layers.items():
            a, b = self.factors(path, layer, layers)
            layer.lora_A[self.merged].weight.data.copy_(a)
            layer.lora_B[self.merged].weight.data.copy_(b)
        self.core.fold([self.merged], [self.config.scale], "delta_sum", [])

    @torch.no_grad()
    def factors(self, path: str, layer: LoraLayer, layers: dict[str, LoraLayer]) -> tuple[Tensor, Tensor]:
        """A [T · rank, d_in] and B [d_out, T · rank] with B A = M of one linear, fp64, in host memory."""
        a = solved(self.rows[path], self.gram[first_reader(path, layers)], self.config.ridge)
        b = torch.cat([layer.scaling[name] * layer.lora_B[name].weight.double().cpu() for name in self.experts], 1)
        return a, b if self.config.merged_rank is None else truncated(a, b, self.config.merged_rank)

    def route(self, batch: dict, features: Features, train: bool) -> Route:
        if train:
            return Route([] if self.bare else [self.adapter])
        if not self.mixes:
            return Route()
        weights = self.mixture(features)
        named = {expert: weights[:, i] for i, expert in enumerate(self.experts)}
        return Route(projectors=named, weights=named)

    def mixture(self, features: Features) -> Tensor:
        """w [B, T] fp32, rows sum to 1. Alike for all tasks where no task had an image: no projector has moved then."""
        means = [self.prototypes.mean(task) for task in self.learned]
        nothing = torch.zeros_like(features.image[0])
        logits = similarities(features.image, [nothing if p is None else p for p in means]) / self.config.temperature
        unknown = [p is None for p in means]
        if any(unknown) and not all(unknown):
            logits = logits.masked_fill(torch.tensor(unknown, device=logits.device), -torch.inf)
        return logits.softmax(1)

    # ---- what it costs, and its state --------------------------------------------------------------------------------
    def cost(self) -> Cost:
        share, cost, layers = self.config.share, super().cost(), self.linears()
        look = Pass(f"{share:.0%} of the records, for the moments of the linears' inputs", "task",
                    records=lambda counts: max(1, int(share * counts[-1])))  # fmt: skip
        first = [layer for path, layer in layers.items() if first_reader(path, layers) == path]
        rows = len(self.tasks) * self.config.rank * sum(layer.in_features for layer in layers.values())
        state = {"moments of the linears' inputs, fp32": sum(4 * layer.in_features**2 for layer in first),
                 "rows of the experts times these moments, fp64": 8 * rows}  # fmt: skip
        if self.mixes:
            held = (*self.prototypes.sums.values(), *self.prototypes.counts.values())
            state["a prototype per task"] = len(self.tasks) * sum(t.nbytes for t in held)
        return replace(cost, passes=(look,), state={**cost.state, **state})

    def state(self) -> dict[str, Any]:
        prototypes = self.prototypes.state(self.learned[-1] if self.gathering else None)
        found = {"prototype": prototypes, "gram": self.gram, "rows": self.rows}
        tensors = {f"{kind}.{key}": value for kind, held in found.items() for key, value in held.items()}
        return {**super().state(), **tensors, "gathering": self.gathering}

    def load_state(self, state: dict[str, Any]) -> None:
        super().load_state(state)

        def part(kind: str) -> dict[str, Tensor]:
            return {key.removeprefix(f"{kind}."): state[key] for key in state if key.startswith(f"{kind}.")}

        self.gathering = state["gathering"]
        self.gram, self.rows = part("gram"), part("rows")
        self.prototypes.load(part("prototype"), self.core.llava.device, self.learned[-1] if self.gathering else None)


def first_reader(path: str, layers: dict[str, LoraLayer]) -> str:
    """The first of the adapted linears that read the same input as the linear `path`, under which its G is kept."""
    return source(path) if source(path) in layers else path
