"""MAny: the merged update against loops in float64, its recursive form, and how projectors are weighed."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from hide_llava.errors import UserError
from hide_llava.methods import many
from hide_llava.methods.base import Context, Features
from hide_llava.methods.many import Many, solved, truncated
from tests.methods.host import LAYER, assert_near, fill, folded, layer_of, on_one_linear, run_linear, tasks
from tests.methods.refused import assert_refused

D_IN, D_OUT, RANK, SCALE = 6, 5, 2, 1.5


def context(records: list[Tensor]) -> Context:
    """The engine's, for a model that is one linear: a batch is its input."""
    return Context(train_data=records, loader=lambda rows, size: [rows[i] for i in range(len(rows))],
                   widths={"clip_image": 4})  # fmt: skip


def learned(data: list[list[Tensor]], **options: object) -> tuple[Many, list[Tensor]]:
    """A method after tasks with these records, and the Δ_t of each, fp64."""
    torch.manual_seed(1)
    method = on_one_linear(Many, torch.randn(D_OUT, D_IN), rank=RANK, alpha=RANK * SCALE, share=1.0, **options)
    updates = []
    for task, records in zip(tasks(len(data)), data):
        now = context(records)

        def forward(batch: Tensor, **more: object) -> None:
            run_linear(method, method.route({}, None, True), batch)

        now.forward = forward
        method.before_task(task, now)
        a, b = torch.randn(RANK, D_IN), torch.randn(D_OUT, RANK)
        fill(method, method.expert(task.index), a, b)
        method.after_task(task, now)
        updates.append(SCALE * b.double() @ a.double())
    return method, updates


def merged(method: Many) -> Tensor:
    """What the method adds to the linear, fp64."""
    with folded(method) as found:
        return found.double()


def moment(records: list[Tensor]) -> Tensor:
    """E x xᵀ, the mean over the tokens of all records, token by token."""
    tokens = [token for record in records for token in record[0].double()]
    total = torch.zeros(D_IN, D_IN, dtype=torch.float64)
    for token in tokens:
        for i in range(D_IN):
            for j in range(D_IN):
                total[i, j] += token[i] * token[j] / len(tokens)
    return total


def drawn(count: int) -> list[list[Tensor]]:
    """Records of several lengths, of which every task has one more than the task before."""
    torch.manual_seed(0)
    return [[torch.randn(1, 3 + record, D_IN) for record in range(3 + task)] for task in range(count)]


@pytest.mark.parametrize("balance", ["tasks", "records"])
def test_merged_update_is_the_batch_solution_and_the_recursive_one(balance: str) -> None:
    data = drawn(3)
    method, updates = learned(data, ridge=0.05, balance=balance)
    moments = [moment(records) * (len(records) if balance == "records" else 1) for records in data]
    ridge = 0.05 * sum(moments).trace() / D_IN * torch.eye(D_IN, dtype=torch.float64)
    recursive, gram = torch.zeros(D_OUT, D_IN, dtype=torch.float64), ridge
    for update, s in zip(updates, moments):
        gram = gram + s
        recursive = recursive + (update - recursive) @ s @ torch.linalg.inv(gram)
    batch = sum(d @ s for d, s in zip(updates, moments)) @ torch.linalg.inv(sum(moments) + ridge)
    found = merged(method)
    assert_near(found, batch)
    assert_near(found, recursive)
    assert (found - sum(updates)).abs().max() > 0.1 and (found - sum(updates) / 3).abs().max() > 0.1


def test_no_update_answers_all_inputs_better() -> None:
    """The squared error summed over tasks, as it is written, is larger a small step away from M in any direction."""
    data = drawn(2)
    method, updates = learned(data, ridge=1e-9)

    def error(m: Tensor) -> float:
        parts = [((torch.cat(records, 1)[0].double() @ (m - update).T) ** 2).sum(1).mean()
                 for update, records in zip(updates, data)]  # fmt: skip
        return float(sum(parts))

    best = merged(method)
    torch.manual_seed(2)
    assert all(error(best + 0.01 * torch.randn(D_OUT, D_IN).double()) > error(best) for _ in range(20))


def test_one_task_is_itself() -> None:
    method, (update,) = learned(drawn(1), ridge=1e-10)
    assert_near(merged(method), update)


def test_tasks_with_orthogonal_inputs_are_added_exactly() -> None:
    """On the inputs of each task the merged update answers as that task's own, which is 0 for the others'."""
    torch.manual_seed(3)
    halves = [torch.cat([torch.eye(3), torch.zeros(3, 3)], 1), torch.cat([torch.zeros(3, 3), torch.eye(3)], 1)]
    data = [[torch.randn(1, 8, 3) @ half for _ in range(3)] for half in halves]
    method, updates = learned(data, ridge=1e-10)
    expected = sum(update @ half.T.double() @ half.double() for update, half in zip(updates, halves))
    assert_near(merged(method), expected)


def test_inputs_that_were_never_seen_are_left_alone() -> None:
    method, _ = learned([[torch.zeros(1, 4, D_IN)]])
    assert merged(method).abs().max() == 0


@pytest.mark.parametrize("options", [{"scale": 0.5}, {"merged_rank": 2}])
def test_scale_and_rank_of_what_is_merged(options: dict) -> None:
    whole = merged(learned(drawn(3))[0])
    u, s, v = torch.linalg.svd(whole, full_matrices=False)
    expected = u[:, :2] * s[:2] @ v[:2] if "merged_rank" in options else 0.5 * whole
    assert s[2] > 0.05 * s[0]
    assert_near(merged(learned(drawn(3), **options)[0]), expected)


@pytest.mark.parametrize("shape", [(4, 9, 7), (9, 4, 7), (3, 9, 8)])
def test_truncated_is_the_leading_part_of_a_singular_value_decomposition(shape: tuple[int, int, int]) -> None:
    """Also where the rank of all experts together is larger than a width."""
    rank, d_in, d_out = shape
    torch.manual_seed(4)
    a, b = torch.randn(rank, d_in).double(), torch.randn(d_out, rank).double()
    u, s, v = torch.linalg.svd(b @ a, full_matrices=False)
    assert_near(truncated(a, b, 2) @ a, u[:, :2] * s[:2] @ v[:2], 1e-10)


def test_the_ridge_has_the_unit_of_the_inputs() -> None:
    """Inputs a hundred times as large: the same update. A G that no ridge of this size makes definite is refused."""
    small, large = (merged(learned([[100**p * x for x in records] for records in drawn(2)], ridge=0.1)[0]) for p in (0, 1))
    assert_near(large, small)
    with pytest.raises(UserError, match=r"method\.ridge=1e-09: .* give a larger one"):
        solved(torch.ones(1, 2), torch.tensor([[1.0, 2.0], [2.0, 1.0]]), 1e-9)


def test_solving_leaves_the_moments_alone() -> None:
    gram = torch.eye(2, dtype=torch.float64)
    assert_near(solved(torch.ones(1, 2), gram, 1.0), torch.full((1, 2), 0.5, dtype=torch.float64), 1e-12)
    assert torch.equal(gram, torch.eye(2, dtype=torch.float64))


def test_inputs_of_the_base_model_have_its_projector_and_no_expert(monkeypatch: pytest.MonkeyPatch) -> None:
    """What routes while S_t is measured, and with which projector; afterwards the task's own is back, and is kept."""
    for inputs in ("own", "base"):
        torch.manual_seed(5)
        method = on_one_linear(Many, torch.randn(D_OUT, D_IN), rank=RANK, alpha=3.0, inputs=inputs)
        now = context([torch.randn(1, 2, D_IN)])
        base = method.core.projector.weight.detach().clone()
        method.before_task(tasks()[0], now)
        method.core.projector.weight.data += 1.0
        seen: list[tuple[list[str], Tensor]] = []

        def look(*told: object, of_tokens: bool, method: Many = method, seen: list = seen) -> None:
            seen.append((method.route({}, None, True).active, method.core.projector.weight.detach().clone()))

        monkeypatch.setattr(many, "input_moments", look)
        method.after_task(tasks()[0], now)
        ((active, weight),) = seen
        assert active == ([] if inputs == "base" else ["expert-01"])
        assert torch.equal(weight, base + (inputs == "own"))
        assert torch.equal(method.core.projector.weight, base + 1.0)
        assert torch.equal(method.core.projectors["expert-01"]["weight"], base + 1.0)
        assert method.route({}, None, True).active == ["expert-01"]


def gathered(images: list[Tensor | None]) -> Many:
    """Tasks whose training images have these features [n, 4]; None: a task of text alone."""
    method = on_one_linear(Many, torch.randn(D_OUT, D_IN), rank=RANK, alpha=3.0, temperature=0.4)
    for task, image in zip(tasks(len(images)), images):
        now = context([torch.randn(1, 2, D_IN)])
        now.forward = lambda batch, **more: run_linear(method, method.route({}, None, True), batch)
        method.before_task(task, now)
        for row in [torch.zeros(1, 4)] if image is None else image.split(2):
            known = torch.full((len(row),), image is not None)
            assert method.loss(None, {}, Features(image=row, has_image=known)) == {}
        method.after_task(task, now)
    return method


def test_weights_of_projectors() -> None:
    """softmax(cos / τ) with the mean features of each task's images, row by row; a record without an image counts nowhere."""
    torch.manual_seed(6)
    data = [torch.randn(3, 4), torch.randn(5, 4)]
    method, image = gathered(data), torch.randn(3, 4)
    route = method.route({}, Features(image=image, has_image=torch.ones(3, dtype=torch.bool)), False)
    assert route.active == [] and not route.gates
    for row in range(3):
        f, means = image[row].double(), [d.double().mean(0) for d in data]
        powers = [math.exp(float(f @ p / f.norm() / p.norm()) / 0.4) for p in means]
        for task, power in enumerate(powers):
            name = method.expert(task)
            assert float(route.projectors[name][row]) == pytest.approx(power / sum(powers), rel=1e-5)
            assert float(route.weights[name][row]) == float(route.projectors[name][row])


def test_a_task_without_an_image_lends_no_projector() -> None:
    torch.manual_seed(7)
    image = Features(image=torch.randn(2, 4), has_image=torch.ones(2, dtype=torch.bool))
    assert gathered([None, torch.randn(3, 4)]).mixture(image).tolist() == [[0.0, 1.0]] * 2
    assert gathered([None, None]).mixture(image).tolist() == [[0.5, 0.5]] * 2


def test_state_within_a_task_and_after_it() -> None:
    """What a new method restores answers and weighs as the old one; the task that is gathered goes on from its sum."""
    torch.manual_seed(8)
    data = drawn(2)
    method, _ = learned(data, ridge=0.05)
    method.prototypes.add(0, torch.randn(3, 4))
    method.prototypes.add(1, torch.randn(3, 4))
    state = {k: v.clone() if isinstance(v, Tensor) else v for k, v in method.state().items()}
    other, _ = learned([[torch.randn(1, 4, D_IN)] for _ in range(2)], ridge=0.05)
    for task in range(2):
        a, b = (getattr(layer_of(method), f"lora_{side}")[method.expert(task)].weight.data for side in "AB")
        fill(other, method.expert(task), a, b)
    with torch.no_grad():
        layer_of(other).get_base_layer().weight.copy_(layer_of(method).get_base_layer().weight)
    assert not torch.equal(merged(other), merged(method))
    other.load_state(state)
    assert torch.equal(merged(other), merged(method)) and other.rows[LAYER].dtype == torch.float64
    image = Features(image=torch.randn(2, 4), has_image=torch.ones(2, dtype=torch.bool))
    assert torch.equal(other.mixture(image), method.mixture(image))
    method.before_task(tasks()[2], context(data[0]))
    method.prototypes.add(2, torch.ones(3, 4))
    begun = method.state()
    other.load_state(begun)
    assert begun["gathering"] and other.gathering and other.prototypes.mean(2).tolist() == [1.0] * 4


def test_a_frozen_projector_asks_for_no_features() -> None:
    method, _ = learned(drawn(2), projector="frozen")
    assert method.needs == frozenset() and method.loss(None, {}, Features()) == {}
    route = method.route({}, Features(), False)
    assert route.projectors is None and route.active == []
    assert not any(key.startswith(("prototype", "projector")) for key in method.state())


def test_settings_that_are_refused() -> None:
    assert_refused("many", "ridge", 0.0, "greater than 0")
    assert_refused("many", "temperature", 0.0, "greater than 0")
    assert_refused("many", "merged_rank", 0, "at least 1")
    assert_refused("many", "share", 1.5, "(0, 1]")
    assert_refused("many", "inputs", "merged", "own")
    assert_refused("many", "balance", "tokens", "tasks")
