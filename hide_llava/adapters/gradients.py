"""What a sample of a task's data says of each adapted linear: the mean gradient by its weight, or the moments of its input.

One record at a time, without dropout, unpadded, with the adapters that the method routes by. A gradient is taken from the
linear's input x and the gradient δ of its output, ∂ℓ/∂W = Σ_tokens δ xᵀ, so the frozen weight need not be trainable and may be
packed. At 7B the gradients of all linears are 26 GB in fp32; on a GPU only as many decoder layers are looked at in one pass
over the sample as fit into half of its free memory, and further passes look at the others. The numbers do not depend on it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor
from torch.utils.data import Subset

from hide_llava.adapters.core import Core
from hide_llava.adapters.fused import source
from hide_llava.adapters.probe import without_dropout
from hide_llava.distributed import all_reduce, least, ranks
from hide_llava.precision import full_precision

Take = Callable[[str, Tensor], None]
ROOM = 0.5  # of a GPU's free memory that the statistics of one pass may take


def evenly(count: int, share: float) -> list[int]:
    """Places of `share` of `count` records, at least one, at equal distances, the first and the last among them."""
    return torch.linspace(0, count - 1, max(1, int(count * share))).long().tolist()


def weight_gradients(core: Core, adapter: str, context: Any, places: list[int], take: Take) -> None:
    """Call `take(path, G [d_out, d_in] fp32)` for every linear with `adapter`, one after another.

    G: mean over the records at `places` of the task's data of ∂ℓ/∂W, ℓ the mean cross-entropy of a record's answer tokens.
    With several processes each reads its share, and all of them get the same mean.
    """
    layers = {path: layer for path, _, layer in core.layers(adapter)}
    for paths in _groups(core, adapter, lambda layer: (layer.out_features, layer.in_features)):
        sums = _zeros(core, {path: (layers[path].out_features, layers[path].in_features) for path in paths})
        for batch in _mine(context, places):
            seen: list[tuple[str, Tensor, Tensor]] = []
            with _watched({path: layers[path] for path in paths}, lambda *what, seen=seen: seen.append(what)):
                with without_dropout(core), torch.enable_grad():
                    loss = context.forward(batch, loss_only=True).loss
            found = torch.autograd.grad(loss, [output for _, _, output in seen], allow_unused=True)
            for (path, x, _), gradient in zip(seen, found):
                if gradient is not None:  # a linear that this record's answer does not depend on
                    sums[path] += _product(gradient, x)
        _hand_out(sums, dict.fromkeys(sums, len(places)), take)


@torch.no_grad()
def input_moments(
    core: Core, adapter: str, context: Any, places: list[int], take: Take, of_tokens: bool = False
) -> None:
    """Call `take(path, C [d_in, d_in] fp32)` for every linear with `adapter`: C = mean over records of Σ_tokens x xᵀ.

    of_tokens: C = mean of x xᵀ over the tokens of all these records, E x xᵀ. Linears with the same input have one C.
    Processes share the work as in `weight_gradients`.
    """
    layers = {path: layer for path, _, layer in core.layers(adapter)}
    for paths in _groups(core, adapter, lambda layer: (layer.in_features, layer.in_features)):
        first = [path for path in paths if source(path) == path or source(path) not in layers]
        sums = _zeros(core, {path: (layers[path].in_features,) * 2 for path in first})
        tokens = dict.fromkeys(first, 0)

        def see(
            path: str, x: Tensor, output: Tensor, sums: dict[str, Tensor] = sums, tokens: dict[str, int] = tokens
        ) -> None:
            sums[path] += _product(x, x)
            tokens[path] += x[..., 0].numel()

        with _watched({path: layers[path] for path in first}, see), without_dropout(core):
            for batch in _mine(context, places):
                context.forward(batch, loss_only=True)

        def each(path: str, moment: Tensor, paths: list[str] = paths) -> None:
            for other in paths:
                if path in (other, source(other)):
                    take(other, moment)

        _hand_out(sums, _of_all(tokens, core.llava.device) if of_tokens else dict.fromkeys(first, len(places)), each)


def _groups(core: Core, adapter: str, shape: Callable[[LoraLayer], tuple[int, int]]) -> Iterator[list[str]]:
    """The linears, in order, in lots of whole decoder layers whose fp32 statistics of `shape` fit into the memory."""
    lots: dict[int, list[tuple[str, LoraLayer]]] = {}
    for path, index, layer in core.layers(adapter):
        lots.setdefault(index, []).append((path, layer))
    sizes = [sum(4 * a * b for a, b in (shape(layer) for _, layer in lot)) for lot in lots.values()]
    device = core.llava.device
    at_once = least(max(1, int(min(len(sizes), _room(device) / max(sizes)))), device)  # the lots are summed over processes
    names = [[path for path, _ in lot] for lot in lots.values()]
    for start in range(0, len(names), at_once):
        yield [path for lot in names[start : start + at_once] for path in lot]


def _room(device: torch.device) -> float:
    """Bytes that the statistics of one pass may take. Memory that torch holds and does not use counts as free."""
    if device.type != "cuda":
        return float("inf")
    free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return ROOM * free


def _zeros(core: Core, shapes: dict[str, tuple[int, int]]) -> dict[str, Tensor]:
    return {path: torch.zeros(shape, device=core.llava.device) for path, shape in shapes.items()}


def _mine(context: Any, places: list[int]) -> Iterator[dict]:
    """This process's share of the records, one at a time."""
    rank, world = ranks()
    return context.loader(Subset(context.train_data, places[rank::world]), 1)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Σ_tokens left rightᵀ of [.., d] and [.., e] → [d, e], in fp32."""
    with torch.autocast(left.device.type, enabled=False), full_precision():
        return left.detach().flatten(0, -2).float().T @ right.detach().flatten(0, -2).float()


def _of_all(counts: dict[str, int], device: torch.device) -> dict[str, int]:
    """The counts of all processes together, at least 1 each."""
    total = torch.tensor(list(counts.values()), device=device)
    all_reduce(total)
    return dict(zip(counts, total.clamp(min=1).tolist()))


def _hand_out(sums: dict[str, Tensor], counts: dict[str, int], take: Take) -> None:
    """Call `take` with the sum over all processes divided by the count; each sum is let go before the next is formed."""
    for path in list(sums):
        total = sums.pop(path)
        all_reduce(total)
        take(path, total / counts[path])


@contextlib.contextmanager
def _watched(layers: dict[str, LoraLayer], see: Callable[[str, Tensor, Tensor], None]) -> Iterator[None]:
    """Call `see(path, input, output)` in every forward of these linears. Outputs get a gradient where it is enabled."""

    def hook(path: str) -> Callable[..., None]:
        def watch(layer: LoraLayer, args: tuple[Tensor, ...], output: Tensor) -> None:
            if torch.is_grad_enabled() and not output.requires_grad:
                output.requires_grad_(True)  # nothing below it trains
            see(path, args[0], output)

        return watch

    handles = [layer.register_forward_hook(hook(path)) for path, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
