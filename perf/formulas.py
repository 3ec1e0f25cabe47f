"""What perf/growth.py expects: time and bytes of each measure as the method's formulas give them, up to a factor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import flops
from shapes import Shape


@dataclass(frozen=True)
class Point:
    """One model and batch on an axis."""

    label: int
    shape: Shape
    size: int = 2

    @property
    def positions(self) -> int:
        """Tokens of the longest training sample."""
        s = self.shape
        return 1 + s.image_tokens + s.prompt_tokens + s.answer_tokens


def widths(s: Shape) -> list[tuple[int, int]]:
    """(d_in, d_out) of the seven linears of a decoder layer."""
    m = int(s.hidden * 2.6875)
    return [(s.hidden, s.hidden)] * 4 + [(s.hidden, m)] * 2 + [(m, s.hidden)]


def adapter(s: Shape) -> int:
    """Numbers in one layer of one expert: r Σ (d_in + d_out)."""
    return s.rank * sum(i + o for i, o in widths(s))


def trained(s: Shape) -> int:
    """Numbers that train: one expert on every layer, and the projector. Not a function of the number of tasks."""
    return s.layers * adapter(s) + s.vision_hidden * s.hidden + s.hidden**2 + 2 * s.hidden


def activations(p: Point) -> int:
    """What LoRA keeps at least: the input of every linear, A x twice, the logits, and the attention mask."""
    s = p.shape
    per_layer = sum(i for i, _ in widths(s)) + 7 * 2 * s.rank
    return p.size * p.positions * (s.layers * per_layer + s.vocabulary + p.positions)


def decode(p: Point) -> int:
    """Multiply-adds of the positions answered: base weights once, the top layer's E r ranks."""
    s = p.shape
    weights = s.layers * sum(i * o for i, o in widths(s)) + s.hidden * s.vocabulary
    positions = p.positions - s.answer_tokens + s.new_tokens
    return p.size * positions * (weights + s.experts * adapter(s) + 2 * s.layers * positions * s.hidden)


def tensors(s: Shape) -> int:
    """Tensors in a checkpoint: A and B of every linear, the projector's four, sum and count of two anchors per task."""
    return 2 * 7 * s.layers + 4 + 4 * s.experts


def stored(s: Shape) -> int:
    """Bytes of a checkpoint: fp32 weights, anchors (fp64 sums, int64 counts), about 100 bytes of header per tensor."""
    return 4 * trained(s) + s.experts * 2 * (64 + 1) * 8 + 100 * tensors(s)


def kept(s: Shape) -> int:
    lower = (s.layers - 1) * sum(i * o for i, o in widths(s))
    return 4 * (lower + s.experts * adapter(s))


FORMULAS: dict[str, Callable[[Point], float]] = {
    "step": lambda p: p.size * flops.step(p.shape, p.positions)[0],
    "activations": activations,
    "state": lambda p: 12 * trained(p.shape),
    "decode": decode,
    "route": lambda p: p.size * p.shape.experts,
    "gates": lambda p: 4 * p.size * p.shape.experts * p.shape.rank,
    "fold": lambda p: p.shape.experts * p.shape.rank,
    "kept": lambda p: kept(p.shape),
    "restore": lambda p: p.shape.experts * p.shape.rank,
    "add": lambda p: p.shape.experts * p.shape.rank,
    "checkpoint": lambda p: tensors(p.shape),
    "checkpoint bytes": lambda p: stored(p.shape),
    "stage bytes": lambda p: stored(p.shape),
}
