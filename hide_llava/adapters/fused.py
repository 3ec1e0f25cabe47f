"""Answering without peft's wrapper: y = W x + s B (g ⊙ A x) in as few kernels as it takes.

While a token is decoded, every kernel costs its launch, whatever its size. peft's layer and the hooks of a gate launch six to
sixteen for one adapted linear; here the linears that read the same input (query, key and value; gate and up) take one product

    [A_q; A_k; A_v; what the gate reads] x

together, one multiplication by the gate, and each linear adds its B (…) to W x in place. Adapters keep their own dtype, and
the sum is rounded to that of W x once, as peft does it. Training stays with peft's layers, which know dropout and gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn.functional import linear

from hide_llava.adapters.route import Apply, BoundGate, Route, by_token, gated

if TYPE_CHECKING:
    from hide_llava.adapters.core import Core

SAME_INPUT = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}  # these linears read the same x
Member = tuple[str, LoraLayer]  # module name, peft layer


def source(path: str) -> str:
    """The first of the linears that read the same input as the linear `path`."""
    home, _, name = path.rpartition(".")
    return f"{home}.{SAME_INPUT.get(name, name)}"


def fusible(layer: LoraLayer, name: str) -> bool:
    """Whether adapter `name` is y = W x + s B A x: no variant of it (DoRA, …), no bias."""
    return name not in layer.lora_variant and layer.lora_B[name].bias is None


class Shared:
    """What `readers` make of one input together: made when the first asks, let go when the last has asked."""

    def __init__(self, readers: int):
        self.readers, self.left = readers, 0
        self.x: Tensor | None = None
        self.made: Tensor | None = None

    def __call__(self, x: Tensor, make: Callable[[Tensor], Tensor]) -> Tensor:
        if self.x is not x:
            self.x, self.made, self.left = x, make(x), self.readers
        made = self.made
        self.left -= 1
        if not self.left:
            self.x = self.made = None
        return made


class SharedInput:
    """One adapter on the linears that read the same input."""

    def __init__(self, core: Core, name: str, members: list[Member]):
        self.core, self.name, self.members = core, name, members
        self.rank = members[0][1].lora_A[name].weight.shape[0]
        self.route: Route | None = None
        self.read: list[Tensor] = []  # of the gate: [e, d_in] for every member, or nothing
        self.stack: Tensor | None = None
        self.ranks = Shared(len(members))

    def __call__(self, x: Tensor, place: int) -> Tensor:
        """g ⊙ A x [.., r] of the member at `place`."""
        if self.route is not self.core.route:
            self._bind(self.core.route)
        return self.ranks(x, self._gated).select(-2, place)

    def _gated(self, x: Tensor) -> Tensor:
        count = len(self.members)
        if not self.read:
            u = linear(x.to(self.stack.dtype), self.stack).unflatten(-1, (count, self.rank))
            return self.apply(x, u, None)
        with torch.autocast(x.device.type, enabled=False):  # what a gate reads stays in its own precision
            both = linear(x.to(self.stack.dtype), self.stack)
            u, read = both.split([count * self.rank, both.shape[-1] - count * self.rank], -1)
            return self.apply(x, u.unflatten(-1, (count, self.rank)), read.unflatten(-1, (count, -1)))

    def _bind(self, route: Route) -> None:
        """Make ready for the gate of another route; the stack stays if that reads the same tensors."""
        gate = route.gates.get(self.name)
        read = [gate.rows(path) for path, _ in self.members] if isinstance(gate, BoundGate) and gate.reads else []
        if self.stack is None or len(read) != len(self.read) or any(a is not b for a, b in zip(read, self.read)):
            rows = [layer.lora_A[self.name].weight.detach() for _, layer in self.members]
            dtype = max((t.dtype for t in (*rows, *read)), key=lambda dtype: torch.finfo(dtype).bits)
            self.stack = rows[0] if len(rows) == 1 and not read else torch.cat([t.to(dtype) for t in (*rows, *read)])
        self.apply = _apply(gate, self.members)
        self.route, self.read, self.ranks = route, read, Shared(len(self.members))


def _apply(gate: Any, members: list[Member]) -> Apply:
    """(x, u [.., L, r], what the gate read [.., L, e] or None) → gated u, for L linears at once."""
    if gate is None:
        return lambda x, u, read: u
    if isinstance(gate, BoundGate):
        return gate.bind(members)
    if callable(gate):
        return lambda x, u, read: torch.stack(
            [gated(gate(path, layer, x), u.select(-2, i)) for i, (path, layer) in enumerate(members)], -2
        )
    return times(gate)


def times(gate: Tensor) -> Apply:
    """Multiplication by a gate [r], [B, r] or [B, n, r], the same in all linears. It is brought to the dtype once."""
    ready: dict[torch.dtype, Tensor] = {}

    def apply(x: Tensor, u: Tensor, read: Tensor | None) -> Tensor:
        if u.dtype not in ready:
            ready[u.dtype] = by_token(gate, x).unsqueeze(-2).to(u.dtype)
        return u * ready[u.dtype]

    return apply


class FusedLinear(nn.Module):
    """A linear with the adapters that are active on it."""

    def __init__(self, base: nn.Module, parts: list[tuple[SharedInput, int]]):
        super().__init__()
        self.base = base
        self.parts = []
        for shared, place in parts:
            _, layer = shared.members[place]
            self.parts.append((shared, place, layer.lora_B[shared.name].weight.detach().T, layer.scaling[shared.name]))

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        for shared, place, b, scale in self.parts:
            ranks = shared(x, place)
            if y.dtype == ranks.dtype == b.dtype:
                y.view(-1, y.shape[-1]).addmm_(ranks.reshape(-1, ranks.shape[-1]), b, alpha=scale)
            else:
                y.add_(ranks @ b.to(ranks.dtype), alpha=scale)
        return y


class FusedLayers:
    """What stands in the model for each peft layer while it answers, by the adapters that are active."""

    def __init__(self, core: Core, layers: dict[str, LoraLayer]):
        self.core, self.layers = core, layers
        self.shared: dict[tuple[str, str], tuple[SharedInput, dict[str, int]]] = {}
        self.made: dict[tuple[str, ...], dict[str, nn.Module]] = {}

    def __call__(self, active: list[str]) -> dict[str, nn.Module]:
        """Module name → the linear itself, with what is active on it, or peft's layer where it knows more than we do."""
        key = tuple(active)
        if key not in self.made:
            self.made[key] = {path: self._module(path, layer, active) for path, layer in self.layers.items()}
        return self.made[key]

    def _module(self, path: str, layer: LoraLayer, active: list[str]) -> nn.Module:
        here = [name for name in active if name in layer.lora_A]
        if not all(fusible(layer, name) for name in here):
            return layer
        return FusedLinear(layer.get_base_layer(), [self._part(path, n) for n in here]) if here else layer.get_base_layer()

    def _part(self, path: str, name: str) -> tuple[SharedInput, int]:
        key = (name, source(path))
        if key not in self.shared:
            members = [(p, m) for p, m in self.layers.items()
                       if source(p) == key[1] and name in m.lora_A and fusible(m, name)]  # fmt: skip
            ranks = {m.lora_A[name].weight.shape[0] for _, m in members}
            if len(ranks) > 1:  # they do not go into one tensor
                members, key = [(path, self.layers[path])], (name, path)
            self.shared[key] = (SharedInput(self.core, name, members), {p: i for i, (p, _) in enumerate(members)})
        shared, places = self.shared[key]
        return shared, places[path]
