"""A random LLaVA of three decoder layers with random adapters on it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import LlavaConfig, LlavaForConditionalGeneration

from hide_llava.adapters.core import Core, LoraSpec
from hide_llava.backbones.llava15 import Llava15
from tests.tiny import write_model


@pytest.fixture(scope="session")
def tiny_config(tmp_path_factory: pytest.TempPathFactory) -> LlavaConfig:
    folder: Path = tmp_path_factory.mktemp("model")
    write_model(folder)
    config = LlavaConfig.from_pretrained(folder / "llava")
    config.text_config.num_hidden_layers = 3
    return config


@pytest.fixture
def bare(tiny_config: LlavaConfig) -> Callable[..., Core]:
    """`bare()`: a core without adapters; the same weights at every call."""

    def make(dtype: torch.dtype = torch.float32) -> Core:
        torch.manual_seed(0)
        return Core(Llava15(LlavaForConditionalGeneration(tiny_config).to(dtype).eval()))

    return make


@pytest.fixture
def build(bare: Callable[..., Core]) -> Callable[..., Core]:
    """`build(4, 4, 2)`: a core with experts e0, e1, e2 of these ranks, alpha 2·rank, A and B random."""

    def make(*ranks: int, dtype: torch.dtype = torch.float32, targets: str = "all") -> Core:
        core = bare(dtype)
        for i, rank in enumerate(ranks):
            core.add(f"e{i}", LoraSpec(rank=rank, alpha=2.0 * rank, dropout=0.0, targets=targets))
            for j, parameter in enumerate(core.parameters_of(f"e{i}")):
                draw = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1000 * i + j))
                parameter.data.copy_(0.2 * draw)
        return core

    return make
