"""EBLoRA against a recording of its published optimizer, and against its formulas in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hide_llava.adapters import gradients
from hide_llava.adapters.stiefel import retracted, tangent
from hide_llava.adapters.subspace import outside
from hide_llava.methods.base import Context
from hide_llava.methods.eblora import EBLora
from hide_llava.methods.keeplora import KeepLora
from hide_llava.methods.registry import method_config
from hide_llava.methods.routed import RoutedLlava
from tests.methods.host import LAYER, assert_near, layer_of, on_one_linear, recorded, run_linear, tasks
from tests.methods.recorded import case, on_tiny_llama
from tests.methods.refused import assert_refused
from tests.methods.test_keeplora import batches, context


def on_linear(tensors: dict[str, Tensor], **options: object) -> EBLora:
    """In its first task on one linear, with the recorded U, V, s and subspace."""
    a, b = tensors["param.A"], tensors["param.B"]
    method = on_one_linear(EBLora, torch.zeros(len(b), a.shape[1]), rank=len(a), alpha=2.0 * len(a), **options)
    method.before_task(tasks()[0], Context())
    layer = layer_of(method)
    layer.lora_A["expert-01"].weight.data.copy_(a)
    layer.lora_B["expert-01"].weight.data.copy_(b)
    method.scales().data.copy_(tensors["param.s"])
    method.frames[LAYER] = tensors.get("param.F", torch.zeros(a.shape[1], 0))
    return method


def parts(method: EBLora) -> dict[str, torch.nn.Parameter]:
    layer = layer_of(method)
    found = {"A": layer.lora_A["expert-01"].weight, "B": layer.lora_B["expert-01"].weight, "s": method.scales()}
    return {name: parameter.requires_grad_(True) for name, parameter in found.items()}


@pytest.mark.parametrize("kind", [EBLora, KeepLora])
def test_first_values_do_not_depend_on_the_passes(kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory for one decoder layer at a time: no expert is at work before the gradients of all linears are there."""
    tensors = recorded("keeplora")
    found = []
    for room in (float("inf"), 1.0):
        monkeypatch.setattr(gradients, "_room", lambda device, room=room: room)
        torch.manual_seed(0)
        routed = on_tiny_llama(kind, {k: v for k, v in tensors.items() if k.startswith("param.")}, 0, rank=2)
        routed.method.before_task(tasks()[0], context(routed, batches(tensors, "task1")))
        found.append([p.detach().clone() for p in routed.core.parameters_of("expert-01")])
    assert len(found[0]) > 4 and all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("name", ["first", "later"])
def test_published_optimizer(name: str) -> None:
    """Three steps of its Riemannian AdamW with the recorded gradients, without and with a subspace of earlier tasks: here
    upstream's AdamW between our two hooks."""
    tensors = case(recorded("eblora"), name)
    method = on_linear(tensors)
    mine = parts(method)
    optimizer = torch.optim.AdamW(list(mine.values()), lr=2e-3, weight_decay=0.1)
    for step in range(3):
        for key, parameter in mine.items():
            parameter.grad = tensors[f"in.{step}.{key}"].clone()
        method.on_gradients(step)
        optimizer.step()
        method.after_step(step)
        for key, parameter in mine.items():
            assert_near(parameter.detach(), tensors[f"out.{step}.{key}"])
    assert (mine["B"].detach() - tensors["param.B"]).abs().max() > 0.01


@pytest.mark.parametrize("name", ["first", "later"])
def test_singular_values_stay_equal(name: str) -> None:
    """After any step the update has `rank` equal singular values, and reads nothing of the subspace in use."""
    tensors = case(recorded("eblora"), name)
    method = on_linear(tensors)
    mine = parts(method)
    optimizer = torch.optim.SGD(list(mine.values()), lr=0.1)
    for step in range(4):
        for key, parameter in mine.items():
            parameter.grad = 3 * tensors[f"in.{step % 3}.{key}"]
        method.on_gradients(step)
        optimizer.step()
        method.after_step(step)
    update = (mine["s"] * mine["B"] @ mine["A"]).detach()
    values = torch.linalg.svdvals(update)
    assert_near(values[:3], values[:1].expand(3))
    assert_near(values[0], mine["s"].detach().abs()[0])
    assert values[3:].max() < 1e-5 * values[0]
    if name == "later":
        assert (update @ tensors["param.F"]).abs().max() < 1e-6


def test_formulas_in_float64() -> None:
    """A tangent change keeps XᵀX to first order, and the polar factor is that of upstream's SVD."""
    torch.manual_seed(0)
    x = torch.linalg.qr(torch.randn(8, 3, dtype=torch.float64))[0]
    d = torch.randn(8, 3, dtype=torch.float64)
    expected = d.clone()
    for i in range(8):
        for j in range(3):
            expected[i, j] -= sum(x[i, k] * d[m, k] * x[m, j] for k in range(3) for m in range(8))
    t = tangent(x, d)
    assert_near(t, expected)
    skew = x.T @ t
    assert_near(skew, -skew.T)
    u, _, vt = torch.linalg.svd(x + d, full_matrices=False)
    assert_near(retracted(x, d), u @ vt)
    zero = torch.cat([x[:, :2], torch.zeros(8, 1, dtype=torch.float64)], 1)
    kept = retracted(zero, torch.zeros_like(zero))
    assert_near(kept, zero)


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    return recorded("keeplora")


def on_recorded_model(tensors: dict[str, Tensor], **options: object) -> tuple[RoutedLlava, Context]:
    parameters = {k: v for k, v in tensors.items() if k.startswith("param.")}
    routed = on_tiny_llama(EBLora, parameters, 0, **options)
    return routed, context(routed, batches(tensors, "task1"))


def test_first_values_go_down_the_gradient(tensors: dict[str, Tensor]) -> None:
    """U and V are orthonormal; −s U Vᵀ follows the mean gradient, so a small −s lowers the loss on the sample."""
    losses = []
    for scale in (0.0, 1e-3):
        routed, first = on_recorded_model(tensors, rank=3, first_scale=scale, last_scale=scale, share=1.0)
        routed.method.before_task(tasks()[0], first)
        for layer in routed.method.linears().values():
            a, b = layer.lora_A["expert-01"].weight, layer.lora_B["expert-01"].weight
            assert_near(a @ a.T, torch.eye(3))
            assert_near(b.T @ b, torch.eye(3))
        losses.append(sum(float(routed(**batch).loss.detach()) for batch in first.train_data))
    assert losses[1] < losses[0]


def test_scales_are_linear_in_depth(tensors: dict[str, Tensor]) -> None:
    routed, first = on_recorded_model(tensors, rank=2, first_scale=0.002, last_scale=0.008)
    routed.method.before_task(tasks()[0], first)
    for path, place in routed.method.places.items():
        assert float(routed.method.scales()[place].detach()) == pytest.approx(-0.002 if "layers.0." in path else -0.008)


def test_where_gradients_are_taken(tensors: dict[str, Tensor]) -> None:
    """The second task begins at the base model, or at the model that the first task left; the first task is the same."""
    found = {}
    for at in ("current", "base"):
        routed, first = on_recorded_model(
            tensors, rank=2, gradients_at=at, first_scale=0.5, last_scale=0.5, task_energy=0.2
        )
        method = routed.method
        method.before_task(tasks()[0], first)
        one = {path: layer.lora_A["expert-01"].weight.clone() for path, layer in method.linears().items()}
        method.after_task(tasks()[0], first)
        method.used = {}
        method.before_task(tasks()[1], first)
        found[at] = (one, {path: layer.lora_A["expert-02"].weight.clone() for path, layer in method.linears().items()})
    for path in found["base"][0]:
        assert torch.equal(found["base"][0][path], found["current"][0][path])
        assert_near(found["base"][1][path], found["base"][0][path])
        assert (found["current"][1][path] - found["base"][1][path]).abs().max() > 1e-3


def test_the_finished_expert_is_a_plain_lora() -> None:
    """s is in B when a task has ended: the same answers, without a gate, and folded."""
    tensors = case(recorded("eblora"), "first")
    method = on_linear(tensors)
    torch.manual_seed(1)
    x = torch.randn(2, 5, tensors["param.A"].shape[1])
    route = method.route({}, None, True)
    assert set(route.gates) == {"expert-01"}
    at_work = run_linear(method, route, x).detach()
    assert_near(at_work, 2 * tensors["param.s"] * x @ tensors["param.A"].T @ tensors["param.B"].T)
    method.absorb()
    method.at_work = False
    assert not method.route({}, None, True).gates
    assert_near(run_linear(method, method.route({}, None, True), x).detach(), at_work)
    method.prepare_inference()
    assert_near(run_linear(method, method.route({}, None, False), x).detach(), at_work)


@pytest.mark.parametrize("name", ["eblora", "keeplora"])
def test_a_start_of_its_own_is_refused(name: str) -> None:
    """A begins as directions of the gradient, so that a standard deviation would have no effect."""
    assert_refused(name, "init_std", 0.5, "A begins as directions of the gradient")
    assert method_config({"name": name, "init_std": None}).init_std is None


class Precisions(TorchDispatchMode):
    """The precision of every product of two fp32 matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.mm.default and args[0].dtype == torch.float32:
            self.found.add(torch.get_float32_matmul_precision())
        return func(*args, **(kwargs or {}))


def test_what_has_to_stay_outside_of_a_space_is_computed_without_tf32() -> None:
    x = torch.linalg.qr(torch.randn(9, 3))[0]
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        with Precisions() as precisions:
            outside(torch.randn(9, 4), x)
            tangent(x, torch.randn(9, 3))
            retracted(x, torch.randn(9, 3))
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)
    assert precisions.found == {"highest"}
