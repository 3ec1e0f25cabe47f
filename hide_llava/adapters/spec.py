"""The shape of one LoRA adapter, and which of the decoder's linears it sits on."""

from __future__ import annotations

from dataclasses import dataclass

from hide_llava.values import above_zero, at_least, between, one_of

TARGETS = {
    "all": r"self_attn\.(q_proj|k_proj|v_proj|o_proj)|mlp\.(gate_proj|up_proj|down_proj)",
    "attention": r"self_attn\.(q_proj|k_proj|v_proj|o_proj)",
    "ffn": r"mlp\.(gate_proj|up_proj|down_proj)",
}


@dataclass
class LoraSpec:
    """Shape of one adapter, y = W x + s B A x. B starts at 0."""

    rank: int = 8  # r, rows of A
    alpha: float = 16.0  # s = alpha / rank
    dropout: float = 0.05  # of the adapter's input, in training
    targets: str = "all"  # linears of every decoder layer that are adapted: all seven | attention (four) | ffn (three)
    init_std: float | None = None  # A starts as N(0, init_std²); None: Kaiming uniform, as in peft

    def __post_init__(self) -> None:
        at_least(self, rank=1, init_std=0)
        above_zero(self, "alpha")
        between(self, 0, 1, "dropout", open_end=True)
        one_of(self, targets=tuple(TARGETS))
