"""What mixtures of LoRA experts build their gates of: routers, hard choices, one vector per prompt.

A mixture of E experts of rank k is one LoRA of rank E·k with a gate in its rank space:
Σ_i g_i B_i A_i x = B((g ⊗ 1_k) ⊙ A x), A = [A_0; A_1; …], B = [B_0 | B_1 | …].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn.functional import one_hot

from hide_llava.adapters.core import Core
from hide_llava.adapters.route import Apply, BoundGate, RankMap, TokenGate
from hide_llava.data.turns import IGNORE


def per_rank(weights: Tensor, rank: int) -> Tensor:
    """Expert weights [..., E] → gate [..., rank]: each weight repeated for the rank/E dimensions of its expert."""
    return weights.repeat_interleave(rank // weights.shape[-1], -1)


def product_of_sums(weights: Tensor, u: Tensor) -> Tensor:
    """Prism's gate: (Σ_j g_j B_j)(Σ_i g_i A_i) x instead of Σ_i g_i B_i A_i x (docs/PROTOCOLS.md, Methods).

    weights [..., E] and u = A x [..., E·k] → what [B_0 | B_1 | …] is applied to, [..., E·k].
    """
    weights = weights.unsqueeze(-1)
    mixed = (weights * u.unflatten(-1, (weights.shape[-2], -1))).sum(-2, keepdim=True)
    return (weights * mixed).flatten(-2)


def weighted(weights: Tensor, u: Tensor) -> Tensor:
    """Expert weights [..., E] and u = A x [..., E·k] → (weights ⊗ 1_k) ⊙ u, [..., E·k]."""
    return (u.unflatten(-1, (weights.shape[-1], -1)) * weights.unsqueeze(-1)).flatten(-2)


def straight_through(logits: Tensor) -> Tensor:
    """[..., E] → one-hot of the largest logit; its gradient is that of the softmax."""
    soft = logits.softmax(-1)
    return one_hot(logits.argmax(-1), logits.shape[-1]).to(soft.dtype) + (soft - soft.detach())


def top_k_softmax(logits: Tensor, k: int) -> Tensor:
    """[..., E] → softmax over the k largest logits, 0 elsewhere; differentiable in the chosen ones."""
    values, places = logits.topk(k, -1)
    return torch.zeros_like(logits).scatter(-1, places, values.softmax(-1))


class Routers(nn.Module):
    """One bias-free linear map `width(layer)` (default: d_in) → `outputs` for every linear that holds `adapter`, fp32."""

    def __init__(self, core: Core, adapter: str, outputs: int, width: Callable[[LoraLayer], int] | None = None):
        super().__init__()
        self.names, self.linears = {}, nn.ModuleDict()
        for path, _, layer in core.layers(adapter):
            self.names[path] = path.replace(".", "/")  # no dots in module names
            inputs = width(layer) if width else layer.in_features
            self.linears[self.names[path]] = nn.Linear(inputs, outputs, bias=False, device=core.llava.device)

    def forward(self, path: str, x: Tensor) -> Tensor:
        """Logits [..., outputs] of x [..., d_in], in fp32 in training and generation alike."""
        with torch.autocast(x.device.type, enabled=False):
            return self.linears[self.names[path]](x.float())

    def weight(self, path: str) -> Tensor:
        return self.linears[self.names[path]].weight


class PromptView:
    """A layer's input read as one vector per row, from the prompt alone: padding and answer do not count.

    In generation the first call of each layer is the prefill; what was decided then (`once`) holds for every later token.
    Belongs to one route and so to one batch; in training nothing is kept, so recomputation decides the same again.
    """

    def __init__(self, batch: dict[str, Any], train: bool):
        self.mask = batch["attention_mask"].bool()
        if batch.get("labels") is not None:
            self.mask = self.mask & ((batch["labels"] != IGNORE).cumsum(1) == 0)
        self.kept: dict[str, Tensor] | None = None if train else {}

    def once(self, path: str, decide: Callable[[], Tensor]) -> Tensor:
        """What `decide()` says at prefill, for layer `path`."""
        if self.kept is None:
            return decide()
        if path not in self.kept:
            self.kept[path] = decide()
        return self.kept[path]

    def mean(self, x: Tensor) -> Tensor:
        """x [B, n, d] → [B, d] fp32 mean over the prompt's tokens."""
        mask = self.mask.unsqueeze(-1)
        return (x.float() * mask).sum(1) / mask.sum(1).clamp(min=1)

    def first(self, x: Tensor) -> Tensor:
        """x [B, n, d] → [B, d] fp32 of each row's first token."""
        return x[torch.arange(len(x), device=x.device), self.mask.long().argmax(1)].float()


class Mixture(BoundGate):
    """Weights of experts for every token, made of one product with the linear's input.

    alone: the gate of one linear. read: linear → [E, d_in] fp32, the same object at every call. weigh: linears → a map of
    (their input x [B, n, d_in], the products [B, n, L, E]) to weights [B, n, L, E]. combine: (weights, u) → gated u.
    """

    reads = True

    def __init__(
        self,
        alone: TokenGate,
        read: Callable[[str], Tensor],
        weigh: Callable[[list[str]], Callable[[Tensor, Tensor], Tensor]],
        combine: Callable[[Tensor, Tensor], Tensor] = weighted,
    ):
        self.alone, self.rows, self.weigh, self.combine = alone, read, weigh, combine

    def __call__(self, path: str, layer: nn.Module, x: Tensor) -> Tensor | RankMap:
        return self.alone(path, layer, x)

    def bind(self, members: list[tuple[str, Any]]) -> Apply:
        weigh, combine = self.weigh([path for path, _ in members]), self.combine
        return lambda x, u, read: combine(weigh(x, read), u)


class OfPrompt(BoundGate):
    """Weights of experts that are decided from the prompt and hold for the whole answer: `weigh(path, x)` → [B, E]."""

    def __init__(self, weigh: Callable[[str, Tensor], Tensor], rank: int):
        self.weigh, self.rank = weigh, rank

    def __call__(self, path: str, layer: nn.Module, x: Tensor) -> Tensor:
        return per_rank(self.weigh(path, x), self.rank)

    def bind(self, members: list[tuple[str, Any]]) -> Apply:
        held: list[Tensor] = []

        def apply(x: Tensor, u: Tensor, read: Tensor | None) -> Tensor:
            if not held:
                gates = [self(path, layer, x) for path, layer in members]
                held.append(torch.stack(gates, 1).unsqueeze(1).to(u.dtype))  # [B, 1, L, r]
            return u * held[0]

        return apply
