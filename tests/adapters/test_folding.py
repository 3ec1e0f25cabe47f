"""Adapter algebra against a naive double-precision reference."""

import itertools
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hide_llava.adapters.core import Core, LoraSpec
from hide_llava.adapters.folding import MODES, delta, place
from hide_llava.adapters.route import Route
from hide_llava.backbones.llava15 import Llava15
from hide_llava.errors import UserError
from tests.methods.host import OneLinear

Factors = list[tuple[Tensor, Tensor]]


def random_factors(ranks: list[int], seed: int = 0, d_in: int = 13, d_out: int = 9) -> Factors:
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(r, d_in, generator=generator), torch.randn(d_out, r, generator=generator)) for r in ranks]


def naive(factors: Factors, weights: list[float], scales: list[float], mode: str) -> np.ndarray:
    """The closed forms, expert pair by expert pair, in fp64."""
    total = np.zeros((factors[0][1].shape[0], factors[0][0].shape[1]))
    for i, j in itertools.product(range(len(factors)), repeat=2):
        if mode == "factor_sum" or i == j:
            b, a = factors[i][1].double().numpy(), factors[j][0].double().numpy()
            total += weights[i] * scales[i] * b @ a
    return total


def assert_near(ours: Tensor, theirs: np.ndarray, tolerance: float = 1e-5) -> None:
    """Equal to `tolerance` of the largest entry."""
    error = np.abs(ours.detach().double().numpy() - theirs).max()
    assert error <= tolerance * max(1.0, np.abs(theirs).max()), error


def factors_of(layer: nn.Module, names: list[str]) -> Factors:
    return [(layer.lora_A[n].weight.detach(), layer.lora_B[n].weight.detach()) for n in names]


# ------------------------------------------------------------------------------------------------------- the function


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("experts", [1, 2, 6])
def test_delta_is_the_closed_form(mode: str, experts: int) -> None:
    factors = random_factors([4] * experts, seed=experts)
    weights, scales = [0.3 + 0.2 * i for i in range(experts)], [2.0] * experts
    ours = delta(factors, weights, scales, mode)
    assert ours.dtype == torch.float32
    assert_near(ours, naive(factors, weights, scales, mode))


def test_delta_sum_takes_unequal_ranks_and_scales_and_factor_sum_refuses() -> None:
    factors = random_factors([1, 4, 7])
    weights, scales = [1.0, 0.5, -2.0], [2.0, 1.0, 0.25]
    assert_near(delta(factors, weights, scales, "delta_sum"), naive(factors, weights, scales, "delta_sum"))
    with pytest.raises(UserError, match="one rank and one scale"):
        delta(factors, weights, [1.0] * 3, "factor_sum")
    with pytest.raises(UserError, match="one rank and one scale"):
        delta(random_factors([4, 4]), [1.0, 1.0], [1.0, 2.0], "factor_sum")
    with pytest.raises(UserError, match="delta_sum, factor_sum"):
        delta(factors, weights, scales, "mean")


def test_one_expert_has_no_cross_terms() -> None:
    factors = random_factors([8])
    one, other = (delta(factors, [0.7], [2.0], mode) for mode in MODES)
    torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)


def test_block_orthogonal_factors_have_no_cross_terms() -> None:
    """Expert i uses rank coordinates of block i only, so B_i A_j = 0 for i ≠ j; without it the two fusions differ."""
    factors = random_factors([6, 6, 6])
    one, other = (delta(factors, [1.0] * 3, [2.0] * 3, mode) for mode in MODES)
    assert (one - other).abs().max() > 1
    for i, (a, b) in enumerate(factors):
        outside = torch.ones(6, dtype=torch.bool)
        outside[2 * i : 2 * i + 2] = False
        a[outside], b[:, outside] = 0, 0
    one, other = (delta(factors, [1.0] * 3, [2.0] * 3, mode) for mode in MODES)
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    assert one.abs().max() > 1


def test_bf16_factors_are_summed_in_fp32() -> None:
    factors = [(a.bfloat16(), b.bfloat16()) for a, b in random_factors([4, 4, 4])]
    for mode in MODES:
        assert_near(delta(factors, [1.0] * 3, [2.0] * 3, mode), naive(factors, [1.0] * 3, [2.0] * 3, mode))


# ------------------------------------------------------------------------------------------------ through peft's layers


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("t", [0, 1, 2])
def test_folded_layers_compute_the_closed_form(mode: str, t: int, build: Callable[..., Core]) -> None:
    """Every linear of every layer but the last: y = W x + Δ x; the last is as it was."""
    core = build(4, 4, 4)
    names, weights = [f"e{i}" for i in range(t + 1)], [0.5 + 0.25 * i for i in range(t + 1)]
    before = {path: m.get_base_layer().weight.detach().clone() for path, _, m in core.layers("e0")}
    core.fold(names, weights, mode, core.layer_indices([-1]))
    core.follow(Route())
    torch.manual_seed(1)
    for path, index, layer in core.layers("e0"):
        x = torch.randn(2, 5, layer.in_features)
        w = before[path].double().numpy()
        if index < core.num_layers - 1:
            w = w + naive(factors_of(layer, names), weights, [2.0] * 3, mode)
        assert_near(layer(x), x.double().numpy() @ w.T)


@pytest.mark.parametrize("ranks", [(4, 4, 4), (1, 5, 2)], ids=["equal ranks", "unequal ranks"])
def test_routed_layers_compute_the_closed_form(ranks: tuple[int, ...], build: Callable[..., Core]) -> None:
    """Concatenated adapter + per-sample gate: y_b = W x_b + Σ_i w_bi s_i B_i A_i x_b, on the named layers only."""
    core = build(*ranks)
    names = ["e0", "e1", "e2"]
    total = core.concatenate("routed", names, [1, 2])
    assert total == sum(ranks) and {i for _, i, _ in core.layers("routed")} == {1, 2}
    weights = torch.tensor([[0.2, 0.5, 0.3], [1.0, 0.0, 0.0]])
    gate = weights.repeat_interleave(torch.tensor(ranks), dim=1)
    torch.manual_seed(1)
    with core.routed(Route(["routed"], {"routed": gate})):
        for _, index, layer in core.layers("e0"):
            x = torch.randn(2, 5, layer.in_features)
            w, pairs = layer.get_base_layer().weight.double().numpy(), factors_of(layer, names)
            for b in range(2):
                update = naive(pairs, weights[b].double().tolist(), [2.0] * 3, "delta_sum") if index > 0 else 0
                assert_near(layer(x)[b], x[b].double().numpy() @ (w + update).T)


def test_folded_equals_gated_by_a_constant(build: Callable[..., Core]) -> None:
    """What does not depend on the input may be folded: the whole model gives the same logits either way."""
    core = build(4, 4)
    ids = torch.randint(3, 500, (2, 7), generator=torch.Generator().manual_seed(0))
    core.concatenate("routed", ["e0", "e1"], [0, 1, 2])
    with core.routed(Route(["routed"], {"routed": torch.tensor([0.5] * 4 + [0.25] * 4)})):
        gated = core.llava(input_ids=ids).logits
    core.fold(["e0", "e1"], [0.5, 0.25], "delta_sum", [])
    core.follow(Route())
    torch.testing.assert_close(core.llava(input_ids=ids).logits, gated, atol=1e-4, rtol=1e-4)
    core.unfold()
    assert (core.llava(input_ids=ids).logits - gated).abs().max() > 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_unfolding_is_bit_identical_after_fifty_swaps(dtype: torch.dtype, build: Callable[..., Core]) -> None:
    core = build(4, 4, 4, dtype=dtype)
    before = {n: p.detach().clone() for n, p in core.llava.named_parameters()}
    for swap in range(50):
        core.fold(["e0", "e1", "e2"][: 1 + swap % 3], [1.0] * (1 + swap % 3), MODES[swap % 2], [2])
        if swap % 7 == 0:
            core.fold(["e1"], [0.5], "delta_sum", [0])  # a second fold on top of the first
        core.concatenate("routed", ["e0", "e1"], [2])
        core.unfold()
    after = dict(core.llava.named_parameters())
    assert after.keys() == before.keys()
    assert all(torch.equal(after[n], before[n]) for n in before)


def test_folding_rounds_once(build: Callable[..., Core]) -> None:
    """bf16: the folded weight is the nearest bf16 to W + Δ in fp32, and really differs from W."""
    core = build(4, 4, dtype=torch.bfloat16)
    layer = next(m for _, _, m in core.layers("e0"))
    before = layer.get_base_layer().weight.float().clone()
    core.fold(["e0", "e1"], [1.0, 1.0], "delta_sum", [])
    expected = (before + delta(factors_of(layer, ["e0", "e1"]), [1.0, 1.0], [2.0, 2.0], "delta_sum")).bfloat16()
    assert torch.equal(layer.get_base_layer().weight, expected)
    assert not torch.equal(expected.float(), before)


def test_folded_layers_run_without_wrapper_unless_an_adapter_on_them_is_active(build: Callable[..., Core]) -> None:
    core = build(4, 4)
    modules = {path: m for path, _, m in core.layers("e0")}
    ids = torch.tensor([[1, 5, 9, 4]])
    core.fold(["e0"], [1.0], "delta_sum", [2])
    core.follow(Route(["e1"]))
    assert dict(core.llava.named_modules()).keys() >= modules.keys()
    both = core.llava(input_ids=ids).logits  # e0 folded below, e1 everywhere on top
    core.follow(Route())
    for path, module in modules.items():
        lower = "layers.2." not in path
        assert core.llava.get_submodule(path) is (module.get_base_layer() if lower else module), path
    folded = core.llava(input_ids=ids).logits
    core.follow(Route(["e1"]))
    torch.testing.assert_close(core.llava(input_ids=ids).logits, both)
    assert (folded - both).abs().max() > 0.1
    core.follow(Route())
    core.unfold()
    assert {path: m for path, _, m in core.layers("e0")} == modules


# ------------------------------------------------------------------------------- updates that are small beside W


@pytest.mark.parametrize("dtype, folds", [(torch.float32, True), (torch.bfloat16, False), (torch.float16, True)])
@pytest.mark.parametrize("mode", MODES)
def test_an_update_of_a_thousandth_of_the_weights_is_kept(dtype: torch.dtype, folds: bool, mode: str) -> None:
    """A linear of 1,024 by 1,024. For inputs that the experts read, its output changes by the whole update; bf16 weights
    would hold half of it, so there the sum stays one low-rank adapter."""
    generator = torch.Generator().manual_seed(0)
    host = OneLinear(1024, 1024)
    host.model.language_model.layers[0].mlp.down_proj.weight.data.copy_(
        0.02 * torch.randn(1024, 1024, generator=generator)
    )
    core = Core(Llava15(host.to(dtype)))
    core.llava.dtype = dtype
    names, weights = ["e0", "e1"], [1.0, 0.5]
    for name in names:
        core.add(name, LoraSpec(rank=8, alpha=16.0, dropout=0.0, targets="ffn"))
        _, _, layer = next(core.layers(name))
        a, b = (torch.randn(shape, generator=generator) for shape in ((8, 1024), (1024, 8)))
        layer.lora_A[name].weight.data = a
        layer.lora_B[name].weight.data = b * (1e-3 * layer.get_base_layer().weight.float().norm() / (2.0 * (b @ a).norm()))
    base = layer.get_base_layer().weight.detach().clone()
    update = torch.from_numpy(naive(factors_of(layer, names), weights, [2.0] * 2, mode))
    x = torch.randn(40, 8, generator=generator) @ layer.lora_A["e0"].weight.detach()
    x = (x / x.norm(dim=1, keepdim=True)).to(dtype)
    wanted = x.double() @ update.T

    def share(weight: Tensor) -> float:
        change = x.double() @ (weight.double() - base.double()).T
        return float((change * wanted).sum() / wanted.square().sum())

    core.fold(names, weights, mode, [])
    core.follow(Route())
    (measured,) = core.kept.values()
    rounded = (base.double() + update).to(dtype)
    assert (measured >= 0.99) == folds
    assert torch.equal(layer.get_base_layer().weight, base) != folds
    assert (share(rounded) > 0.95) == folds  # what folding alone would do
    change = host(x).double() - x.double() @ base.double().T
    assert float((change * wanted).sum() / wanted.square().sum()) == pytest.approx(1.0, abs=0.03)
    core.unfold()
    assert torch.equal(layer.get_base_layer().weight, base) and core.names() == names


def test_what_is_kept_is_measured(build: Callable[..., Core]) -> None:
    """Against the formula in double precision, and only linears that hold 99 % are folded."""
    core = build(4, dtype=torch.bfloat16)
    for i, (_, _, layer) in enumerate(core.layers("e0")):
        layer.lora_B["e0"].weight.data.mul_(3.0**-i)  # from large to lost
    before = {path: m.get_base_layer().weight.double().clone() for path, _, m in core.layers("e0")}
    core.fold(["e0"], [1.0], "delta_sum", [])
    for path, _, layer in core.layers("e0"):
        update = torch.from_numpy(naive(factors_of(layer, ["e0"]), [1.0], [2.0], "delta_sum"))
        held = (before[path] + update).bfloat16().double() - before[path]
        assert core.kept[path] == pytest.approx(float((held * update).sum() / update.square().sum()), abs=1e-3)
    shares = list(core.kept.values())
    assert min(shares) < 0.5 < 0.99 < max(shares)
    folded = [p for p, _, m in core.layers("e0") if not torch.equal(m.get_base_layer().weight.double(), before[p])]
    assert folded == [p for p, share in core.kept.items() if share >= 0.99]


@pytest.mark.parametrize("free, reserved, total, kept", [
    (66, 0, 80, "cuda:0"), (41, 0, 80, "cuda:0"), (40.5, 0, 80, "cpu"), (20, 30, 80, "cuda:0"), (10, 0, 24, "cpu"),
])  # fmt: skip
def test_copies_stay_on_the_gpu_while_half_of_it_is_free(
    free: float, reserved: float, total: float, kept: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In GB; the copy has one."""
    asked = {"mem_get_info": (free * 1e9, total * 1e9), "memory_reserved": (reserved + 1) * 1e9, "memory_allocated": 1e9}
    for name, answer in asked.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, answer=answer: answer)
    weight = SimpleNamespace(device=torch.device("cuda:0"), nbytes=10**9)
    assert str(place(weight)) == kept
    assert str(place(SimpleNamespace(device=torch.device("cpu"), nbytes=10**9))) == "cpu"
