"""Answering without peft's wrapper: the same function as peft's layers, in fewer kernels, and nothing of it is left behind."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from hide_llava.adapters.core import Core, LoraSpec
from hide_llava.adapters.fused import FusedLinear
from hide_llava.adapters.route import Route
from hide_llava.methods.routed import RoutedLlava

sys.path.append(str(Path(__file__).parents[2] / "perf"))
from launches import METHODS, counted, learned, shape_of
from shapes import build_batch

# Kernels of a decoded token above the base model's, at 32 layers in bf16, as counted (perf/launches.py).
ABOVE = {"lora": 0, "hide": 15, "individual": 0, "disco": 224, "mrlora": 480, "moelora": 960, "clmoe": 1088, "same": 448,
         "smolora": 512, "branchlora": 480}  # fmt: skip


@pytest.fixture(scope="module")
def kernels() -> list[dict[str, float]]:
    """Of a token at 1 and at 2 layers, by method."""
    return [counted(METHODS, layers, "bfloat16") for layers in (1, 2)]


@pytest.mark.parametrize("name", METHODS)
def test_kernels_of_a_token(name: str, kernels: list[dict[str, float]]) -> None:
    """Every layer costs the same, so that two depths say what 32 cost."""
    one, two = (run[name] - run["zero_shot"] for run in kernels)
    assert one + 31 * (two - one) <= ABOVE[name]


def logits_and_tokens(routed: RoutedLlava, dtype: str = "float32") -> tuple[Tensor, list]:
    batch = build_batch(shape_of(2, dtype), 3, "left") | ({"task": 0} if routed.method.oracle else {})
    ready, _, _ = routed.prepare(batch, False)
    logits = routed.core.backbone.run(ready).logits
    return logits[ready.attention_mask.bool()].float(), routed.generate(batch, 6)[0].tolist()


@pytest.fixture(scope="module")
def answers() -> Callable[[str, str], dict[str, tuple[Tensor, list]]]:
    """(method, dtype) → logits and greedy tokens with peft's layers and without, of one model of that method."""
    made: dict[tuple[str, str], dict] = {}

    def make(name: str, dtype: str) -> dict[str, tuple[Tensor, list]]:
        if (name, dtype) not in made:
            routed = learned(name, shape_of(2, dtype))
            with torch.no_grad():
                routed.method.prepare_inference()
                wrapped = logits_and_tokens(routed, dtype)
                routed.core.fuse()
                fused = logits_and_tokens(routed, dtype)
                routed.core.unfold()
            made[name, dtype] = {"wrapped": wrapped, "fused": fused}
        return made[name, dtype]

    return make


@pytest.mark.parametrize("name", METHODS)
def test_the_same_function_as_pefts_layers(name: str, answers: Callable) -> None:
    found = answers(name, "float32")
    (wrapped, words), (fused, others) = found["wrapped"], found["fused"]
    assert (wrapped - fused).abs().max() <= 1e-6 * wrapped.abs().max()
    assert words == others


@pytest.mark.parametrize("name", METHODS)
def test_as_exact_in_bf16(name: str, answers: Callable) -> None:
    """The distance of bf16 logits from those in fp32, against that of peft's layers."""
    assert in_bf16(name, answers) <= 1.1  # one draw: the CPU's order of summation moves it by ± 7 %


def test_as_exact_in_bf16_on_average(answers: Callable) -> None:
    """`individual` folds: its sum W + Δ is rounded once more, as that of every folded method."""
    ratios = [in_bf16(name, answers) for name in METHODS if name != "individual"]
    assert sum(ratios) / len(ratios) <= 1.02, ratios


def in_bf16(name: str, answers: Callable) -> float:
    exact = answers(name, "float32")["wrapped"][0]
    wrapped, fused = ((answers(name, "bfloat16")[kind][0] - exact).norm() for kind in ("wrapped", "fused"))
    return float(fused / wrapped) if wrapped else float(fused == 0)


@pytest.mark.parametrize("kind", ["trained", "concatenated"])
def test_every_linear_is_as_exact_in_bf16(kind: str, build: Callable[..., Core]) -> None:
    """Adapters in fp32 as they are trained, or side by side in the base's bf16: the error of all linears, against fp64."""
    core = build(4, 4, dtype=torch.bfloat16)
    name = "e0" if kind == "trained" else "routed"
    core.concatenate("routed", ["e0", "e1"], [0, 1, 2])
    gate = torch.rand(8 if kind == "concatenated" else 4, generator=torch.Generator().manual_seed(0))
    layers, errors = list(core.layers(name)), {}
    core.follow(Route([name], {name: gate}))
    for fused in (False, True):
        if fused:
            core.fuse()
        total = 0.0
        for i, (path, _, layer) in enumerate(layers):
            x = torch.randn(200, 1, layer.in_features, generator=torch.Generator().manual_seed(i)).bfloat16()
            a, b, w = (m.weight.double() for m in (layer.lora_A[name], layer.lora_B[name], layer.get_base_layer()))
            exact = x.double() @ w.T + layer.scaling[name] * (x.double() @ a.T * gate.double()) @ b.T
            total += float((core.llava.get_submodule(path)(x).double() - exact).square().sum().detach())
        errors[fused] = total**0.5
    assert errors[True] <= 1.001 * errors[False]


@pytest.mark.parametrize("name", ["branchlora", "smolora", "moelora"])
def test_the_wrappers_come_back(name: str) -> None:
    routed = learned(name, shape_of(2, "float32"))
    core = routed.core
    before = {path: m for path, m in core.llava.named_modules() if isinstance(m, LoraLayer)}
    state = {k: v.clone() for k, v in routed.state_dict().items()}
    routed.method.prepare_inference()
    core.fuse()
    logits_and_tokens(routed)
    here = [m for m in core.llava.modules() if isinstance(m, (LoraLayer, FusedLinear))]
    assert here and all(isinstance(m, FusedLinear) for m in here)
    core.unfold()
    assert {path: m for path, m in core.llava.named_modules() if isinstance(m, LoraLayer)} == before
    assert state.keys() == routed.state_dict().keys()
    assert all(torch.equal(v, state[k]) for k, v in routed.state_dict().items())


# ------------------------------------------------------------------------------------------------ every form of a gate
def token_gate(path: str, layer: nn.Module, x: Tensor) -> Tensor:
    return torch.sigmoid(x[..., :4])


def rank_map(path: str, layer: nn.Module, x: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda u: u.tanh() + x.mean()


def uniform(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


GATES = {"none": None, "constant": torch.linspace(0, 1, 4), "per sample": uniform(3, 4), "per token": uniform(3, 5, 4),
         "function of x": token_gate, "map of A x": rank_map}  # fmt: skip


@pytest.mark.parametrize("form", GATES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_form_of_gate(form: str, dtype: torch.dtype, build: Callable[..., Core]) -> None:
    """Two adapters of unequal rank, one of them gated, on a bf16 base in fp32 as they are trained; two routes in turn.

    In bf16 the distance of all logits from those in fp32, against that of peft's layers: a single logit can be off by a tenth
    with either, by how a CPU sums.
    """
    core, exact = build(4, 2, dtype=dtype), build(4, 2, dtype=dtype)
    exact.llava.float()
    core.add("other", LoraSpec(rank=4))  # never active
    ids = torch.randint(3, 500, (3, 5), generator=torch.Generator().manual_seed(0))
    gates = {} if GATES[form] is None else {"e0": GATES[form]}
    routes = [Route(["e0", "e1"], gates), Route(["e1"]), Route(["e0"], gates), Route(["e0"], {"e0": torch.zeros(4)}), Route()]

    def answer(core: Core) -> Tensor:
        logits = []
        for route in (*routes, *routes):
            core.follow(route)
            logits.append(core.llava(input_ids=ids).logits.float())
        return torch.stack(logits)

    with torch.no_grad():
        right, wrapped = answer(exact), answer(core)
        core.fuse()
        fused = answer(core)
    if dtype == torch.float32:
        for theirs, ours in zip(wrapped, fused):
            assert (theirs - ours).abs().max() <= 1e-5 * theirs.abs().max()
    else:
        assert (fused - right).norm() <= 1.5 * (wrapped - right).norm()
        for theirs, ours in zip(wrapped, fused):
            assert (theirs - ours).norm() <= 0.1 * theirs.norm()
    core.unfold()
    assert not core.answering and not any(isinstance(m, FusedLinear) for m in core.llava.modules())


def test_what_peft_alone_knows_stays_with_peft(build: Callable[..., Core]) -> None:
    """A bias or a variant of LoRA is not left out."""
    core = build(4)
    layers = [layer for _, _, layer in core.layers("e0")]
    layers[0].lora_B["e0"].bias = nn.Parameter(torch.ones(layers[0].out_features))
    ids = torch.tensor([[1, 5, 9]])
    core.follow(Route(["e0"]))
    before = core.llava(input_ids=ids).logits.detach()
    core.fuse()
    found = [m for m in core.llava.modules() if isinstance(m, (LoraLayer, FusedLinear))]
    assert [type(m) is FusedLinear for m in found].count(False) == 1
    with torch.no_grad():
        torch.testing.assert_close(core.llava(input_ids=ids).logits, before, atol=1e-4, rtol=1e-5)
