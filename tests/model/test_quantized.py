"""A 4- or 8-bit base: folding leaves it untouched and equals merging into the dequantised base."""

from pathlib import Path

import pytest
import torch
from transformers import LlavaConfig, LlavaForConditionalGeneration

from hide_llava.adapters.core import Core, LoraSpec
from hide_llava.adapters.folding import MODES
from hide_llava.adapters.route import Route
from hide_llava.backbones.llava15 import Llava15
from hide_llava.backbones.quantized import quantize
from hide_llava.pipeline import run
from hide_llava.training.run_folder import RunFolder
from tests.tiny import configuration, write_model, write_world

bnb = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed", exc_type=ImportError)
IDS = torch.tensor([[1, 5, 9, 4, 7]])


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> LlavaConfig:
    folder = tmp_path_factory.mktemp("model")
    write_model(folder)
    return by_32(LlavaConfig.from_pretrained(folder / "llava"))


def by_32(config: LlavaConfig) -> LlavaConfig:
    """bitsandbytes' CPU kernel wants rows in blocks of 32 and columns in blocks of 64."""
    config.text_config.hidden_size, config.text_config.intermediate_size = 64, 128
    config.text_config.head_dim = 64 // config.text_config.num_attention_heads
    return config


def with_experts(llava: LlavaForConditionalGeneration) -> Core:
    core = Core(Llava15(llava.eval()))
    for i in range(2):
        core.add(f"e{i}", LoraSpec(rank=4, alpha=8.0, dropout=0.0))
        for j, parameter in enumerate(core.parameters_of(f"e{i}")):
            parameter.data.copy_(
                0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(99 * i + j))
            )
    return core


def dequantised(core: Core, config: LlavaConfig) -> Core:
    """The same model with ordinary linears that hold the dequantised weights."""
    plain = with_experts(LlavaForConditionalGeneration(config))
    sources = {path: m.get_base_layer() for path, _, m in core.layers("e0")}
    with torch.no_grad():
        for path, _, layer in plain.layers("e0"):
            weight = sources[path].weight
            full = bnb.functional.dequantize_4bit(weight.data, weight.quant_state)
            layer.get_base_layer().weight.copy_(full)
        rest = {k: v for k, v in core.llava.state_dict().items() if v.is_floating_point() and "layers" not in k}
        plain.llava.load_state_dict(rest, strict=False)
        for name, parameter in plain.llava.named_parameters():
            if "norm" in name:
                parameter.copy_(core.llava.get_parameter(name))
    return plain


@pytest.mark.parametrize("mode", MODES)
def test_the_fused_adapter_equals_merging_into_the_dequantised_base(mode: str, config: LlavaConfig) -> None:
    torch.manual_seed(0)
    llava = LlavaForConditionalGeneration(config)
    quantize(llava, llava.model.language_model.layers, "4bit", torch.float32)
    core = with_experts(llava.to("cpu"))
    llava.train()  # the CPU kernel for inference rounds to bf16; there is no dropout here
    plain = dequantised(core, config)
    core.follow(Route())
    alone = core.llava(input_ids=IDS).logits
    before = {n: p.detach().clone() for n, p in core.llava.named_parameters()}
    for one in (core, plain):
        one.fold(["e0", "e1"], [0.5, 0.5], mode, [config.text_config.num_hidden_layers - 1])
        one.follow(Route())
    ours, theirs = (one.llava(input_ids=IDS).logits for one in (core, plain))
    torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-4)
    assert (ours - alone).abs().max() > 0.1
    core.unfold()
    assert core.names() == ["e0", "e1"]
    after = dict(core.llava.named_parameters())
    assert after.keys() == before.keys() and all(torch.equal(after[n], before[n]) for n in before)
    assert torch.equal(core.llava(input_ids=IDS).logits, alone)


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_a_quantised_run_trains_folds_and_answers(bits: str, tmp_path: Path) -> None:
    world = write_world(tmp_path / "world")
    torch.manual_seed(0)
    LlavaForConditionalGeneration(by_32(LlavaConfig.from_pretrained(world / "llava"))).save_pretrained(world / "llava")
    config = configuration(world, "hide", tmp_path / "run", f"model.quantization={bits}", "train.epochs=1")
    run(config, report=False)
    assert all(s["status"] == "complete" for s in RunFolder(tmp_path / "run").manifest["stages"])
    assert len(list((tmp_path / "run").rglob("score.json"))) == 6
