"""A route: which adapters a batch uses, with which gate in their rank space. A value passed along, per sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

RankMap = Callable[[Tensor], Tensor]  # u = A x [B, n, r] → what B is applied to instead, of the same shape
# gate(layer name, peft LoRA layer, its input x [B, n, d_in]) → tensor broadcastable to u, or a map of u
TokenGate = Callable[[str, nn.Module, Tensor], Tensor | RankMap]
# (x [B, n, d_in], u [B, n, L, r], what the gate reads of x [B, n, L, e] or None) → gated u, for L linears with the same input
Apply = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def gated(gate: Tensor | RankMap | None, u: Tensor) -> Tensor:
    """What B is applied to instead of u = A x [B, n, r] or [n, r]: `gate` of one linear, as a token gate returns it."""
    if gate is None:
        return u
    return gate(u).to(u.dtype) if callable(gate) else u * by_token(gate, u).to(u.dtype)


def by_token(gate: Tensor, x: Tensor) -> Tensor:
    """A gate [B, r] beside x [B, n, ..] as [B, 1, r]; any other as it is."""
    return gate.unsqueeze(1) if gate.dim() == 2 and x.dim() == 3 else gate


class BoundGate:
    """A token gate that also says how it is computed for several linears at once, when nothing is trained (fused.py).

    Called like any gate it is one linear's. `reads`: it needs a product with the input, which is taken together with A x.
    """

    reads: bool = False

    def __call__(self, path: str, layer: nn.Module, x: Tensor) -> Tensor | RankMap:
        raise NotImplementedError

    def rows(self, path: str) -> Tensor:
        """[e, d_in] that the input of linear `path` is multiplied with; the same object at every call."""
        raise NotImplementedError

    def bind(self, members: list[tuple[str, Any]]) -> Apply:
        """The gate of the linears `members` (module name, peft layer), which read the same input."""
        raise NotImplementedError


@dataclass
class Route:
    """How one batch passes through the adapters: Σ_i g_i B_i A_i x = B((g ⊗ 1_k) ⊙ A x).

    Attributes:
        active: adapters that are switched on, in the order in which their updates are added.
        gates: adapter name → gate: [r] constant, [B, r] per sample, [B, n, r] per token, or a function of the layer's
            input returning one of these, or a function of u = A x where the gate depends on u. An adapter without a
            gate is a plain LoRA.
        prompts: [B, P, d] vectors inserted after BOS, or None.
        projectors: projector name → weight [B] per sample; the projected image is the weighted sum. None: the one
            projector of the model.
        weights: expert name → [B], only reported (predictions, figures).
    """

    active: list[str] = field(default_factory=list)
    gates: dict[str, Tensor | TokenGate] = field(default_factory=dict)
    prompts: Tensor | None = None
    projectors: dict[str, Tensor] | None = None
    weights: dict[str, Tensor] = field(default_factory=dict)

    @property
    def divisible(self) -> bool:
        """Whether `rows` exists: a gate that is a function may keep what it found in the rows of its prompt."""
        return all(isinstance(gate, Tensor) for gate in self.gates.values())

    def rows(self, kept: Tensor) -> Route:
        """The route of some rows [b] of its batch while they are decoded: prompts and image have been read."""
        gates = {n: g if g.dim() == 1 or len(g) == 1 else g[kept] for n, g in self.gates.items()}
        return Route(list(self.active), gates)
