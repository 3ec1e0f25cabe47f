"""Floating-point operations of a vision-language model with adapters, by formula; tests hold them against torch's own counter.

Per position of the sequence, with N weights in the decoder's linears, V·d in lm_head, P in the adapters that it meets, L layers
whose heads have width h together (mostly d, as in LLaVA-1.5) and n positions (a multiply-add is 2):

    forward      2 N + 2 V d + 2 P + 4 L n h      attention in full, as PaLM counts it (arXiv 2204.02311, appendix B)
    backward     2 N + 2 V d + 4 P + 8 L n h      a frozen weight, or a past expert's, needs no gradient: 2 instead of 4
    recomputed   2 N + 2 P + 4 L n h              with activation checkpointing only

A picture adds the vision tower's forward and the projector, whose backward is there only if it trains. Norms, activations,
softmax and the optimizer's element-wise work are not counted. LLaVA-1.5 makes a square of every picture; for another family
one of 640 × 480 pixels is assumed, which is of the order of UCIT's (backbones/pictures.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from hide_llava.backbones.counts import Counts
from hide_llava.backbones.pictures import Picture
from hide_llava.backbones.shapes import ModelShape
from hide_llava.errors import UserError


@dataclass(frozen=True)
class Flops:
    """FLOPs of one model. Arguments are positions and numbers of parameters, results FLOPs of one sequence.

    Raises:
        UserError: whatever is asked of a model that the formula does not fit, or of a picture where it is not known.
    """

    shape: ModelShape

    @property
    def counts(self) -> Counts:
        if self.shape.unknown:
            raise UserError(f"operations and memory: not known, {self.shape.unknown}.")
        return self.shape.counts

    @property
    def picture(self) -> Picture:
        if self.shape.unknown or self.shape.picture is None:
            raise UserError(f"operations and memory: not known, {self.shape.unknown}.")
        return self.shape.picture

    @property
    def linears(self) -> int:
        """N."""
        return self.shape.counts.linears

    @property
    def image_tokens(self) -> int:
        """Positions of one picture."""
        return self.picture.positions

    def _attention(self, positions: int) -> int:
        return 4 * self.counts.layers * positions**2 * self.counts.heads

    def _head(self, positions: int) -> int:
        return 2 * positions * self.counts.vocabulary * self.counts.width

    def forward(self, positions: int, adapters: int = 0, heads: int | None = None) -> int:
        """The decoder; lm_head at `heads` positions (None: at all)."""
        head = self._head(positions if heads is None else heads)
        return 2 * positions * (self.linears + adapters) + head + self._attention(positions)

    def backward(self, positions: int, trained: int = 0, frozen: int = 0, heads: int | None = None) -> int:
        """The decoder, towards its inputs and `trained` of the adapters' numbers; lm_head as in `forward`."""
        head = self._head(positions if heads is None else heads)
        return positions * (2 * self.linears + 4 * trained + 2 * frozen) + head + 2 * self._attention(positions)

    def vision(self) -> int:
        """The tower's forward for one picture, without what of the projector lies in it."""
        counts, picture = self.counts, self.picture
        products = picture.rows * counts.tower + picture.patches * counts.convolution
        return 2 * products + 4 * picture.pairs * counts.tower_heads

    def projector(self, trains: bool) -> int:
        """Forward; if it trains, also the gradients of its weights and of what they read, but for the frozen tower's states."""
        each = (6 * weights - 2 * first if trains else 2 * weights for weights, first in self.counts.projector)
        return self.picture.projected * sum(each)

    def answer(self, positions: int, new: int, adapters: int = 0) -> int:
        """One picture and `positions` tokens prefilled, which gives the first of `new` tokens; the others with the KV cache."""
        seen = sum(positions + i for i in range(1, new))
        steps = 2 * (new - 1) * (self.linears + adapters) + 4 * self.counts.layers * seen * self.counts.heads
        return self.forward(positions, adapters, heads=new) + steps + self.vision() + self.projector(False)
