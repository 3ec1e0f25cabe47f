"""Octopus: each task once as sequential LoRA, then again apart from what earlier tasks learned, by gradients of its own data
(CVPR 2026, arXiv 2605.14938: history-free gradient orthogonalisation).

Task i, its records D_i:
stage 1   y = W x + s B A x, cross-entropy alone on all of D_i; (A, B) go on from stage 1 of task i − 1, and end as θ'_i
stage 2   y = W x + s Σ_{j<i} B_j A_j x + s B A x on a fixed sample of D_i; (A, B) go on from θ'_i, and end as (A_i, B_i)
          L = CE + λ1 Σ_linears |⟨B / (‖B‖ + ε), Nᵀ⟩| + λ2 Σ_linears ‖B‖,   N = A Gᵀ / (‖A Gᵀ‖ + ε), a constant of the loss
          G = Σ_{p=1}^{i−1} mean ∂ℓ/∂W at W + s Σ_{j≤p} B_j A_j, over the first `gradient_records` records of D_i
answers   y = W x + s Σ_{j≤i} B_j A_j x, folded into W; there is no router
Norms are Frobenius norms, not squared; s = alpha / rank, ε = 1e-8; λ1 = λ2 = 0 in the first task. No record and no gradient of
an earlier task is kept: of the past there are the experts, and θ' of the last task.

Written from the paper's description and a public reproduction; the authors' code was not at hand. Both stages are one training
run, of D_i and then the sample, each with a learning rate schedule and an optimizer of its own; the run's steps are divided
between them by their records, so less than one batch of D_i may be left out. ℓ is the mean over a record's tokens, one record
at a time, where a reproduction may take batches. Dropout is not known; 0.05 is the reproduction's.

G is dense. It is made one decoder layer after another where memory is short, and held in the model's dtype in host memory, which
is page-locked beside a GPU: 17 GB for each process at 7B in bf16, as sizes are rounded up to powers of two. In stage 2 it passes
through the device once an optimizer step, linear by linear; A Gᵀ changes with A, so it cannot be kept instead. A resumed task
computes G again.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from hide_llava.adapters.gradients import weight_gradients
from hide_llava.adapters.observe import sample
from hide_llava.methods.base import Context, Features, Route, Task, register
from hide_llava.methods.cost import Cost, Pass
from hide_llava.methods.experts import SummedExperts
from hide_llava.settings import PerTask, Strength

FIRST = "first-stage"  # the adapter that holds θ', as stage 1 of the last task left it
EPS = 1e-8


def direction(a: Tensor, gradient: Tensor) -> Tensor:
    """N [r, d_out] fp32 = A Gᵀ / (‖A Gᵀ‖ + ε) of a linear: A [r, d_in], G [d_out, d_in], moved to where A is."""
    product = a.detach().float() @ gradient.to(a.device, non_blocking=True).float().T
    return product / (torch.linalg.vector_norm(product) + EPS)


def overlap(b: Tensor, normal: Tensor) -> Tensor:
    """|⟨B / (‖B‖ + ε), Nᵀ⟩|, a scalar in [0, 1]: B [d_out, r], N [r, d_out]."""
    return (b / (torch.linalg.vector_norm(b) + EPS) * normal.T).sum().abs()


@register
class Octopus(SummedExperts):
    name = "octopus"
    labels = ("from the paper's description and a public reproduction",)
    reads_parameters = True
    reads_logits = False

    class Config(SummedExperts.Config):
        rank: int = Field(48, ge=1)
        alpha: float = Field(96.0, gt=0)
        projector: Literal["shared", "frozen"] = "frozen"  # shared (trained, carried from task to task) | frozen
        orthogonality: Strength[float] = Field(0.02, ge=0)  # λ1, weight of the overlap with the gradients
        shrinkage: Strength[float] = Field(0.01, ge=0)  # λ2, weight of the norms of B
        task_shrinkage: PerTask[Annotated[float, Field(ge=0)]] = {}  # task id → λ2 of that task; default: shrinkage
        subset: int | None = Field(None, ge=1)  # records of a task for stage 2, at most; None: all
        task_subset: PerTask[Annotated[int, Field(ge=1)]] = {}  # task id → at most so many of that task; default: subset
        subset_seed: int = Field(42, ge=0)  # of the draw of these records
        gradient_records: int = Field(256, ge=1)  # of a task, the first ones, that G is the gradient of

    def setup(self) -> None:
        super().setup()
        self.sizes: list[int] = []  # records of the current task's two stages
        self.part = 0  # 0: stage 1, 1: stage 2
        self.first: list[Tensor] = []  # in stage 2: θ' of the current task
        self.prefix: int | None = None  # while gradients are taken: how many experts are active
        self.gradients: dict[str, Tensor] = {}  # linear → G [d_out, d_in], in host memory, in the model's dtype
        self.directions: dict[str, Tensor] = {}  # linear → N of the optimizer step at work

    # ---- data --------------------------------------------------------------------------------------------------------
    def wanted(self, task: str, count: int) -> int:
        """Records for stage 2 of a task with `count` records."""
        most = self.config.task_subset.get(task, self.config.subset)
        return count if most is None else min(count, most)

    def train_data(self, task: Task, records: Any, context: Context) -> Any:
        """The whole task, and behind it the sample of stage 2."""
        from datasets import concatenate_datasets

        places = sample(len(records), self.wanted(task.id, len(records)), self.config.subset_seed)
        self.sizes = [len(records), len(places)]
        return concatenate_datasets([records, records.select(places)])

    def parts(self) -> list[int]:
        return self.sizes

    # ---- at task boundaries ------------------------------------------------------------------------------------------
    def before_task(self, task: Task, context: Context) -> None:
        super().before_task(task, context)
        self.part, self.first = 0, []
        self.directions.clear()
        self.gradients.clear()
        if FIRST not in self.core.names():
            self.core.add(FIRST, self.config)
        else:
            for theirs, mine in zip(self.core.parameters_of(FIRST), self.core.parameters_of(self.adapter)):
                mine.data.copy_(theirs.data)
        if task.index and context.loader is not None:  # else there are only shapes: `plan`
            self.look(context)

    def look(self, context: Context) -> None:
        """G of every linear: a pass over the records for every number of past experts, from the first alone to all of them."""
        dtype, on_gpu = self.core.llava.dtype, self.core.llava.device.type == "cuda"
        whole = self.sizes[0] if self.sizes else len(context.train_data)
        places = list(range(min(self.config.gradient_records, whole, len(context.train_data))))

        def take(path: str, gradient: Tensor) -> None:
            gradient = gradient.cpu()
            if path in self.gradients:
                gradient += self.gradients[path].float()
            self.gradients[path] = gradient.to(dtype).pin_memory() if on_gpu else gradient.to(dtype)

        for prefix in range(1, len(self.learned)):
            self.prefix = prefix
            weight_gradients(self.core, self.adapter, context, places, take)
        self.prefix = None

    def begin_part(self, part: int) -> None:
        """Stage 2 goes on from θ', which the next task will need as it is."""
        self.part = part
        self.first = [p.detach().clone() for p in self.core.parameters_of(self.adapter)]

    def after_task(self, task: Task, context: Context) -> None:
        if not self.part:  # so few steps that there was no second stage
            self.begin_part(1)
        for parameter, value in zip(self.core.parameters_of(FIRST), self.first):
            parameter.data.copy_(value)
        self.first = []
        self.gradients.clear()
        self.directions.clear()

    def adapters(self) -> list[str]:
        return [self.adapter, FIRST]

    # ---- training ----------------------------------------------------------------------------------------------------
    def route(self, batch: dict, features: Features, train: bool) -> Route:
        if not train:
            return Route()
        if self.prefix is not None:
            return Route(self.experts[: self.prefix])
        return Route(self.experts if self.part else [self.adapter])

    def loss(self, output: Any, batch: dict, features: Features) -> dict[str, Tensor]:
        if not (self.part and self.gradients):
            return {}
        overlaps, norms = [], []
        for path, _, layer in self.core.layers(self.adapter):
            b = layer.lora_B[self.adapter].weight
            if path not in self.directions:  # once a step, for all of its micro-batches
                self.directions[path] = direction(layer.lora_A[self.adapter].weight, self.gradients[path])
            overlaps.append(overlap(b, self.directions[path]))
            norms.append(torch.linalg.vector_norm(b))
        shrinkage = self.config.task_shrinkage.get(self.tasks[self.learned[-1]].id, self.config.shrinkage)
        return {
            "orthogonality": self.config.orthogonality * torch.stack(overlaps).sum(),
            "shrinkage": shrinkage * torch.stack(norms).sum(),
        }

    def after_step(self, step: int) -> None:
        self.directions.clear()

    # ---- what it costs, and its state ----------------------------------------------------------------------------------
    def cost(self) -> Cost:
        """Of stage 2, in which the past experts are active and A Gᵀ is computed; in stage 1 there is neither. A Gᵀ is computed
        once a step, and counted with every micro-batch of it."""
        cost, config = super().cost(), self.config
        layers = [layer for _, _, layer in self.core.layers(self.adapter)]
        entries = sum(layer.in_features * layer.out_features for layer in layers)
        again = Pass("the records of stage 2, trained a second time", "epoch", 1, 1,
                     lambda counts: self.wanted(self.tasks[len(counts) - 1].id, counts[-1]))  # fmt: skip
        look = Pass(f"{config.gradient_records} records for every earlier task, for the gradients", "task", 1, 1,
                    lambda counts: (len(counts) - 1) * min(config.gradient_records, counts[-1]), later=True)  # fmt: skip
        return replace(cost, passes=(again, look), kept=cost.kept + self.core.size(self.adapter),
                       extra=2 * config.rank * entries)  # fmt: skip

    def state(self) -> dict[str, Any]:
        """Of a task at work in its second stage also θ', which no stage folder holds yet."""
        state = {**super().state(), "part": self.part}
        return state | {f"first.{i:04d}": value for i, value in enumerate(self.first)}

    def load_state(self, state: dict[str, Any]) -> None:
        super().load_state(state)
        self.part, device = state["part"], self.core.llava.device
        self.first = [state[key].to(device) for key in sorted(state) if key.startswith("first.")]
        self.directions.clear()
