"""Floating-point operations of LLaVA with adapters, by formula; a test holds them against torch's own counter.

Per position of the sequence, with N weights in the decoder's linears, V·d in lm_head, P in the adapters that it meets, L layers
of width d and n positions (a multiply-add is 2):

    forward      2 N + 2 V d + 2 P + 4 L n d      attention in full, as PaLM counts it (arXiv 2204.02311, appendix B)
    backward     2 N + 2 V d + 4 P + 8 L n d      a frozen weight, or a past expert's, needs no gradient: 2 instead of 4
    recomputed   2 N + 2 P + 4 L n d              with activation checkpointing only

A picture adds the vision tower's forward and the projector, whose backward is there only if it trains. Norms, activations,
softmax and the optimizer's element-wise work are not counted.
"""

from __future__ import annotations

from dataclasses import dataclass

from transformers import LlavaConfig


@dataclass(frozen=True)
class Flops:
    """FLOPs of one LLaVA. Arguments are positions and numbers of parameters, results FLOPs of one sequence."""

    shape: LlavaConfig

    @property
    def linears(self) -> int:
        """N."""
        t = self.shape.text_config
        head = getattr(t, "head_dim", None) or t.hidden_size // t.num_attention_heads
        attention = 2 * t.hidden_size * head * (t.num_attention_heads + t.num_key_value_heads)
        return t.num_hidden_layers * (attention + 3 * t.hidden_size * t.intermediate_size)

    @property
    def image_tokens(self) -> int:
        vision = self.shape.vision_config
        patches = (vision.image_size // vision.patch_size) ** 2
        return patches if self.shape.vision_feature_select_strategy == "default" else patches + 1

    def _attention(self, positions: int) -> int:
        text = self.shape.text_config
        return 4 * text.num_hidden_layers * positions**2 * text.hidden_size

    def _head(self, positions: int) -> int:
        return 2 * positions * self.shape.text_config.vocab_size * self.shape.text_config.hidden_size

    def forward(self, positions: int, adapters: int = 0, heads: int | None = None) -> int:
        """The decoder; lm_head at `heads` positions (None: at all)."""
        head = self._head(positions if heads is None else heads)
        return 2 * positions * (self.linears + adapters) + head + self._attention(positions)

    def backward(self, positions: int, trained: int = 0, frozen: int = 0, heads: int | None = None) -> int:
        """The decoder, towards its inputs and `trained` of the adapters' numbers; lm_head as in `forward`."""
        head = self._head(positions if heads is None else heads)
        return positions * (2 * self.linears + 4 * trained + 2 * frozen) + head + 2 * self._attention(positions)

    def vision(self) -> int:
        """The tower's forward for one picture."""
        v = self.shape.vision_config
        patches = (v.image_size // v.patch_size) ** 2
        linears = v.num_hidden_layers * (4 * v.hidden_size**2 + 2 * v.hidden_size * v.intermediate_size)
        attention = 4 * v.num_hidden_layers * (patches + 1) ** 2 * v.hidden_size
        return 2 * (patches + 1) * linears + attention + 2 * patches * 3 * v.patch_size**2 * v.hidden_size

    def projector(self, trains: bool) -> int:
        """Both layers forward; if it trains, both weight gradients and the gradient between them."""
        width = self.shape.text_config.hidden_size
        first, second = self.shape.vision_config.hidden_size * width, width**2
        return self.image_tokens * (4 * first + 6 * second if trains else 2 * (first + second))

    def answer(self, positions: int, new: int, adapters: int = 0) -> int:
        """One picture and `positions` tokens prefilled, which gives the first of `new` tokens; the others with the KV cache."""
        text = self.shape.text_config
        seen = sum(positions + i for i in range(1, new))
        steps = 2 * (new - 1) * (self.linears + adapters) + 4 * text.num_hidden_layers * seen * text.hidden_size
        return self.forward(positions, adapters, heads=new) + steps + self.vision() + self.projector(False)
