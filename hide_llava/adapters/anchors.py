"""Anchors: the mean CLIP feature of each task's training data."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from hide_llava.distributed import all_reduce, from_main, is_main


class Anchors:
    """Per-task feature means as fp64 sums and int64 counts; tasks are added on demand, without an upper limit."""

    def __init__(self) -> None:
        self.sums: dict[int, Tensor] = {}
        self.counts: dict[int, Tensor] = {}

    def start(self, task: int, width: int, device: torch.device) -> None:
        """Begin gathering for `task`: zero sum, zero count."""
        self.sums[task] = torch.zeros(width, dtype=torch.float64, device=device)
        self.counts[task] = torch.zeros((), dtype=torch.int64, device=device)

    def add(self, task: int, features: Tensor) -> None:
        """Add [n, d] features of task `task`."""
        self.sums[task] += features.detach().double().sum(0)
        self.counts[task] += len(features)

    def mean(self, task: int) -> Tensor | None:
        """[d] fp32, or None while nothing was seen."""
        if not self.counts[task]:
            return None
        return (self.sums[task] / self.counts[task]).float()

    def reduced(self, task: int) -> tuple[Tensor, Tensor]:
        """Sum and count of `task` over all processes (copies)."""
        total, count = self.sums[task].clone(), self.counts[task].clone()
        all_reduce(total, count)
        return total, count

    def state(self, gathering: int | None = None) -> dict[str, Tensor]:
        """gathering: the task that is still gathered, whose sum is stored over all processes; None: there is none."""
        pairs = {f"{t}.sum": v for t, v in self.sums.items()} | {f"{t}.count": v for t, v in self.counts.items()}
        if gathering is not None:
            pairs[f"{gathering}.sum"], pairs[f"{gathering}.count"] = self.reduced(gathering)
        return {k: v.cpu() for k, v in pairs.items()}

    def load(self, state: dict[str, Tensor], device: torch.device | str, gathering: int | None = None) -> None:
        """Inverse of `state`: the main process goes on from the total of the task that is gathered, others from 0."""
        self.sums = {int(k.split(".")[0]): v.to(device) for k, v in state.items() if k.endswith(".sum")}
        self.counts = {int(k.split(".")[0]): v.to(device) for k, v in state.items() if k.endswith(".count")}
        if gathering is not None and not is_main():
            self.start(gathering, len(self.sums[gathering]), device)


class ReferenceAnchors(Anchors):
    """The reference's arithmetic, for parity: a running mean whose random start counts as one sample.

    S = anchor · n + Σ f;  n ← n + B;  anchor ← S / n, with n in bf16 (it saturates: 256 at B = 1) and the
    anchor in `dtype` (bf16 in the published runs).
    """

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.dtype = dtype

    def start(self, task: int, width: int, device: torch.device) -> None:
        self.sums[task] = (0.1 * torch.randn(width)).to(device, self.dtype)
        self.counts[task] = torch.ones((), dtype=torch.bfloat16, device=device)

    def add(self, task: int, features: Tensor) -> None:
        total = self.sums[task] * self.counts[task] + features.detach().to(self.dtype).sum(0)
        self.counts[task] = self.counts[task] + len(features)
        self.sums[task] = (total / self.counts[task]).to(self.dtype)

    def mean(self, task: int) -> Tensor | None:
        return self.sums[task].float()

    def reduced(self, task: int) -> tuple[Tensor, Tensor]:
        """Each process has a mean of its own while a task trains; what is stored and answers is the main one's, as published."""
        total, count = self.sums[task].clone(), self.counts[task].clone()
        from_main(total, count)
        return total, count

    def load(self, state: dict[str, Tensor], device: torch.device | str, gathering: int | None = None) -> None:
        """Every process goes on from what is stored: there is no total."""
        super().load(state, device)


def similarities(features: Tensor, anchors: list[Tensor]) -> Tensor:
    """Cosine of [B, d] features with each of E anchors [d] → [B, E] fp32."""
    return cosine_similarity(features.float().unsqueeze(1), torch.stack(anchors).float().unsqueeze(0), dim=-1)
