"""Merging: peft's combinations, through our Core, against the formulas in float64 with loops."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hide_llava.methods.merge import COMBINATIONS, Merge
from tests.methods.host import assert_near, fill, folded, on_one_linear
from tests.methods.refused import assert_refused

SHAPE, RANK, SCALE, EXPERTS = (9, 7), 2, 1.5, 3


def experts(each: float | None = None, **options: object) -> tuple[Merge, list[tuple[Tensor, Tensor]]]:
    """Three random experts on one linear, and their factors; `each`: the option `weight`."""
    torch.manual_seed(0)
    method = on_one_linear(Merge, torch.randn(SHAPE), rank=RANK, alpha=RANK * SCALE, **options)
    method.config.weight = each
    pairs = [(torch.randn(RANK, SHAPE[1]), torch.randn(SHAPE[0], RANK)) for _ in range(EXPERTS)]
    for i, (a, b) in enumerate(pairs):
        method.learned.append(i)
        method.core.add(method.expert(i), method.config)
        fill(method, method.expert(i), a, b)
    return method, pairs


def update(method: Merge) -> Tensor:
    """What the merged model adds to the linear, and that it is taken away again exactly."""
    with folded(method) as difference:
        assert method.route({}, None, False).active == []
    assert method.core.names() == [method.expert(i) for i in range(EXPERTS)]
    return difference


def trimmed(tensor: Tensor, density: float) -> Tensor:
    keep = int(density * tensor.numel())
    smallest = sorted(tensor.abs().flatten().tolist(), reverse=True)[keep - 1]
    return torch.where(tensor.abs() >= smallest, tensor, 0.0)


def elected(tensors: list[Tensor]) -> Tensor:
    """Per element: mean of the values whose sign is that of the sum."""
    result = torch.zeros_like(tensors[0])
    for place in torch.cartesian_prod(*(torch.arange(n) for n in result.shape)).tolist():
        values = [float(t[tuple(place)]) for t in tensors]
        sign = 1 if sum(values) >= 0 else -1
        agreeing = [v for v in values if v * sign > 0]
        result[tuple(place)] = sum(agreeing) / len(agreeing) if agreeing else 0.0
    return result


def on_factors(pairs: list, weight: float, combine: Callable[[list[Tensor]], Tensor]) -> Tensor:
    """(Σ √(w s) B)(Σ √(w s) A) with `combine` in place of the sum."""
    root = (weight * SCALE) ** 0.5
    a, b = (combine([pair[i].double() for pair in pairs]) * root for i in (0, 1))
    return b @ a


def on_updates(pairs: list, weight: float, combine: Callable[[list[Tensor]], Tensor]) -> Tensor:
    """The update of rank RANK nearest to w · `combine` of all s B A."""
    whole = weight * combine([SCALE * b.double() @ a.double() for a, b in pairs])
    u, s, v = torch.linalg.svd(whole, full_matrices=False)
    return u[:, :RANK] * s[:RANK] @ v[:RANK]


def test_cat_is_the_sum_of_updates() -> None:
    method, pairs = experts(combination="cat", each=0.4)
    expected = sum(0.4 * SCALE * b.double() @ a.double() for a, b in pairs)
    assert_near(update(method).double(), expected)


def test_linear_sums_factors() -> None:
    method, pairs = experts(combination="linear")
    assert_near(update(method).double(), on_factors(pairs, 1 / EXPERTS, sum))


def test_svd_is_the_best_update_of_the_rank_of_one_expert() -> None:
    method, pairs = experts(combination="svd", each=1.0)
    assert_near(update(method).double(), on_updates(pairs, 1.0, sum))


@pytest.mark.parametrize(("suffix", "on"), [("", on_factors), ("_svd", on_updates)])
def test_magnitude_prune(suffix: str, on: Callable[..., Tensor]) -> None:
    method, pairs = experts(combination=f"magnitude_prune{suffix}", density=0.5)
    expected = on(pairs, 1 / EXPERTS, lambda tensors: sum(trimmed(t, 0.5) for t in tensors))
    assert_near(update(method).double(), expected)


@pytest.mark.parametrize(("suffix", "on"), [("", on_factors), ("_svd", on_updates)])
def test_ties(suffix: str, on: Callable[..., Tensor]) -> None:
    """The sign vote over the factors, or over Δ_i itself."""
    method, pairs = experts(combination=f"ties{suffix}", density=0.5)
    expected = on(pairs, 1.0, lambda tensors: elected([trimmed(t, 0.5) for t in tensors]))
    assert_near(update(method).double(), expected)


@pytest.mark.parametrize(("suffix", "on"), [("", on_factors), ("_svd", on_updates)])
@pytest.mark.parametrize(("combination", "weight", "combine"), [("linear", 1 / EXPERTS, sum), ("ties", 1.0, elected)])
def test_dare_with_its_draws(
    combination: str, weight: float, combine: Callable, suffix: str, on: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given the masks it draws, one per expert and factor or update: kept / density, then the sum or the vote."""
    method, pairs = experts(combination=f"dare_{combination}{suffix}", density=0.4)
    masks, bernoulli = [], torch.bernoulli
    monkeypatch.setattr(torch, "bernoulli", lambda p: masks.append(bernoulli(p)) or masks[-1])

    def dropped(tensors: list[Tensor]) -> list[Tensor]:
        mine = [mask for mask in masks if mask.shape == tensors[0].shape]
        return [t * mask / 0.4 for t, mask in zip(tensors, mine, strict=True)]

    merged = update(method).double()
    assert_near(merged, on(pairs, weight, lambda tensors: combine(dropped(tensors))))
    assert 0 < float(torch.cat([mask.flatten() for mask in masks]).mean()) < 1


def test_dare_drops_at_random_and_keeps_the_mean() -> None:
    """Every factor element is 0 or its value / density; each side's mean over seeds goes to the plain sum."""
    method, pairs = experts(combination="dare_linear", density=0.5, each=1.0)
    draws = []
    for method.config.seed in range(300):
        draws.append(update(method).double())
    expected = on_factors(pairs, 1.0, sum)  # the draws of A and of B are independent: E[B A] = E[B] E[A]
    deviation = torch.stack(draws).std(0) / 300**0.5
    assert bool(((torch.stack(draws).mean(0) - expected).abs() < 5 * deviation).all())
    assert float(torch.stack(draws).std(0).min()) > 0.1
    assert len({tuple(d.flatten().tolist()) for d in draws}) == 300


@pytest.mark.parametrize("combination", COMBINATIONS)
def test_same_seed_same_answer_and_no_other_random_number_is_used(combination: str) -> None:
    method, _ = experts(combination=combination, density=0.5)
    state = torch.get_rng_state()
    first, second = update(method), update(method)
    assert torch.equal(first, second) and first.any()
    assert torch.equal(torch.get_rng_state(), state)


def test_one_expert_is_itself() -> None:
    for combination in ("cat", "linear", "svd", "ties"):
        method, pairs = experts(combination=combination, density=1.0)
        method.learned = [1]
        assert_near(update(method).double(), SCALE * pairs[1][1].double() @ pairs[1][0].double())


def test_settings_that_are_refused() -> None:
    assert_refused("merge", "combination", "average", "linear")
    assert_refused("merge", "density", 0.0, "(0, 1]")
    assert_refused("merge", "density", 1.5, "(0, 1]")
    assert_refused("merge", "weight", -1.0, "greater than 0")
    assert_refused("merge", "projector", "shared", "frozen")
