"""The shape of one LoRA adapter, and which of the decoder's linears it sits on."""

from __future__ import annotations

from dataclasses import dataclass

TARGETS = {
    "all": r"self_attn\.(q_proj|k_proj|v_proj|o_proj)|mlp\.(gate_proj|up_proj|down_proj)",
    "attention": r"self_attn\.(q_proj|k_proj|v_proj|o_proj)",
    "ffn": r"mlp\.(gate_proj|up_proj|down_proj)",
}


@dataclass
class LoraSpec:
    """Shape of one adapter. scale = alpha / rank. init_std: A ~ N(0, init_std²); None: peft's Kaiming. B = 0."""

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.05
    targets: str = "all"  # all | attention | ffn
    init_std: float | None = None

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank={self.rank}: must be at least 1")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout}: must be in [0, 1)")
        if self.targets not in TARGETS:
            raise ValueError(f"targets={self.targets}: expected one of {', '.join(TARGETS)}")
