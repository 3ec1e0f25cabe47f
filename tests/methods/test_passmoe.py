"""PASs-MoE's gate, importance and penalties against loops in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from hide_llava.methods.base import Context
from hide_llava.methods.passmoe import EnergyGate, PassMoe
from tests.methods.host import LAYER, assert_near, fill, layer_of, on_one_linear, run_linear, tasks, trainable_at_7b
from tests.methods.refused import assert_refused

EXPERTS, K, D_IN, D_OUT = 3, 2, 7, 5
ALPHA = 12.0  # scale 2


def loaded(seed: int = 0, **options: object) -> PassMoe:
    torch.manual_seed(seed)
    rank = EXPERTS * K
    method = on_one_linear(PassMoe, torch.randn(D_OUT, D_IN), rank=rank, alpha=ALPHA, experts=EXPERTS, **options)
    fill(method, "experts", torch.randn(rank, D_IN), torch.randn(D_OUT, rank))
    return method


def by_hand(method: PassMoe, token: Tensor) -> tuple[list[float], Tensor]:
    """(π of the experts, y) of one token [d_in], without a matrix product."""
    layer = layer_of(method)
    a, b = (side["experts"].weight.detach().double() for side in (layer.lora_A, layer.lora_B))
    w, x = layer.get_base_layer().weight.detach().double(), token.double()
    u = [sum(float(a[j, c] * x[c]) for c in range(D_IN)) for j in range(EXPERTS * K)]
    energies = [sum(u[i * K + j] ** 2 for j in range(K)) / K for i in range(EXPERTS)]
    largest = max(energies)
    shares = [math.exp(e - largest) for e in energies]
    pi = [share / sum(shares) for share in shares]
    y = torch.tensor([sum(float(w[o, c] * x[c]) for c in range(D_IN)) for o in range(D_OUT)], dtype=torch.float64)
    for o in range(D_OUT):
        y[o] += 2.0 * sum(pi[j // K] * float(b[o, j]) * u[j] for j in range(EXPERTS * K))
    return pi, y


@pytest.mark.parametrize("train", [True, False])
def test_every_token_is_routed_by_its_own_energies(train: bool) -> None:
    method = loaded()
    x = 0.5 * torch.randn(2, 3, D_IN)
    y = run_linear(method, method.route({}, None, train), x).detach().double()
    expected = torch.stack([torch.stack([by_hand(method, token)[1] for token in row]) for row in x])
    assert_near(y, expected)
    pis = [by_hand(method, token)[0] for row in x for token in row]
    assert len({max(range(EXPERTS), key=pi.__getitem__) for pi in pis}) > 1  # tokens really choose differently


def test_several_linears_at_once_are_each_by_itself() -> None:
    gate = EnergyGate(EXPERTS)
    u = torch.randn(2, 3, 4, EXPERTS * K)
    together = gate.bind([])(torch.zeros(2, 3, D_IN), u, None)
    for i in range(4):
        alone = gate("", torch.nn.Identity(), torch.zeros(1))
        assert callable(alone)
        assert torch.equal(together[:, :, i], alone(u[:, :, i]))


def test_gradient_passes_the_gate() -> None:
    """A learns through π as well: the gradient is that of the whole formula, by finite differences."""
    method = loaded()
    x = 0.3 * torch.randn(1, 2, D_IN)
    a = layer_of(method).lora_A["experts"].weight
    route = method.route({}, None, True)
    run_linear(method, route, x).square().sum().backward()
    for place in ((0, 1), (3, 4)):
        values = []
        for step in (-1e-2, 1e-2):
            with torch.no_grad():
                a[place] += step
                values.append(float(run_linear(method, route, x).double().square().sum()))
                a[place] -= step
        assert float(a.grad[place]) == pytest.approx((values[1] - values[0]) / 2e-2, rel=2e-2, abs=2e-2)


def context(method: PassMoe, records: list[Tensor]) -> Context:
    """Records are inputs of the linear, [n, d_in]."""

    def forward(batch: Tensor) -> Tensor:
        method.core.follow(method.route({}, None, True))
        return method.core.llava(batch[None])

    return Context(train_data=records, loader=lambda data, size: [data[i] for i in range(len(data))], forward=forward)


def test_importance_is_a_mean_over_tokens_and_a_sum_over_tasks() -> None:
    method = loaded()
    a = layer_of(method).lora_A["experts"].weight.detach().double()
    total = torch.zeros(EXPERTS * K, dtype=torch.float64)
    for task in tasks()[:2]:
        records = [0.5 * torch.randn(n, D_IN) for n in (3, 5)]
        method.after_task(task, context(method, records))
        tokens = torch.cat(records)
        for token in tokens:
            pi, _ = by_hand(method, token)
            for j in range(EXPERTS * K):
                total[j] += pi[j // K] * float(a[j] @ token.double()) ** 2 / len(tokens)
    assert_near(method.importance[0], total)
    assert_near(method.weights()[0].double(), total / total.max())
    method.config.normalise = "none"
    assert_near(method.weights()[0].double(), total)


def test_penalties() -> None:
    method = loaded(strength_a=0.7, strength_b=0.2)
    assert method.loss(None, {}, None) == {}
    method.after_task(tasks()[0], context(method, [torch.randn(4, D_IN)]))
    terms = method.loss(None, {}, None)
    assert float(terms["rows"].detach()) == 0.0 and float(terms["columns"].detach()) == 0.0
    layer = layer_of(method)
    a, b = (side["experts"].weight for side in (layer.lora_A, layer.lora_B))
    before = a.detach().clone(), b.detach().clone()
    with torch.no_grad():
        a += torch.randn_like(a)
        b += torch.randn_like(b)
    w = method.weights()[0]
    rows = columns = 0.0
    for j in range(EXPERTS * K):
        rows += 0.7 * float(w[j]) * sum(float(a.detach()[j, c] - before[0][j, c]) ** 2 for c in range(D_IN))
        columns += 0.2 * float(w[j]) * sum(float(b.detach()[o, j] - before[1][o, j]) ** 2 for o in range(D_OUT))
    terms = method.loss(None, {}, None)
    assert float(terms["rows"].detach()) == pytest.approx(rows, rel=1e-5)
    assert float(terms["columns"].detach()) == pytest.approx(columns, rel=1e-5)
    sum(terms.values()).backward()
    assert_near(a.grad, 2 * 0.7 * w[:, None] * (a - before[0]).detach())
    assert_near(b.grad, 2 * 0.2 * w * (b - before[1]).detach())


def test_state_is_put_back() -> None:
    method, other = loaded(), loaded(1)
    method.after_task(tasks()[0], context(method, [torch.randn(4, D_IN)]))
    other.load_state(method.state())
    assert torch.equal(other.importance, method.importance) and len(other.found) == 1
    assert all(torch.equal(x, y) for x, y in zip(other.found[0], method.found[0]))


def test_there_is_no_router() -> None:
    """At 7B: rank 96 on all seven linears, and the projector."""
    assert trainable_at_7b(PassMoe) == 96 * 2_498_560 + 20_979_712
    assert LAYER.endswith("down_proj")


def test_settings_that_are_refused() -> None:
    assert_refused("passmoe", "rank", 95, "must be a multiple of experts=6")
    assert_refused("passmoe", "strength_a", -1.0, "at least 0")
