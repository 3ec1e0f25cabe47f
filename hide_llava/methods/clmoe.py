"""CL-MoE: Dual Momentum Mixture-of-Experts for Continual Visual Question Answering (CVPR 2025, arXiv 2503.00413).

E LoRA experts per adapted linear, an instance gate G^I(x) = softmax(W_g x) for every token, and a task gate G^T made of
routing statistics. With n_i(t) = how often expert i is among the K largest of G^I on task t's tokens:
    training     y = W x + s Σ_i G^I_i(x) B_i A_i x
    after task t G^T_i(t) = n_i(t) / Σ_{top K} n_j(t) for the K most used experts, else 0
                 θ_i ← λ_i θ_i^{t−1} + (1 − λ_i) φ_i     θ^{t−1}, φ: expert i before and after training on task t
    inference    y = W x + s Σ_i (β G^I_i(x) + (1 − β) G^T_i) B_i A_i x
λ_i is read from the table `momentum` by the role of expert i: top-K of earlier tasks and of t (shared), of earlier tasks
only (old), of t only (new), or of none (neither). Our table keeps what earlier tasks use and lets the new task's own
experts learn. The paper's G^T(t) knows the task of a question; without its id, G^T is the mean over the learned tasks.
Statistics come from one pass over `samples` records after the task.

Differences from published code and the option that restores them (no public code runs both routers or the merge):
    reference: script      inference by G^I alone, as all public code; merge by the public script's rule: .3 for experts
                           that were counted for an earlier task and never for t, .7 for all others. The script itself
                           changes nothing, because no parameter's name begins as it expects; that is not offered
    task_gate: oracle      G^T(t) of the question's own task
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from typing_extensions import Self

from hide_llava.adapters.observe import observe
from hide_llava.adapters.token_gates import Mixture, per_rank
from hide_llava.distributed import from_main
from hide_llava.methods.base import Context, Features, Route, Task, register
from hide_llava.methods.cost import Cost, Pass, of_task
from hide_llava.methods.moelora import MoELora
from hide_llava.settings import Inference, Searched

MOMENTUM = {"shared": 0.7, "old": 0.7, "new": 0.3, "neither": 0.7}
SCRIPT = {"shared": 0.7, "old": 0.3, "new": 0.7, "neither": 0.7}


@register
class ClMoe(MoELora):
    name = "clmoe"

    class Config(MoELora.Config):
        reference: Literal["none", "script"] = "none"
        top_k: int = Field(2, ge=1)  # K, experts that count as a task's own
        beta: Annotated[Inference[float], Searched((0.25, 0.75, 1.0))] = Field(
            0.5, ge=0, le=1
        )  # β, share of the instance gate at inference
        momentum: dict[str, Annotated[float, Field(ge=0, le=1)]] = MOMENTUM  # λ by role
        task_gate: Inference[Literal["mean", "oracle"]] = "mean"  # mean (of the learned tasks) | oracle
        samples: int = Field(256, ge=1)  # records of a task whose tokens are counted

        @model_validator(mode="after")
        def _experts_and_momentum(self) -> Self:
            if self.top_k > self.experts:
                raise ValueError(f"top_k={self.top_k}: must be at most experts={self.experts}")
            if self.momentum.keys() != MOMENTUM.keys():
                raise ValueError(f"momentum={self.momentum}: needs a value for each of shared, old, new, neither")
            if self.reference == "script":
                if self.momentum not in (MOMENTUM, SCRIPT):
                    raise ValueError(
                        f"momentum={self.momentum}: reference=script has its own: "
                        "shared 0.7, old 0.3, new 0.7, neither 0.7"
                    )
                if self.task_gate != "mean":
                    raise ValueError(f"task_gate={self.task_gate}: reference=script answers without a task gate")
                if self.beta != type(self).model_fields["beta"].default:
                    raise ValueError(f"beta={self.beta}: reference=script answers without a task gate, so with none of its share")
                self.momentum = dict(SCRIPT)
            return self

    def setup(self) -> None:
        super().setup()
        self.usage: dict[int, Tensor] = {}  # task → n [linears, E] int64
        self.before: dict[str, tuple[Tensor, Tensor]] = {}  # θ^{t−1}: A, B of each linear
        self.places = {path: i for i, (path, _, _) in enumerate(self.core.layers(self.adapter))}

    def before_task(self, task: Task, context: Context) -> None:
        self.before = {}
        if task.index:
            for path, _, layer in self.core.layers(self.adapter):
                pair = (layer.lora_A[self.adapter].weight, layer.lora_B[self.adapter].weight)
                self.before[path] = tuple(p.detach().to("cpu", copy=True) for p in pair)

    # ---- after a task ------------------------------------------------------------------------------------------------
    def after_task(self, task: Task, context: Context) -> None:
        self.usage[task.index] = self.count(task, context)
        if task.index:
            self.merge(self.momenta(task.index))
        self.before = {}

    def count(self, task: Task, context: Context) -> Tensor:
        """n [linears, E] of the current experts on a sample of the task."""
        experts = self.config.experts
        counts = torch.zeros(len(self.places), experts, dtype=torch.int64, device=self.core.llava.device)

        def see(path: str, x: Tensor, batch: dict) -> None:
            chosen = self.expert_weights(path, x).topk(self.config.top_k, -1).indices
            counts[self.places[path]] += torch.bincount(chosen.flatten(), minlength=experts)

        observe(self.core, self.adapter, context, self.config.samples, task.index, see)
        from_main(counts)
        return counts

    def serves(self, task: int) -> Tensor:
        """[linears, E] bool: the experts that count as task's own."""
        usage = self.usage[task]
        if self.config.reference == "script":
            return usage > 0
        top = usage.topk(self.config.top_k, -1).indices
        return torch.zeros_like(usage, dtype=torch.bool).scatter(-1, top, True)

    def momenta(self, task: int) -> Tensor:
        """λ [linears, E] of the merge after `task`."""
        new = self.serves(task)
        old = torch.stack([self.serves(t) for t in self.usage if t < task]).any(0)
        table = {role: torch.full(new.shape, value, device=new.device) for role, value in self.config.momentum.items()}
        by_new = torch.where(new, table["new"], table["neither"])
        return torch.where(old, torch.where(new, table["shared"], table["old"]), by_new)

    @torch.no_grad()
    def merge(self, momenta: Tensor) -> None:
        """θ_i ← λ_i θ_i^{t−1} + (1 − λ_i) φ_i in every linear; routers stay those of the new task."""
        for path, _, layer in self.core.layers(self.adapter):
            keep = per_rank(momenta[self.places[path]], self.config.rank)
            a, b = layer.lora_A[self.adapter].weight, layer.lora_B[self.adapter].weight
            for parameter, old, share in zip((a, b), self.before[path], (keep[:, None], keep)):
                parameter.copy_(share * old.to(parameter.device) + (1 - share) * parameter)

    # ---- routing -----------------------------------------------------------------------------------------------------
    def task_gates(self, tasks: list[int]) -> Tensor:
        """G^T [linears, E], the mean over `tasks`."""
        gates = []
        for task in tasks:
            values, top = self.usage[task].float().topk(self.config.top_k, -1)
            gates.append(
                torch.zeros_like(self.usage[task], dtype=torch.float).scatter(-1, top, values / values.sum(-1, True))
            )
        return torch.stack(gates).mean(0)

    def route(self, batch: dict, features: Features, train: bool) -> Route:
        if train or self.config.reference == "script":
            return super().route(batch, features, train)
        tasks = [batch["task"]] if self.oracle else sorted(self.usage)
        of_task = self.task_gates(tasks)
        gate = Mixture(
            partial(self.dual_gate, of_task), self.modules["router"].weight, partial(self.weigh_dual, of_task)
        )
        return Route([self.adapter], {self.adapter: gate})

    def weigh_dual(self, task_gates: Tensor, paths: list[str]) -> Callable[[Tensor, Tensor], Tensor]:
        """As `dual_gate`, of the router's logits [..., L, E] for the linears `paths`."""
        beta = self.config.beta
        constant = (1 - beta) * torch.stack([task_gates[self.places[path]] for path in paths])  # a list as index is copied there
        return lambda x, logits: torch.add(constant, logits.softmax(-1), alpha=beta)

    def dual_gate(self, task_gates: Tensor, path: str, layer: nn.Module, x: Tensor) -> Tensor:
        beta, of_task = self.config.beta, task_gates[self.places[path]]
        return per_rank(beta * self.expert_weights(path, x) + (1 - beta) * of_task, self.config.rank)

    # ---- state -------------------------------------------------------------------------------------------------------
    def cost(self) -> Cost:
        limit, counts = self.config.samples, len(self.places) * self.config.experts
        usage = Pass(f"{limit} records of the task, for the experts' use", "task", records=of_task(limit))
        state = {"how often each expert was used, per task": 8 * len(self.tasks) * counts}
        return replace(super().cost(), passes=(usage,), state=state)

    def state(self) -> dict[str, Any]:
        return {f"usage.{task}": counts for task, counts in self.usage.items()}

    def load_state(self, state: dict[str, Any]) -> None:
        device = self.core.llava.device
        self.usage = {int(k.split(".")[1]): v.to(device) for k, v in state.items() if k.startswith("usage.")}
