"""The shape of one LoRA adapter, and which of the decoder's linears it sits on."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from hide_llava.settings import MethodConfig

Targets = Literal["all", "attention", "ffn", "gate_up"]


class LoraSpec(MethodConfig):
    """Shape of one adapter, y = W x + s B A x. B starts at 0."""

    rank: int = Field(8, ge=1)  # r, rows of A
    alpha: float = Field(16.0, gt=0)  # s = alpha / rank
    dropout: float = Field(0.05, ge=0, lt=1)  # of the adapter's input, in training
    targets: Targets = "all"  # adapted linears of a decoder layer: all seven | attention (four) | ffn (three) | gate_up (two)
    init_std: float | None = Field(None, ge=0)  # A starts as N(0, init_std²); None: Kaiming uniform, as in peft
