"""SAME: Stabilized Mixture-of-Experts for Multimodal Continual Instruction Tuning (arXiv 2602.01990).

y = W x + s Σ_i ω_i B_i A_i x,  ω = softmax(W_G x) per token. After each task the inputs' C = V Σ Vᵀ (mean of x xᵀ over all
tasks so far, each with the weight of its records, truncated to the share δ of its energy or to `components` directions)
is kept for every linear; from task 2 on it shapes what changes:
    router      ΔW_G ← ΔW_G V g(Σ) Vᵀ + ΔW_G (I − V Vᵀ),   g(σ)_j = min_i σ̃_i / σ̃_j,  σ̃: trailing mean of `window` values
    experts     ΔA   ← ΔA [V (Σ + μ I)^{-1} Vᵀ + (1/μ)(I − V Vᵀ)]
    freezing    expert i is not trained in this task if ũ_i − m̃_i < τ; u: mean ω_i on the new task's data, m: mean
                ω_i |x|² over the earlier tasks, both scaled to [0, 1] over the experts. The highest score always trains
`applies_to: update` transforms the change that the optimizer made; `gradient` what it gets, of which Adam's
normalisation leaves little. The paper's exact g is not public; ours is the published code's without its clamp.

Differences from published code (Prism) and the option that restores them:
    reference: prism       (Σ_j ω_j B_j)(Σ_i ω_i A_i) x; g clamped to [.8, 1.2]; σ = √ of the eigenvalues in both formulas,
                           and δ is a share of the kept directions' sum; gradients are transformed
Not offered: one ω for all tokens and samples of a batch, and at inference softmax(W_G x / E) times a CLIP prototype gate,
the 2 largest of it (an answer would depend on its neighbours); a router's hook in the first task already; masks that
follow a running mean inside the forward and soon leave one expert; a basis from a single micro-batch by one random
projection.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from typing_extensions import Self

from hide_llava.adapters.fused import source
from hide_llava.adapters.observe import observe
from hide_llava.adapters.spec import Targets
from hide_llava.adapters.spectrum import Spectrum, add_all, leading
from hide_llava.adapters.token_gates import per_rank
from hide_llava.distributed import from_main
from hide_llava.methods.base import Context, Task, register
from hide_llava.methods.cost import Cost, Pass, of_task
from hide_llava.methods.moelora import MoELora
from hide_llava.settings import Strength


def router_factors(values: Tensor, window: int, low: float, high: float) -> Tensor:
    """g [K] of the spectrum `values` [K]."""
    smooth = torch.stack([values[max(0, i - window + 1) : i + 1].mean() for i in range(len(values))])
    return (smooth.min() / smooth).clamp(low, high)


def rescale(change: Tensor, basis: Tensor, inside: Tensor, outside: float) -> Tensor:
    """change [.., d] → its part along column j of `basis` [d, K] times inside_j, the rest times `outside`."""
    whole = change.to(basis.dtype)
    return (outside * whole + ((inside - outside) * (whole @ basis)) @ basis.T).to(change.dtype)


def unit_range(values: Tensor) -> Tensor:
    """[M, E] → each row scaled to [0, 1]; a constant row to 0."""
    low, high = values.amin(-1, keepdim=True), values.amax(-1, keepdim=True)
    return (values - low) / (high - low).clamp(min=torch.finfo(values.dtype).tiny)


@register
class Same(MoELora):
    name = "same"

    class Config(MoELora.Config):
        rank: int = Field(64, ge=1)  # of all experts together
        alpha: float = Field(128.0, gt=0)
        targets: Targets = "ffn"
        energy: float = Field(0.9, gt=0, le=1)  # δ, share of the inputs' energy that the directions in use hold
        components: int = Field(64, ge=1)  # directions kept per linear at most
        window: int = Field(3, ge=1)  # values in the trailing mean of σ̃
        mu: Strength[float] = Field(0.9, gt=0)  # μ, damping of the experts' update
        tau: float = Field(0.1, ge=-1, le=1)  # τ, score below which an expert is frozen for a task
        applies_to: Literal["update", "gradient"] = "update"  # what is changed: the optimizer's update | the gradient
        samples: int = Field(256, ge=1)  # records by which a task's inputs and experts are measured
        tokens: int = Field(64, ge=1)  # of each record, evenly spaced, that enter C

        @model_validator(mode="after")
        def _as_prism(self) -> Self:
            if self.reference == "prism":
                if "applies_to" in self.model_fields_set and self.applies_to != "gradient":
                    raise ValueError(f"applies_to={self.applies_to}: reference=prism changes the gradient")
                self.applies_to = "gradient"
            return self

    def setup(self) -> None:
        super().setup()
        self.layers = list(self.core.layers(self.adapter))
        self.spectra: dict[str, Spectrum] = {}
        shape = (len(self.layers), self.config.experts)
        self.importance = torch.zeros(shape, dtype=torch.float64, device=self.core.llava.device)  # Σ over past tasks
        self.training = torch.ones(shape, dtype=torch.bool, device=self.core.llava.device)  # not frozen in this task
        self.steps: list[tuple[torch.nn.Parameter, Tensor]] = []  # parameters before the optimizer's step
        self.factors: dict[str, tuple[Tensor, ...]] = {}  # of `shaping`

    # ---- at task boundaries ------------------------------------------------------------------------------------------
    def before_task(self, task: Task, context: Context) -> None:
        self.training.fill_(True)
        if task.index:
            self.training = self.unfrozen(self.measure(task, context, learn=False)[0])

    def after_task(self, task: Task, context: Context) -> None:
        self.importance += self.measure(task, context, learn=True)[1]

    def measure(self, task: Task, context: Context, learn: bool) -> tuple[Tensor, Tensor]:
        """Mean ω and mean ω |x|² [linears, E] fp64 of a sample of the task; `learn`: its inputs enter the spectra too."""
        places = {path: i for i, (path, _, _) in enumerate(self.layers)}
        used, energy = torch.zeros_like(self.importance), torch.zeros_like(self.importance)
        seen = torch.zeros(len(self.layers), 1, dtype=torch.float64, device=used.device)
        records = len(context.train_data)
        weight = records / min(records, self.config.samples)  # of a sampled record: it stands for so many

        pending: dict[str, Tensor] = {}  # inputs of the record that is being seen, of which C is made together
        now: list[dict] = []

        def take() -> None:
            add_all([self.spectra.setdefault(p, Spectrum(self.config.components)) for p in pending],
                    list(pending.values()), weight)  # fmt: skip
            pending.clear()

        def see(path: str, x: Tensor, batch: dict) -> None:
            if path in pending or (pending and batch is not now[0]):
                take()
            now[:] = [batch]
            x, i = x.flatten(0, 1).float(), places[path]
            weights = self.expert_weights(path, x).double()
            used[i] += weights.sum(0)
            energy[i] += (weights * x.double().square().sum(-1, keepdim=True)).sum(0)
            seen[i] += len(x)
            if learn and source(path) == path:
                rows = torch.linspace(0, len(x) - 1, min(self.config.tokens, len(x)), device=x.device).long()
                pending[path] = x[rows]

        observe(self.core, self.adapter, context, self.config.samples, task.index, see)
        if pending:
            take()
        sums = torch.tensor([[s.count, s.energy] for s in self.spectra.values()], dtype=torch.float64, device=used.device)
        from_main(used, energy, seen, sums, *(t for s in self.spectra.values() for t in (s.basis, s.values)))
        self.factors = {}
        for spectrum, (count, trace) in zip(self.spectra.values(), sums.tolist()):
            spectrum.count, spectrum.energy = count, trace
        return used / seen, energy / seen

    def unfrozen(self, used: Tensor) -> Tensor:
        """[linears, E] bool: the experts that train in the task whose mean ω is `used`."""
        score = unit_range(used) - unit_range(self.importance)
        best = torch.zeros_like(score, dtype=torch.bool).scatter(-1, score.argmax(-1, keepdim=True), True)
        return (score >= self.config.tau) | best

    # ---- every step --------------------------------------------------------------------------------------------------
    def shaped(self, path: str, router: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        """Changes of W_G [E, d] and A [r, d] → what the formulas make of them; as they are before the second task."""
        spectrum = self.spectra.get(source(path))
        if spectrum is None:
            return router, a
        _, basis, router_gains, expert_gains = self.shaping(source(path), spectrum)
        return rescale(router, basis, router_gains, 1.0), rescale(a, basis, expert_gains, 1 / self.config.mu)

    def shaping(self, key: str, spectrum: Spectrum) -> tuple[Tensor, ...]:
        """(Σ, V, g(Σ), (Σ + μ I)^{-1}) of the directions in use: the same for a whole task, so computed once."""
        known = self.factors.get(key)
        if known is not None and known[0] is spectrum.values:
            return known
        prism, mu = self.config.reference == "prism", self.config.mu
        k = leading(spectrum.values, self.config.energy, None if prism else spectrum.energy)
        basis, values = spectrum.basis[:, :k], spectrum.values[:k]
        values = values.sqrt() if prism else values
        factors = router_factors(values, self.config.window, *((0.8, 1.2) if prism else (0.0, 1.0)))
        self.factors[key] = (spectrum.values, basis, factors, 1 / (values + mu))
        return self.factors[key]

    def on_gradients(self, step: int) -> None:
        self.steps = []
        for path, _, layer in self.layers:
            router = self.modules["router"].weight(path)
            a, b = layer.lora_A[self.adapter].weight, layer.lora_B[self.adapter].weight
            if self.config.applies_to == "gradient":
                router.grad, a.grad = self.shaped(path, router.grad, a.grad)
            self.steps += [(p, p.detach().clone()) for p in (router, a, b)]

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        for i, (path, _, _) in enumerate(self.layers):
            (router, router_before), (a, a_before), (b, b_before) = self.steps[3 * i : 3 * i + 3]
            if self.config.applies_to == "update" and source(path) in self.spectra:
                changes = self.shaped(path, router - router_before, a - a_before)
                router.copy_(router_before + changes[0])
                a.copy_(a_before + changes[1])
            keep = per_rank(self.training[i], self.config.rank)
            a.copy_(torch.where(keep[:, None], a, a_before))
            b.copy_(torch.where(keep, b, b_before))
        self.steps = []

    # ---- state -------------------------------------------------------------------------------------------------------
    def cost(self) -> Cost:
        limit = self.config.samples
        after = Pass(f"{limit} records of the task, for its inputs", "task", records=of_task(limit))
        before = replace(after, what=f"{limit} records, for what to freeze", later=True)
        inputs = [layer.in_features for path, _, layer in self.layers if source(path) == path]
        spectra = sum(4 * self.config.components * (width + 1) for width in inputs)
        state = {"principal directions of the inputs, fp32": spectra, "use of the experts": 9 * self.importance.numel()}
        return replace(super().cost(), passes=(after, before), state=state)

    def state(self) -> dict[str, Any]:
        tensors: dict[str, Any] = {"importance": self.importance, "training": self.training}
        for path, spectrum in self.spectra.items():
            tensors |= {f"basis.{path}": spectrum.basis, f"values.{path}": spectrum.values}
        sums = {path: [spectrum.count, spectrum.energy] for path, spectrum in self.spectra.items()}
        return {**tensors, "sums": sums}

    def load_state(self, state: dict[str, Any]) -> None:
        device = self.core.llava.device
        self.importance, self.training = state["importance"].to(device), state["training"].to(device)
        self.spectra, self.factors = {}, {}
        for path, (count, energy) in state["sums"].items():
            spectrum = self.spectra[path] = Spectrum(self.config.components)
            spectrum.count, spectrum.energy = count, energy
            spectrum.basis, spectrum.values = (state[f"{k}.{path}"].to(device) for k in ("basis", "values"))
