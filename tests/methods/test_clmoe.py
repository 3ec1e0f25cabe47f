"""CL-MoE's two routers and its momentum merge: recordings, a case by hand, loops in fp64."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from hide_llava.errors import UserError
from hide_llava.methods.base import Context
from hide_llava.methods.clmoe import ClMoe
from hide_llava.methods.registry import method_config
from tests.methods.host import (
    LAYER,
    assert_experts,
    assert_near,
    fill,
    layer_of,
    on_one_linear,
    recorded,
    run_linear,
    stacked,
    tasks,
)

SHAPE = {"rank": 8, "alpha": 16.0, "experts": 4}


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    return recorded("clmoe")


def loaded(tensors: dict[str, Tensor], **options: object) -> ClMoe:
    method = on_one_linear(ClMoe, tensors["layer/param.W"], **SHAPE, **options)
    fill(method, "experts", *stacked(tensors, "layer/param."))
    method.modules["router"].weight(LAYER).data.copy_(tensors["layer/param.router"])
    return method


def shown(method: ClMoe, x: Tensor) -> Context:
    """A context whose data are the rows of x."""
    return Context(
        train_data=range(len(x)),
        loader=lambda data, size: [x[i : i + 1] for i in data],
        forward=lambda rows: run_linear(method, method.route({}, None, True), rows),
    )


# ---------------------------------------------------------------------------------------------------------- recordings


@pytest.mark.parametrize("train", [True, False])
def test_recorded_layer(tensors: dict[str, Tensor], train: bool) -> None:
    """In training, and in all published code at inference too, the instance gate alone."""
    method = loaded(tensors, reference="none" if train else "script")
    x = tensors["layer/in.x"].clone().requires_grad_(True)
    y = run_linear(method, method.route({}, None, train), x)
    assert_near(y.detach(), tensors["layer/out.train" if train else "layer/out.eval"])
    (y * tensors["layer/in.G"]).sum().backward()
    a, b = (side["experts"].weight.grad for side in (layer_of(method).lora_A, layer_of(method).lora_B))
    assert_experts(a, b, tensors, "layer/grad.train.")
    assert_near(method.modules["router"].weight(LAYER).grad, tensors["layer/grad.train.router"])
    assert_near(x.grad, tensors["layer/grad.train.x"])


def test_recorded_statistics(tensors: dict[str, Tensor]) -> None:
    method = loaded(tensors)
    counts = method.count(tasks()[0], shown(method, tensors["layer/in.x"]))
    assert counts.tolist() == [tensors["statistics/out.counts"].tolist()]


def test_recorded_mixture_of_both_gates(tensors: dict[str, Tensor]) -> None:
    """The line that the published code has commented out, with the statistics' task gate: our inference."""
    method, x = loaded(tensors), tensors["layer/in.x"].clone().requires_grad_(True)
    method.usage[0] = tensors["statistics/out.counts"].long()[None]
    assert_near(method.task_gates([0])[0], tensors["test_mixture/in.task_gate"])
    y = run_linear(method, method.route({}, None, False), x)
    assert_near(y.detach(), tensors["test_mixture/out.eval"])
    (y * tensors["layer/in.G"]).sum().backward()
    assert_near(x.grad, tensors["test_mixture/grad.eval.x"])
    script = loaded(tensors, reference="script")
    script.usage = dict(method.usage)
    assert (run_linear(script, script.route({}, None, False), x) - y).abs().max() > 0.1


def at_the_end_of_task_2(tensors: dict[str, Tensor], case: str, **options: object) -> ClMoe:
    """The merge script's two checkpoints as snapshot and trained experts, with its counts."""
    method = on_one_linear(ClMoe, torch.zeros(5, 6), rank=16, alpha=32.0, experts=8, **options)
    fill(method, "experts", *stacked(tensors, f"{case}/old."))
    method.before_task(tasks()[1], Context())
    fill(method, "experts", *stacked(tensors, f"{case}/new."))
    for task, name in enumerate(("recognition", "location")):
        method.usage[task] = tensors[f"statistic_script/in.counts.{name}"].long()[None]
    return method


def test_recorded_merge(tensors: dict[str, Tensor]) -> None:
    method = at_the_end_of_task_2(tensors, "merge_stripped_names", reference="script")
    for task, name in enumerate(("recognition", "location")):
        mine = method.serves(task)[0].nonzero().flatten().tolist()
        assert mine == sorted(tensors[f"statistic_script/out.index.{name}"].tolist())
    assert method.momenta(1)[0].tolist() == pytest.approx([0.7, 0.7, 0.3, 0.7, 0.7, 0.3, 0.7, 0.7])
    method.merge(method.momenta(1))
    a, b = stacked(tensors, "merge_stripped_names/out.")
    assert_near(layer_of(method).lora_A["experts"].weight.detach(), a)
    assert_near(layer_of(method).lora_B["experts"].weight.detach(), b)
    assert torch.equal(tensors["merge_stripped_names/out.router"], tensors["merge_stripped_names/new.router"])


def test_the_script_on_real_names_is_not_offered(tensors: dict[str, Tensor]) -> None:
    """It compares the beginning of names with a pattern that none has, so its result is the new checkpoint: no merge at
    all. A user who wants that has MoELoRA."""
    for part in ("A", "B"):
        for i in range(8):
            assert torch.equal(tensors[f"merge_real_names/out.{part}.{i}"], tensors[f"merge_real_names/new.{part}.{i}"])
    assert torch.equal(tensors["merge_real_names/out.router"], tensors["merge_real_names/new.router"])
    method = at_the_end_of_task_2(tensors, "merge_real_names", reference="script")
    method.merge(method.momenta(1))
    new, _ = stacked(tensors, "merge_real_names/new.")
    assert (layer_of(method).lora_A["experts"].weight - new).abs().max() > 0.1


# ------------------------------------------------------------------------------------------------------------- by hand


def test_merge_by_hand() -> None:
    """Four experts of rank 1: top-2 of task 1 are 0 and 1, of task 2 are 1 and 2. So 0 is old, 1 shared, 2 new, 3 neither."""
    momentum = {"shared": 0.5, "old": 0.8, "new": 0.1, "neither": 1.0}
    method = on_one_linear(ClMoe, torch.zeros(1, 1), rank=4, alpha=4.0, experts=4, momentum=momentum)
    fill(method, "experts", torch.tensor([[1.0], [2.0], [3.0], [4.0]]), torch.tensor([[10.0, 20.0, 30.0, 40.0]]))
    method.before_task(tasks()[1], Context())
    fill(method, "experts", torch.tensor([[5.0], [6.0], [7.0], [8.0]]), torch.tensor([[0.0, 0.0, 0.0, 0.0]]))
    method.usage = {0: torch.tensor([[9, 5, 1, 0]]), 1: torch.tensor([[1, 8, 6, 0]])}
    method.merge(method.momenta(1))
    layer = layer_of(method)
    # 0.8·1 + 0.2·5, 0.5·2 + 0.5·6, 0.1·3 + 0.9·7, 1·4 + 0·8
    assert layer.lora_A["experts"].weight.flatten().tolist() == pytest.approx([1.8, 4.0, 6.6, 4.0])
    assert layer.lora_B["experts"].weight.flatten().tolist() == pytest.approx([8.0, 10.0, 3.0, 40.0])


def test_the_tables_differ() -> None:
    """Ours keeps .7 of what an earlier task uses; the script keeps .3 of exactly that."""
    ours, script = ClMoe.Config().momentum, ClMoe.Config(reference="script").momentum
    assert (ours["old"], ours["new"]) == (0.7, 0.3) and (script["old"], script["new"]) == (0.3, 0.7)


def test_a_third_task_respects_both_earlier_ones() -> None:
    method = on_one_linear(ClMoe, torch.zeros(1, 1), rank=4, alpha=4.0, experts=4, top_k=1)
    method.usage = {0: torch.tensor([[9, 0, 0, 0]]), 1: torch.tensor([[0, 9, 0, 0]]), 2: torch.tensor([[0, 9, 1, 0]])}
    assert method.momenta(2)[0].tolist() == pytest.approx([0.7, 0.7, 0.7, 0.7])
    method.usage[2] = torch.tensor([[0, 1, 9, 0]])
    assert method.momenta(2)[0].tolist() == pytest.approx([0.7, 0.7, 0.3, 0.7])
    assert method.momenta(1)[0].tolist() == pytest.approx([0.7, 0.3, 0.7, 0.7])  # a later task does not count


# ------------------------------------------------------------------------------------------------------ naive reference


def naive_gates(method: ClMoe, x: Tensor) -> list[list[Tensor]]:
    """softmax(W_g x) token by token, in fp64."""
    router = method.modules["router"].weight(LAYER).detach().double()
    gates = []
    for token in x.reshape(-1, x.shape[-1]).double():
        e = [torch.exp(torch.dot(row, token)) for row in router]
        gates.append([v / sum(e) for v in e])
    return gates


def test_formula_of_inference() -> None:
    """Output and the gradient of x, through the instance gate and past the task gate."""
    torch.manual_seed(1)
    x, w, a, b = torch.randn(2, 4, 6), torch.randn(5, 6), torch.randn(8, 6), torch.randn(5, 8)
    method = on_one_linear(ClMoe, w, **SHAPE, beta=0.3)
    fill(method, "experts", a, b)
    torch.nn.init.normal_(method.modules["router"].weight(LAYER))
    method.usage = {0: torch.tensor([[7, 1, 0, 2]]), 1: torch.tensor([[0, 3, 2, 5]])}
    of_task = [[7 / 9, 0, 0, 2 / 9], [0, 3 / 8, 0, 5 / 8]]
    for known, mean in (([0, 1], [7 / 18, 3 / 16, 0, 1 / 9 + 5 / 16]), ([1], of_task[1])):
        assert method.task_gates(known)[0].tolist() == pytest.approx(mean)
    expected, x64 = [], x.double().requires_grad_(True)
    for token, gate in zip(x64.reshape(-1, 6), naive_gates(method, x64)):
        y = w.double() @ token
        for i in range(4):
            g = 0.3 * gate[i] + 0.7 * (of_task[0][i] + of_task[1][i]) / 2
            y = y + 2.0 * g * (b[:, 2 * i : 2 * i + 2].double() @ (a[2 * i : 2 * i + 2].double() @ token))
        expected.append(y)
    expected, cotangent = torch.stack(expected).view(2, 4, 5), torch.randn(2, 4, 5)
    y = run_linear(method, method.route({}, None, False), x.requires_grad_(True))
    assert_near(y.detach().double(), expected.detach())
    (y * cotangent).sum().backward()
    (expected * cotangent).sum().backward()
    assert_near(x.grad.double(), x64.grad)
    oracle = on_one_linear(ClMoe, w, **SHAPE, beta=0.3, task_gate="oracle")
    assert oracle.oracle and not method.oracle
    oracle.usage = method.usage
    gates = oracle.route({"task": 1}, SimpleNamespace(), False).gates["experts"].alone.args[0]
    assert gates[0].tolist() == pytest.approx(of_task[1])


def test_count_is_of_the_top_k_of_every_token() -> None:
    torch.manual_seed(2)
    method, x = on_one_linear(ClMoe, torch.zeros(5, 6), **SHAPE, top_k=3, samples=2), torch.randn(2, 9, 6)
    expected = [0, 0, 0, 0]
    for gate in naive_gates(method, x):
        for i in sorted(range(4), key=lambda i: -gate[i])[:3]:
            expected[i] += 1
    assert method.count(tasks()[0], shown(method, x)).tolist() == [expected] and sum(expected) == 54


@pytest.mark.parametrize(
    "values, message",
    [
        ({"rank": -8}, "rank=-8: must be at least 1"),
        ({"top_k": 9}, "top_k=9: must be at most experts=8"),
        ({"top_k": 0}, "top_k=0: must be at least 1"),
        ({"beta": 1.5}, r"beta=1.5: must be in \[0, 1\]"),
        ({"momentum": {"old": -0.1}}, r"momentum.old=-0.1: must be in \[0, 1\]"),
        ({"momentum": {"odd": 0.1}}, "momentum=.*: needs a value for each of shared, old, new, neither"),
        ({"reference": "script", "momentum": {"old": 0.9}}, "momentum=.*: reference=script has its own"),
        ({"reference": "script", "beta": 0.25}, "beta=0.25: reference=script answers without a task gate"),
        ({"reference": "prism"}, "reference=prism: expected one of none, script"),
        ({"task_gate": "last"}, "task_gate=last: expected one of mean, oracle"),
    ],
)
def test_impossible_values(values: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        method_config({"name": "clmoe", **values})
    assert method_config({"name": "clmoe", "momentum": {"old": 0.9}}).momentum["new"] == 0.3
