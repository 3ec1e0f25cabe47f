"""PASs-MoE: a mixture of LoRA experts that is routed by what its own ranks answer (Hou et al., ACL 2026, arXiv 2601.13020).

On every adapted linear, for every token; E experts of k = rank / E directions a_{i,j} (rows of A) and b_{i,j} (columns of B):
    e_i(x) = 1/k Σ_j (a_{i,j}ᵀ x)²,  π = softmax(e),  y = W x + s Σ_i π_i B_i A_i x,  s = alpha / rank
There is no router: e is the energy of the experts' own rank activations. After task t, over `samples` of its records,
    I_{i,j} ← I_{i,j} + mean over tokens of π_i(x) (a_{i,j}ᵀ x)²,  w = I / max over the linear's directions
and while a later task trains, with a⁰, b⁰ as that task found them,
    L = CE + λ_A Σ w_{i,j} ‖a_{i,j} − a⁰_{i,j}‖² + λ_B Σ w_{i,j} ‖b_{i,j} − b⁰_{i,j}‖²
summed over all linears. Experts are carried from task to task. The gate depends on the token, so nothing can be folded.

Written from the formulas of the paper; its code was not at hand. Ours are: that w is scaled to 1 at its largest (a penalty then
does not depend on how large the inputs are), λ_A, λ_B, and that A starts as peft starts it. `normalise: none` takes w = I.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from hide_llava.adapters.observe import observe
from hide_llava.adapters.route import Apply, BoundGate, RankMap
from hide_llava.adapters.token_gates import per_rank, weighted
from hide_llava.distributed import from_main
from hide_llava.methods.base import Context, Features, Route, Task, register
from hide_llava.methods.cost import Cost, Pass, of_task
from hide_llava.methods.lora import SequentialLora
from hide_llava.settings import DividedRank, Strength


def energy_weights(experts: int, u: Tensor) -> Tensor:
    """π [..., E] of the rank activations u = A x [..., E·k]: the softmax of each expert's mean square, in fp32."""
    return u.float().unflatten(-1, (experts, -1)).square().mean(-1).softmax(-1)


def by_energy(experts: int, u: Tensor) -> Tensor:
    """u = A x [..., E·k] → what B is applied to: each expert's part times its π."""
    return weighted(energy_weights(experts, u).to(u.dtype), u)


class EnergyGate(BoundGate):
    """The gate of all linears: a map of u alone, so that linears with one input share a kernel while answers are written."""

    def __init__(self, experts: int):
        self.experts = experts

    def __call__(self, path: str, layer: nn.Module, x: Tensor) -> RankMap:
        return partial(by_energy, self.experts)

    def bind(self, members: list[tuple[str, Any]]) -> Apply:
        return lambda x, u, read: by_energy(self.experts, u)


@register
class PassMoe(SequentialLora):
    name = "passmoe"
    adapter = "experts"
    labels = ("from the paper",)
    reads_parameters = True
    reads_logits = False

    class Config(DividedRank, SequentialLora.Config):
        rank: int = Field(96, ge=1)  # of all experts together
        alpha: float = Field(192.0, gt=0)
        experts: int = Field(6, ge=1)  # E, in every adapted linear
        strength_a: Strength[float] = Field(1.0, ge=0)  # λ_A, of the penalty on A
        strength_b: Strength[float] = Field(1.0, ge=0)  # λ_B, of the penalty on B
        normalise: Literal["largest", "none"] = "largest"  # w = I / its largest value in the linear | w = I
        samples: int = Field(256, ge=1)  # records by which a task's importance is measured

    def setup(self) -> None:
        self.core.add(self.adapter, self.config)
        self.layers = list(self.core.layers(self.adapter))
        shape, device = (len(self.layers), self.config.rank), self.core.llava.device
        self.importance = torch.zeros(shape, dtype=torch.float64, device=device)  # I, Σ over finished tasks
        self.found: list[tuple[Tensor, Tensor]] = []  # A and B of every linear at the end of the last task

    # ---- at task boundaries ------------------------------------------------------------------------------------------
    def after_task(self, task: Task, context: Context) -> None:
        self.importance += self.measured(task, context)
        self.found = [(a.detach().clone(), b.detach().clone()) for a, b in self.factors()]

    def measured(self, task: Task, context: Context) -> Tensor:
        """Mean over tokens of π (A x)² [linears, rank] fp64, of a sample of the task."""
        places = {path: i for i, (path, _, _) in enumerate(self.layers)}
        total, seen = torch.zeros_like(self.importance), torch.zeros(len(self.layers), 1).to(self.importance)

        def see(path: str, x: Tensor, batch: dict) -> None:
            place = places[path]
            rows = self.layers[place][2].lora_A[self.adapter].weight
            with torch.autocast(x.device.type, enabled=False):
                u = x.flatten(0, -2).float() @ rows.float().T
            weights = per_rank(energy_weights(self.config.experts, u), self.config.rank)
            total[place] += (weights.double() * u.double().square()).sum(0)
            seen[place] += len(u)

        observe(self.core, self.adapter, context, self.config.samples, task.index, see)
        from_main(total, seen)
        return total / seen.clamp(min=1)

    # ---- every step --------------------------------------------------------------------------------------------------
    def factors(self) -> list[tuple[nn.Parameter, nn.Parameter]]:
        """(A [rank, d_in], B [d_out, rank]) of every linear."""
        return [(m.lora_A[self.adapter].weight, m.lora_B[self.adapter].weight) for _, _, m in self.layers]

    def weights(self) -> Tensor:
        """w [linears, rank] fp32."""
        if self.config.normalise == "none":
            return self.importance.float()
        largest = self.importance.amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
        return (self.importance / largest).float()

    def loss(self, output: Any, batch: dict, features: Features) -> dict[str, Tensor]:
        if not self.found:
            return {}
        rows, columns = [], []
        for w, (a, b), (a0, b0) in zip(self.weights(), self.factors(), self.found):
            rows.append((w * (a - a0).square().sum(1)).sum())
            columns.append((w * (b - b0).square().sum(0)).sum())
        return {"rows": self.config.strength_a * torch.stack(rows).sum(),
                "columns": self.config.strength_b * torch.stack(columns).sum()}  # fmt: skip

    def route(self, batch: dict, features: Features, train: bool) -> Route:
        gate: Callable[..., Any] = EnergyGate(self.config.experts)
        return Route([self.adapter], {self.adapter: gate})

    def prepare_inference(self) -> None:
        """Nothing is folded: every gate depends on its token."""

    # ---- what it costs, and its state ---------------------------------------------------------------------------------
    def cost(self) -> Cost:
        limit, size = self.config.samples, self.core.size(self.adapter)
        after = Pass(f"{limit} records of the task, for the importance of its ranks", "task", records=of_task(limit))
        state = {"A and B at the end of a task, fp32": 4 * size, "importance of the ranks": 8 * self.importance.numel()}
        return replace(Cost(live=size), passes=(after,), state=state)

    def state(self) -> dict[str, Any]:
        found = {f"{side}.{i:04d}": pair[k] for i, pair in enumerate(self.found) for k, side in enumerate("AB")}
        return {"importance": self.importance, **found}

    def load_state(self, state: dict[str, Any]) -> None:
        device = self.core.llava.device
        self.importance = state["importance"].to(device)
        count = sum(key.startswith("A.") for key in state)
        self.found = [(state[f"A.{i:04d}"].to(device), state[f"B.{i:04d}"].to(device)) for i in range(count)]
