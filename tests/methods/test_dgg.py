"""DGG's guided gradient against a loop in float64, its draw, and what it trains on."""

from __future__ import annotations

import math
from types import SimpleNamespace

import datasets
import pytest
import torch
from torch import Tensor

from hide_llava.methods.base import Context
from hide_llava.methods.dgg import Dgg, guided
from tests.methods.host import assert_near, on_one_linear, tasks
from tests.methods.refused import assert_refused


def by_hand(gradients: list[Tensor], displacements: list[Tensor]) -> list[Tensor]:
    norms = [
        math.sqrt(sum(float(v) ** 2 for t in tensors for v in t.flatten())) for tensors in (gradients, displacements)
    ]
    factor = min(1.0, norms[0] / norms[1]) if norms[1] else 0.0
    return [g.double() + factor * d.double() for g, d in zip(gradients, displacements)]


@pytest.mark.parametrize("size", [0.0, 0.01, 100.0])
def test_guided_gradient(size: float) -> None:
    """A short displacement is added as it is, a long one with the length of the gradient; none changes nothing."""
    torch.manual_seed(0)
    gradients = [torch.randn(3, 4), torch.randn(5)]
    displacements = [size * torch.randn(3, 4), size * torch.randn(5)]
    for ours, expected in zip(guided(gradients, displacements), by_hand(gradients, displacements)):
        assert_near(ours.double(), expected)


def in_task(index: int, **options: object) -> Dgg:
    method = on_one_linear(Dgg, torch.randn(5, 6), rank=2, alpha=4.0, **options)
    for task in tasks()[: index + 1]:
        method.before_task(task, Context())
    return method


def test_the_gradient_points_away_from_where_the_task_began() -> None:
    torch.manual_seed(1)
    method = in_task(1, probability=1.0)
    before = [p.detach().clone() for p in method.trained()]
    for parameter in method.trained():
        parameter.requires_grad_(True)
        parameter.data += torch.randn_like(parameter)
        parameter.grad = torch.randn_like(parameter)
    gradients = [p.grad.clone() for p in method.trained()]
    expected = by_hand(gradients, [p.detach() - b for p, b in zip(method.trained(), before)])
    method.on_gradients(3)
    for parameter, value in zip(method.trained(), expected):
        assert_near(parameter.grad.double(), value)


@pytest.mark.parametrize(("index", "probability"), [(0, 1.0), (1, 0.0)])
def test_no_guidance_in_the_first_task_and_where_none_is_drawn(index: int, probability: float) -> None:
    method = in_task(index, probability=probability)
    for parameter in method.trained():
        parameter.data += 1.0
        parameter.grad = torch.ones_like(parameter)
    method.on_gradients(0)
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in method.trained())


def test_the_draw_is_of_the_step_alone() -> None:
    """The share is the probability; another task and another seed draw otherwise; asked again, a step says the same."""
    method = in_task(1, probability=0.25)
    drawn = [method.added(step) for step in range(2000)]
    assert 0.2 < sum(drawn) / 2000 < 0.3
    torch.manual_seed(99)
    assert drawn[:50] == [method.added(step) for step in range(50)]
    other = in_task(2, probability=0.25)
    assert drawn != [other.added(step) for step in range(2000)]
    seeded = in_task(1, probability=0.25, seed=1)
    assert drawn != [seeded.added(step) for step in range(2000)]


def test_every_new_record_has_one_of_the_buffer_beside_it() -> None:
    def table(name: str, count: int) -> datasets.Dataset:
        return datasets.Dataset.from_dict({"id": [f"{name}{i}" for i in range(count)]})

    tables = {0: table("a", 10), 1: table("b", 3)}
    method = in_task(2, buffer=4.0)
    found = method.train_data(tasks()[2], table("c", 15), SimpleNamespace(records=tables.__getitem__))["id"]
    assert found[:15] == [f"c{i}" for i in range(15)]
    memory = found[15:]
    assert len(memory) == 15 and len(set(memory)) == 4 + 3 and memory[:7] == memory[7:14]
    assert {name[0] for name in memory} == {"a", "b"}
    assert method.state()["buffer"].keys() == {"0", "1"} and method.state()["buffer"]["1"] == [0, 1, 2]
    assert method.train_data(tasks()[0], table("c", 5), SimpleNamespace(records=None))["id"] == [
        f"c{i}" for i in range(5)
    ]


def test_of_a_buffer_larger_than_the_task_every_earlier_task_has_its_share() -> None:
    def table(name: str, count: int) -> datasets.Dataset:
        return datasets.Dataset.from_dict({"id": [f"{name}{i}" for i in range(count)]})

    tables = {0: table("a", 200), 1: table("b", 100)}
    found = in_task(2).train_data(tasks()[2], table("c", 30), SimpleNamespace(records=tables.__getitem__))["id"]
    memory = found[30:]
    assert len(set(memory)) == 30 and [sum(name[0] == task for name in memory) for task in "ab"] == [20, 10]


def test_a_seed_as_long_as_a_date() -> None:
    assert {in_task(1, seed=seed).added(step) for seed in (20240101, 2**62) for step in range(20)} == {True, False}


def test_settings_that_are_refused() -> None:
    assert_refused("dgg", "buffer", 2.5, "must be a whole number of records, with unit=each")
    assert_refused("dgg", "buffer", 101, "must be at most 100, with unit=percent", unit="percent")
    assert_refused("dgg", "probability", 1.5, "in [0, 1]")
