"""Floating-point operations of one LoRA training step by the package's formula (hide_llava/planning/flops.py, which says
what is counted), and the peaks of devices. A test holds it against torch's own counter.

MFU counts forward + backward, HFU adds what is recomputed; both divide by the device's dense peak in the dtype used.
"""

from __future__ import annotations

from shapes import Shape, config_of

from hide_llava.backbones.shapes import ModelShape
from hide_llava.planning.flops import Flops

# dense bf16 TFLOP/s: NVIDIA data sheets (H200, H100 SXM and A100 SXM; figures with sparsity halved)
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12}


def peak(device_name: str) -> float | None:
    """FLOP/s of a device by its name, None if it is not in the list."""
    return next((value for key, value in PEAKS.items() if key in device_name), None)


def step(shape: Shape, positions: int, heads: int | None = None) -> tuple[int, int]:
    """(forward + backward, recomputed) of one sample of `positions` tokens, its picture among them; logits at `heads` of them
    (None: at all)."""
    d, m, flops = shape.hidden, int(shape.hidden * 2.6875), Flops(ModelShape(config_of(shape), ""))
    adapters = shape.layers * shape.rank * (4 * (d + d) + 3 * (d + m))
    both = flops.forward(positions, adapters, heads) + flops.backward(positions, adapters, heads=heads)
    recomputed = flops.forward(positions, adapters, heads=0)
    return both + flops.vision() + flops.projector(trains=True), recomputed
