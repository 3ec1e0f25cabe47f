"""Folding: experts whose weight does not depend on the input become part of the base weight, once.

`delta_sum`  W + Σ_i ε_i s_i B_i A_i             (the paper's fusion, Ē = Σ ε_i E_i)
`factor_sum` W + s (Σ_i ε_i B_i)(Σ_j A_j)        (the reference's code: cross terms B_i A_j included)

The sum is formed in fp32 and rounded once. The original weights are *kept* (13 GB for the lower 31 layers of a bf16 7B), because
W + Δ − Δ is not W in floating point: unfolding copies them back, bit for bit. They stay on the GPU while half of its
memory is left for answering, and go to host memory beyond (`place`).

In bf16 a weight has eight significant bits, so that an update of less than about 0.2 % of it is rounded away, not by chance
but always in the same direction. How much of an update the rounded weight holds is therefore measured,

    kept = ⟨round(W + Δ) − W, Δ⟩ / ‖Δ‖²,

and a linear in which it is below ENOUGH is not folded: its update stays one low-rank adapter (`Core.fold`).
"""

from __future__ import annotations

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor

from hide_llava.errors import UserError
from hide_llava.precision import full_precision

ENOUGH = 0.99  # of an update; random weights with an update of 1 % of W keep 1.000 in bf16, of 0.5 % 0.987, of 0.1 % 0.55
MODES = ("delta_sum", "factor_sum")
LEFT = 0.5  # of a GPU's memory must stay free beside the copies that are kept on it


Factors = tuple[Tensor, Tensor]


def low_rank(factors: list[Factors], weights: list[float], scales: list[float], mode: str) -> Factors:
    """A [r, d_in] and B [d_out, r] in fp32 with B A = the fused update.

    delta_sum stacks the experts (r is the sum of their ranks), factor_sum adds them (r is theirs).

    Raises:
        UserError: unknown mode, or `factor_sum` over experts of different rank or scale.
    """
    pairs = [(a.float(), b.float()) for a, b in factors]
    if mode == "delta_sum":
        scaled = [w * s * b for (_, b), w, s in zip(pairs, weights, scales)]
        return torch.cat([a for a, _ in pairs]), torch.cat(scaled, dim=1)
    if mode == "factor_sum":
        if len({a.shape[0] for a, _ in pairs}) > 1 or len(set(scales)) > 1:
            raise UserError("factor_sum needs experts of one rank and one scale; use fusion=delta_sum.")
        total_a = torch.stack([a for a, _ in pairs]).sum(0)
        total_b = torch.stack([w * b for (_, b), w in zip(pairs, weights)]).sum(0)
        return total_a, scales[0] * total_b
    raise UserError(f"fusion={mode}: expected one of {', '.join(MODES)}.")


def delta(factors: list[Factors], weights: list[float], scales: list[float], mode: str) -> Tensor:
    """The fused update [d_out, d_in] in fp32 from (A [r, d_in], B [d_out, r]) per expert; see `low_rank`."""
    with full_precision():
        a, b = low_rank(factors, weights, scales, mode)
        return b @ a


def kept(weight: Tensor, folded: Tensor, update: Tensor) -> float:
    """Share of `update` [d_out, d_in] fp32 that `folded`, in the dtype of `weight`, holds; 1 for an update of zero."""
    size = update.square().sum(dtype=torch.float64)
    if weight.dtype == torch.float32 or not size:
        return 1.0
    return float(((folded.float() - weight.float()) * update).sum(dtype=torch.float64) / size)


def place(weight: Tensor) -> torch.device:
    """Where a copy of `weight` is kept: on its GPU, if that leaves LEFT of the memory free, else in host memory.

    On an 80 GB card all of a 7B's copies stay, on one of 40 GB about half, on one of 24 GB none. Memory that torch holds
    and does not use counts as free. Host memory is not page-locked: torch rounds locked blocks up to powers of two and
    never gives them back, which is 17 GB a process for the rest of the run.
    """
    if weight.device.type != "cuda":
        return torch.device("cpu")
    free, total = torch.cuda.mem_get_info(weight.device)
    free += torch.cuda.memory_reserved(weight.device) - torch.cuda.memory_allocated(weight.device)
    return weight.device if free - weight.nbytes >= LEFT * total else torch.device("cpu")


class Folds:
    """The base weights that are folded now, with the originals to go back to."""

    def __init__(self) -> None:
        self._kept: dict[LoraLayer, Tensor] = {}

    def fold(self, layer: LoraLayer, names: list[str], weights: list[float], mode: str) -> float:
        """Merge adapters `names` of one peft layer into its base weight, if that holds ENOUGH of their update.

        Returns the share that it holds; below ENOUGH the weight is as it was.
        """
        weight = layer.get_base_layer().weight
        with torch.no_grad():
            factors = [(layer.lora_A[n].weight, layer.lora_B[n].weight) for n in names]
            update = delta(factors, weights, [layer.scaling[n] for n in names], mode)
            folded = (weight.float() + update).to(weight.dtype)
            share = kept(weight, folded, update)
            if share >= ENOUGH:
                if layer not in self._kept:
                    self._kept[layer] = weight.detach().to(place(weight), copy=True)
                weight.copy_(folded)
        return share

    def unfold(self, keep: bool = False) -> None:
        """The original weights again; `keep`: their copies stay, for the next fold."""
        with torch.no_grad():
            for layer, original in self._kept.items():
                layer.get_base_layer().weight.copy_(original)
        if not keep:
            self._kept.clear()
