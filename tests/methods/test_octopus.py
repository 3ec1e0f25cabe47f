"""Octopus against loops in float64: its loss, its gradients, what each stage trains and what is kept of it."""

from __future__ import annotations

import math
from types import SimpleNamespace

import datasets
import pytest
import torch
from torch import Tensor

from hide_llava.adapters.route import Route
from hide_llava.errors import UserError
from hide_llava.methods.base import Context
from hide_llava.methods.octopus import FIRST, Octopus, direction, overlap
from hide_llava.methods.registry import method_config
from tests.methods.host import LAYER, assert_near, fill, layer_of, on_one_linear, run_linear, tasks
from tests.methods.refused import assert_refused

# Drawn so that the overlap below is 0.1: it is a sum of terms near 1, which fp32 rounds by 1e-7 also where it is almost 0.
INPUTS = torch.randn(9, 4, 6, generator=torch.Generator().manual_seed(3))
TARGETS = torch.randn(9, 4, 5, generator=torch.Generator().manual_seed(14))


def loss_of(y: Tensor, record: int) -> Tensor:
    """What stands for the cross-entropy: curved, so that its gradient depends on the active experts."""
    return (y[0] - TARGETS[record]).pow(4).mean()


def context(method: Octopus, records: int = 9) -> Context:
    def forward(batch: dict, **_: object) -> SimpleNamespace:
        y = run_linear(method, method.route(batch, None, True), INPUTS[batch["record"]][None])
        return SimpleNamespace(loss=loss_of(y, batch["record"]))

    def loader(data: object, size: int) -> list[dict]:
        assert size == 1
        return [{"record": data[i]} for i in range(len(data))]

    return Context(train_data=list(range(records)), loader=loader, forward=forward)


def values(method: Octopus, name: str) -> tuple[Tensor, Tensor]:
    layer = layer_of(method)
    return layer.lora_A[name].weight.detach().clone(), layer.lora_B[name].weight.detach().clone()


def learn(method: Octopus, index: int) -> list[tuple[Tensor, Tensor]]:
    """A task with made-up results of both stages; returns them."""
    method.before_task(method.tasks[index], context(method))
    results = []
    for part in range(2):
        a, b = torch.randn(2, 6), torch.randn(5, 2)
        if part:
            method.begin_part(1)
        fill(method, method.adapter, a, b)
        results.append((a, b))
    method.after_task(method.tasks[index], Context())
    return results


def begun(index: int, **options: object) -> tuple[Octopus, list[list[tuple[Tensor, Tensor]]]]:
    """At the beginning of task `index` (from 0), and what the tasks before it learned in each stage."""
    torch.manual_seed(0)
    method = on_one_linear(Octopus, torch.randn(5, 6), **{"rank": 2, "alpha": 4.0, "gradient_records": 7, **options})
    learned = [learn(method, i) for i in range(index)]
    method.before_task(method.tasks[index], context(method))
    return method, learned


def gradient_by_hand(method: Octopus, learned: list[list[tuple[Tensor, Tensor]]], records: int) -> Tensor:
    """Σ_p mean over records of the derivative of the loss by W, token by token, at W and the first p experts of stage 2."""
    weight = layer_of(method).get_base_layer().weight.detach().double()
    total = torch.zeros(5, 6, dtype=torch.float64)
    for _, (a, b) in learned:
        weight = weight + 2.0 * b.double() @ a.double()
        for record in range(records):
            for token in range(4):
                x = INPUTS[record, token].double()
                for i in range(5):
                    error = float((weight[i] * x).sum()) - float(TARGETS[record, token, i])
                    total[i] += 4 * error**3 / 20 * x / records
    return total


@pytest.mark.parametrize("index", [1, 2])
def test_gradients_of_the_current_data_at_all_earlier_models(index: int) -> None:
    method, learned = begun(index)
    assert_near(method.gradients[LAYER].double(), gradient_by_hand(method, learned, 7))
    assert method.prefix is None


def test_no_more_records_than_the_task_has() -> None:
    method, learned = begun(1, gradient_records=256)
    assert_near(method.gradients[LAYER].double(), gradient_by_hand(method, learned, 9))


def test_terms_and_their_gradient() -> None:
    """Both terms by loops; A gets no gradient from them, B that of finite differences."""
    method, learned = begun(1, orthogonality=0.7, shrinkage=0.3)
    assert method.loss(None, {}, None) == {}  # stage 1: cross-entropy alone
    method.begin_part(1)
    torch.manual_seed(5)
    a, b, g = torch.randn(2, 6), torch.randn(5, 2), gradient_by_hand(method, learned, 7)
    fill(method, method.adapter, a, b)

    def by_hand(b: Tensor) -> tuple[float, float]:
        product = [[sum(float(a[k, j]) * float(g[i, j]) for j in range(6)) for i in range(5)] for k in range(2)]
        of_n = math.sqrt(sum(v**2 for row in product for v in row)) + 1e-8
        norm = math.sqrt(sum(float(v) ** 2 for v in b.flatten()))
        inner = sum(float(b[i, k]) / (norm + 1e-8) * product[k][i] / of_n for i in range(5) for k in range(2))
        return 0.7 * abs(inner), 0.3 * norm

    terms = method.loss(None, {}, None)
    assert [float(t.detach()) for t in (terms["orthogonality"], terms["shrinkage"])] == pytest.approx(by_hand(b), rel=1e-5)
    sum(terms.values()).backward()
    layer = layer_of(method)
    assert layer.lora_A[method.adapter].weight.grad is None
    for i in range(5):
        for k in range(2):
            step = torch.zeros(5, 2, dtype=torch.float64)
            step[i, k] = 1e-6
            slope = (sum(by_hand(b.double() + step)) - sum(by_hand(b.double() - step))) / 2e-6
            assert float(layer.lora_B[method.adapter].weight.grad[i, k]) == pytest.approx(slope, abs=1e-5)


def test_the_direction_follows_a_from_step_to_step() -> None:
    method, _ = begun(1, shrinkage=0.0)
    method.begin_part(1)
    fill(method, method.adapter, torch.randn(2, 6), torch.randn(5, 2))
    before = float(method.loss(None, {}, None)["orthogonality"].detach())
    layer_of(method).lora_A[method.adapter].weight.data.copy_(torch.randn(2, 6))
    method.after_step(3)
    assert float(method.loss(None, {}, None)["orthogonality"].detach()) != pytest.approx(before, rel=1e-3)


def test_overlap_of_what_is_nothing_is_nothing() -> None:
    zero = torch.zeros(5, 2, requires_grad=True)
    found = overlap(zero, direction(torch.randn(2, 6), torch.zeros(5, 6)))
    found.backward()
    assert float(found.detach()) == 0 and bool(torch.isfinite(zero.grad).all())


def test_shrinkage_of_a_task_of_its_own() -> None:
    method, _ = begun(1, shrinkage=0.3, task_shrinkage={"task1": 0.9})
    method.begin_part(1)
    fill(method, method.adapter, torch.randn(2, 6), torch.ones(5, 2))
    assert float(method.loss(None, {}, None)["shrinkage"].detach()) == pytest.approx(0.9 * math.sqrt(10))


def test_what_each_stage_sees_and_begins_with() -> None:
    """Stage 1 is one sequential LoRA on the base model; stage 2 goes on from it beside the earlier experts."""
    method, (first,) = begun(1)
    x = INPUTS[:1]
    weight = layer_of(method).get_base_layer().weight.detach().clone()  # folding changes it
    for ours, theirs in zip(values(method, method.adapter), first[0]):
        assert torch.equal(ours, theirs)  # θ' of the first task, not what its stage 2 made of it

    def expected(*experts: tuple[Tensor, Tensor]) -> Tensor:
        return x @ (weight + 2.0 * sum(b @ a for a, b in experts)).T

    assert_near(run_linear(method, method.route({}, None, True), x).detach(), expected(first[0]))
    method.begin_part(1)
    assert_near(run_linear(method, method.route({}, None, True), x).detach(), expected(first[1], first[0]))
    mine = (torch.randn(2, 6), torch.randn(5, 2))
    fill(method, method.adapter, *mine)
    method.after_task(method.tasks[1], Context())
    assert method.adapters() == ["expert-02", FIRST] and not method.gradients
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(values(method, FIRST), first[0]))
    method.prepare_inference()
    method.core.follow(Route())
    assert_near(run_linear(method, method.route({}, None, False), x).detach(), expected(first[1], mine))


def test_the_first_task_has_no_terms() -> None:
    method, _ = begun(0)
    method.begin_part(1)
    assert method.loss(None, {}, None) == {} and method.route({}, None, True).active == ["expert-01"]


def test_a_checkpoint_of_the_second_stage_holds_what_the_next_task_begins_with() -> None:
    method, _ = begun(0)
    assert not any(key.startswith("first.") for key in method.state())
    fill(method, method.adapter, torch.randn(2, 6), torch.randn(5, 2))
    method.begin_part(1)
    kept = values(method, method.adapter)
    other, _ = begun(0)
    other.load_state({k: v.clone() if isinstance(v, Tensor) else v for k, v in method.state().items()})
    assert other.part == 1
    other.after_task(other.tasks[0], Context())
    assert all(torch.equal(a, b) for a, b in zip(values(other, FIRST), kept))


def test_records_of_both_stages() -> None:
    def table(count: int) -> datasets.Dataset:
        return datasets.Dataset.from_dict({"id": [f"r{i}" for i in range(count)]})

    method, _ = begun(0, subset=4, task_subset={"task1": 30})
    found = method.train_data(tasks()[0], table(10), None)["id"]
    assert found[:10] == [f"r{i}" for i in range(10)] and method.parts() == [10, 4]
    assert len(set(found[10:])) == 4 and found == method.train_data(tasks()[0], table(10), None)["id"]
    assert method.train_data(tasks()[1], table(10), None)["id"] == 2 * [f"r{i}" for i in range(10)]


def test_settings_that_are_refused() -> None:
    assert_refused("octopus", "subset", 0, "at least 1")
    assert_refused("octopus", "orthogonality", -0.1, "at least 0")
    for name, wrong, says in (("subset", 0, "at least 1"), ("shrinkage", -0.1, "at least 0")):
        with pytest.raises(UserError, match=rf"method.task_{name}.task1={wrong}: must be {says}"):
            method_config({"name": "octopus", f"task_{name}": {"task1": wrong}})
