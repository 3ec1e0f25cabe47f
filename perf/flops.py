"""Floating-point operations of one LoRA training step, by formula; a test holds it against torch's own counter.

Per position of the sequence, with N weights in the decoder's linears and lm_head, P in the adapters, L layers of width
d and n positions (a multiply-add is 2):

    forward      2 N + 2 P + 4 L n d      attention in full, as PaLM counts it (arXiv 2204.02311, appendix B)
    backward     2 N + 4 P + 8 L n d      a frozen weight needs no gradient: N costs 2, not 4
    recomputed   forward without lm_head  with activation checkpointing only

A picture adds the vision tower's forward and the projector, which trains (its input needs no gradient). MFU counts
forward + backward, HFU adds what is recomputed; both divide by the device's dense peak in the dtype used.
"""

from __future__ import annotations

from shapes import PATCH, Shape

# dense bf16 TFLOP/s: NVIDIA data sheets (H200, H100 SXM and A100 SXM; figures with sparsity halved)
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12}


def peak(device_name: str) -> float | None:
    """FLOP/s of a device by its name, None if it is not in the list."""
    return next((value for key, value in PEAKS.items() if key in device_name), None)


def vision(shape: Shape) -> int:
    """The tower's forward for one picture."""
    positions, width = shape.image_tokens + 1, shape.vision_hidden
    linears = shape.vision_layers * (4 + 2 * shape.vision_mlp) * width**2
    patches = 2 * shape.image_tokens * 3 * PATCH**2 * width
    return 2 * positions * linears + 4 * shape.vision_layers * positions**2 * width + patches


def projector(shape: Shape) -> int:
    """Both layers forward, both weight gradients, and the gradient between them."""
    first, second = shape.vision_hidden * shape.hidden, shape.hidden**2
    return shape.image_tokens * (4 * first + 6 * second)


def step(shape: Shape, positions: int) -> tuple[int, int]:
    """(forward + backward, recomputed) of one sample of `positions` tokens, its picture among them."""
    d, m = shape.hidden, int(shape.hidden * 2.6875)
    layers = shape.layers * (4 * d**2 + 3 * d * m)
    adapters = shape.layers * shape.rank * (4 * (d + d) + 3 * (d + m))
    attention = 4 * shape.layers * positions * d
    both = positions * (4 * (layers + shape.vocabulary * d) + 6 * adapters + 3 * attention)
    recomputed = positions * (2 * (layers + adapters) + attention)
    return both + vision(shape) + projector(shape), recomputed
