"""Adapters by name on one LLaVA: where they sit, how gates act, what follow/add/delete leave behind, files."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from hide_llava.adapters.core import Core, LoraSpec
from hide_llava.adapters.route import Route
from hide_llava.backbones.base import TARGETS
from hide_llava.errors import UserError

ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
FFN = {"gate_proj", "up_proj", "down_proj"}


@pytest.mark.parametrize(
    "targets, names",
    [("all", ATTENTION | FFN), ("attention", ATTENTION), ("ffn", FFN), ("gate_up", FFN - {"down_proj"})],
)
def test_only_the_decoder_is_adapted(targets: str, names: set[str], build: Callable[..., Core]) -> None:
    assert targets in TARGETS
    core = build(2, targets=targets)
    adapted = {n for n, m in core.llava.named_modules() if isinstance(m, LoraLayer)}
    assert all("language_model.layers." in n for n in adapted)  # no tower, projector or lm_head
    places = {(int(n.split("layers.")[1].split(".")[0]), n.rsplit(".", 1)[1]) for n in adapted}
    assert places == {(i, name) for i in range(3) for name in names} and len(adapted) == len(places)


def test_new_adapters_are_frozen_fp32_and_change_nothing(bare: Callable[..., Core]) -> None:
    core, ids = bare(), torch.tensor([[1, 5, 9]])
    before = core.llava(input_ids=ids).logits
    core.add("e0", LoraSpec(rank=4, init_std=0.01))
    core.follow(Route(["e0"]))
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in core.parameters_of("e0"))
    assert torch.equal(core.llava(input_ids=ids).logits, before)  # B = 0
    a = torch.cat([m.lora_A["e0"].weight.flatten() for _, _, m in core.layers("e0")])
    assert 0.0095 < a.std() < 0.0105
    half = bare(torch.bfloat16)
    half.add("e0", LoraSpec(rank=4))
    assert all(p.dtype == torch.float32 for p in half.parameters_of("e0"))


@pytest.mark.parametrize(
    "spec", [{"rank": 0}, {"dropout": 1.0}, {"dropout": -0.1}, {"targets": "router"}], ids=lambda s: next(iter(s))
)
def test_impossible_shapes_name_the_field(spec: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(spec))):
        LoraSpec(**spec)


def test_layer_indices(bare: Callable[..., Core]) -> None:
    core = bare()
    assert core.num_layers == 3
    assert core.layer_indices([-1]) == [2]
    assert core.layer_indices([2, 0, -1, -3]) == [0, 2]
    assert core.layer_indices([]) == []
    for bad in ([3], [-4], [0, 31]):
        with pytest.raises(UserError, match="3 decoder layers"):
            core.layer_indices(bad)


# --------------------------------------------------------------------------------------------------------------- gates


def expected(layer: nn.Module, name: str, x: Tensor, gate: Tensor) -> Tensor:
    """W x + s B (g ⊗ A x) in fp64, element by element of the rank space."""
    y = x.double() @ layer.get_base_layer().weight.double().T
    a, b = layer.lora_A[name].weight.double(), layer.lora_B[name].weight.double()
    gate = gate.double().expand(*x.shape[:-1], a.shape[0]) if gate.dim() != 2 else gate.double()[:, None, :]
    for k in range(a.shape[0]):
        y = y + layer.scaling[name] * (gate[..., k] * (x.double() @ a[k]))[..., None] * b[:, k]
    return y


def test_every_form_of_gate(build: Callable[..., Core]) -> None:
    core = build(4)
    torch.manual_seed(2)
    forms = {"constant": torch.rand(4), "per sample": torch.rand(3, 4), "per token": torch.rand(3, 5, 4)}
    for form, gate in forms.items():
        for given in (gate, lambda path, layer, x, gate=gate: gate):
            with core.routed(Route(["e0"], {"e0": given})):
                for _, _, layer in core.layers("e0"):
                    x = torch.randn(3, 5, layer.in_features)
                    want = expected(layer, "e0", x, gate)
                    torch.testing.assert_close(layer(x).double(), want, atol=1e-5, rtol=1e-5, msg=form)


def test_a_gate_function_sees_its_layer_and_its_input(build: Callable[..., Core]) -> None:
    core, seen = build(4), {}

    def gate(path: str, layer: nn.Module, x: Tensor) -> Tensor:
        seen[path] = (layer, x)
        return torch.sigmoid(x[..., :4])

    with core.routed(Route(["e0"], {"e0": gate})):
        for path, _, layer in core.layers("e0"):
            x = torch.randn(2, 3, layer.in_features)
            want = expected(layer, "e0", x, torch.sigmoid(x[..., :4]))
            torch.testing.assert_close(layer(x).double(), want, atol=1e-5, rtol=1e-5)
            assert seen[path][0] is layer and seen[path][1] is x
    assert len(seen) == 21 and not core._inputs  # nothing of a forward is kept


def test_gate_zero_switches_off_and_no_gate_is_plain_lora(build: Callable[..., Core]) -> None:
    core, ids = build(4, 4), torch.tensor([[1, 7, 30, 4]])
    logits = {}
    for name, route in {
        "none": Route(),
        "zero": Route(["e0"], {"e0": torch.zeros(4)}),
        "one": Route(["e0"], {"e0": torch.ones(4)}),
        "plain": Route(["e0"]),  # after a gate was used: its hooks must let everything through
        "two": Route(["e0", "e1"], {"e1": torch.zeros(1, 4)}),
    }.items():
        with core.routed(route):
            logits[name] = core.llava(input_ids=ids).logits
    torch.testing.assert_close(logits["zero"], logits["none"], atol=1e-6, rtol=0)
    assert torch.equal(logits["one"], logits["plain"])
    torch.testing.assert_close(logits["two"], logits["plain"], atol=1e-5, rtol=1e-5)
    assert (logits["plain"] - logits["none"]).abs().max() > 0.1


# --------------------------------------------------------------------------------------------------- what stays behind


def test_follow_leaves_requires_grad_untouched(build: Callable[..., Core]) -> None:
    """peft's set_adapter makes all active adapters trainable, frozen ones too."""
    core = build(4, 4, 4)
    for parameter in core.parameters_of("e1"):
        parameter.requires_grad_(True)
    flags = {n: p.requires_grad for n, p in core.llava.named_parameters()}
    for active in (["e0"], ["e2", "e0"], [], ["e1"], ["e0"]):
        core.follow(Route(active))
        assert {n: p.requires_grad for n, p in core.llava.named_parameters()} == flags
    with core.routed(Route(["e2"])):
        assert {n: p.requires_grad for n, p in core.llava.named_parameters()} == flags
    assert core.route.active == ["e0"]
    core.add("e3", LoraSpec(rank=2))
    core.delete("e0")
    now = {n: p.requires_grad for n, p in core.llava.named_parameters()}
    assert {n for n, f in now.items() if f} == {n for n, f in flags.items() if f}


def test_routed_restores_the_route_after_an_error(build: Callable[..., Core]) -> None:
    core = build(4, 4)
    core.follow(Route(["e0"]))
    with pytest.raises(RuntimeError, match="inside"), core.routed(Route(["e1"])):
        raise RuntimeError("inside")
    assert core.route.active == ["e0"]
    layer = next(m for _, _, m in core.layers("e0"))
    assert list(layer.active_adapters) == ["e0"]


def hooks(module: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


def test_deleting_leaves_no_hook_and_no_module(build: Callable[..., Core]) -> None:
    core = build(4, 4)
    core.follow(Route(["e0"]))
    before, modules = hooks(core.llava), len(list(core.llava.modules()))
    for _ in range(5):
        core.concatenate("routed", ["e0", "e1"], [2])
        core.follow(Route(["routed"], {"routed": torch.ones(8)}))
        core.follow(Route(["routed"], {"routed": torch.zeros(8)}))  # a second route does not hook again
        assert hooks(core.llava) == before + 3 * 7
        core.unfold()
        assert hooks(core.llava) == before and len(list(core.llava.modules())) == modules
    assert core.names() == ["e0", "e1"]


def test_concatenating_no_layer_adds_nothing(build: Callable[..., Core]) -> None:
    """`expanded_layers: []` (merge everything) must not fall back to all layers."""
    core = build(4, 4)
    assert core.concatenate("routed", ["e0", "e1"], []) == 0
    assert core.names() == ["e0", "e1"]


# --------------------------------------------------------------------------------------------------------------- files


def test_save_load(build: Callable[..., Core], bare: Callable[..., Core], tmp_path: Path) -> None:
    core, other = build(4, 2), bare()
    core.save("e1", tmp_path / "e1")
    stored = json.loads((tmp_path / "e1" / "adapter_config.json").read_text())
    assert stored["r"] == 2 and stored["lora_alpha"] == 4 and stored["inference_mode"]
    other.load("e1", tmp_path / "e1")
    other.add("e0", LoraSpec(rank=4))
    core.save("e0", tmp_path / "e0")
    other.load("e0", tmp_path / "e0")  # over an existing adapter
    for name in ("e0", "e1"):
        pairs = zip(core.parameters_of(name), other.parameters_of(name), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    assert not any(p.requires_grad for p in other.llava.parameters())


def test_files_that_do_not_fit(build: Callable[..., Core], bare: Callable[..., Core], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    core = build(4)
    with pytest.raises(UserError, match="not a readable peft adapter"):
        core.load("e1", tmp_path / "nothing")
    core.save("e0", tmp_path / "e0")
    file = tmp_path / "e0" / "adapter_model.safetensors"
    whole = load_file(file)
    first = sorted(whole)[0]
    save_file({k: v for k, v in whole.items() if k != first}, file)
    with pytest.raises(UserError, match=r"does not fit this model; 1 keys differ"):
        bare().load("e0", tmp_path / "e0")
    save_file({**whole, first.replace("layers.0", "layers.9"): whole[first].clone()}, file)
    with pytest.raises(UserError, match=r"layers\.9"):
        bare().load("e0", tmp_path / "e0")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match="not a readable peft adapter"):
        bare().load("e0", tmp_path / "e0")


def test_an_adapter_of_another_rank_does_not_fit(build: Callable[..., Core], tmp_path: Path) -> None:
    core, other = build(4), build(2)
    other.save("e0", tmp_path / "e0")
    with pytest.raises(UserError, match="does not fit this model"):
        core.load("e0", tmp_path / "e0")
