"""EWC: sequential LoRA held near what earlier tasks need (Kirkpatrick et al., arXiv 1612.00796, eq. 3).

L = CE + λ/2 Σ_{i<t} Σ_p F^i_p (θ_p − θ^i_p)²        F^i_p = 1/|D_i| Σ_{n∈D_i} (∂ℓ_n/∂θ_p)², θ^i: at the end of task i
with θ everything that trains (adapter, projector) and ℓ_n the cross-entropy of example n, mean over its answer tokens as
everywhere in published code. (The log-likelihood of the whole answer is their sum: an answer of k tokens would count k²
times as much.)

mode: per_task   The sum over tasks, held as one pair of tensors: a(θ−p)² + b(θ−q)² = (a+b)(θ−μ)² + ab/(a+b)·(p−q)²,
                 μ = (ap+bq)/(a+b). The state does not grow with the tasks.
mode: online     λ/2 Σ_p F_p (θ_p − θ^{t−1}_p)²,  F ← γF + F^{t−1}  (Schwarz et al., arXiv 1805.06370).

The penalty is a term of the loss, so any engine applies it (Prism adds it to `p.grad`, which DeepSpeed's ZeRO-2 leaves
empty: there it trains plain sequential LoRA). fisher_batch > 1 is Prism's estimate, the square of a batch's mean
gradient; it is smaller than the Fisher by about the batch size.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.utils.data import Subset

from hide_llava.adapters.fisher import fisher_diagonal
from hide_llava.adapters.observe import sample
from hide_llava.adapters.probe import without_dropout
from hide_llava.distributed import ranks
from hide_llava.methods.base import Context, Features, Task, register
from hide_llava.methods.cost import Cost, Pass, of_task
from hide_llava.methods.lora import SequentialLora
from hide_llava.settings import Strength


@register
class Ewc(SequentialLora):
    name = "ewc"
    reads_parameters = True
    reads_logits = False

    class Config(SequentialLora.Config):
        strength: Strength[float] = Field(5000.0, ge=0)  # λ, weight of the penalty
        mode: Literal["per_task", "online"] = "per_task"  # per_task (a penalty per past task) | online (one)
        gamma: float = Field(1.0, gt=0, le=1)  # γ, decay of the Fisher per task; online only
        fisher_examples: int | None = Field(None, ge=1)  # drawn uniformly from the task; None: all, one backward each
        fisher_batch: int = Field(1, ge=1)  # examples whose mean gradient is squared; more than 1: as Prism

    def setup(self) -> None:
        self.fisher: list[Tensor] = []  # F, per trained parameter; nothing before the end of the first task
        self.center: list[Tensor] = []  # μ (online: θ of the last task)
        self.offset = torch.zeros(())  # Σ ab/(a+b)·(p−q)², so that the term's value is the sum over tasks

    def trained(self) -> list[nn.Parameter]:
        return [p for group in self.params() for p in group["params"]]

    def loss(self, output: Any, batch: dict, features: Features) -> dict[str, Tensor]:
        if not self.fisher:
            return {}
        terms = [(f * (p - c) ** 2).sum() for f, p, c in zip(self.fisher, self.trained(), self.center)]
        return {"ewc": self.config.strength / 2 * (torch.stack(terms).sum() + self.offset)}

    def after_task(self, task: Task, context: Context) -> None:
        parameters = self.trained()
        with without_dropout(self.core):
            fisher = fisher_diagonal(self.example_losses(context), parameters)
        self.consolidate(fisher, [p.detach().clone() for p in parameters])

    def example_losses(self, context: Context) -> Iterator[Tensor]:
        """ℓ_n of this process's share of the examples."""
        size, (rank, world) = self.config.fisher_batch, ranks()
        count = len(context.train_data)
        places = sample(count, self.config.fisher_examples or count, seed=0)
        batches = [places[i : i + size] for i in range(0, len(places), size)][rank::world]
        mine = Subset(context.train_data, [place for batch in batches for place in batch])
        for batch in context.loader(mine, size):
            yield context.forward(batch).loss

    def consolidate(self, fisher: list[Tensor], now: list[Tensor]) -> None:
        """Add a task with Fisher `fisher` that ended at `now`."""
        if self.config.mode == "online" or not self.fisher:
            past = self.fisher or [torch.zeros_like(f) for f in fisher]
            self.fisher, self.center = [self.config.gamma * a + b for a, b in zip(past, fisher)], now
            return
        for i, (a, p, b, q) in enumerate(zip(self.fisher, self.center, fisher, now)):
            share = b / (a + b).clamp_min(torch.finfo(a.dtype).tiny)
            self.offset = self.offset.to(a) + (a * share * (p - q) ** 2).sum()
            self.fisher[i], self.center[i] = a + b, p + share * (q - p)

    def cost(self) -> Cost:
        limit, numbers = self.config.fisher_examples, sum(p.numel() for p in self.trained())
        words = "every record" if limit is None else f"{limit} records"
        fisher = Pass(f"{words} of the task, for the Fisher", "task", 1, 1, of_task(limit))
        return Cost((fisher,), {"Fisher and centre, fp32, of all that trains": 8 * numbers})

    def state(self) -> dict[str, Any]:
        pairs = {"fisher": self.fisher, "center": self.center}
        return {f"{k}.{i:04d}": t for k, tensors in pairs.items() for i, t in enumerate(tensors)} | {
            "offset": self.offset
        }

    def load_state(self, state: dict[str, Any]) -> None:
        state = {k: v.to(self.core.llava.device) for k, v in state.items() if isinstance(v, Tensor)}
        self.fisher = [state[k] for k in sorted(state) if k.startswith("fisher.")]
        self.center = [state[k] for k in sorted(state) if k.startswith("center.")]
        self.offset = state["offset"]
