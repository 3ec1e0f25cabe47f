"""EWC: the Fisher diagonal against enumeration and against Prism's recordings, the penalty, its two modes."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hide_llava.adapters.fisher import fisher_diagonal
from hide_llava.methods.base import Context
from hide_llava.methods.ewc import Ewc
from tests.methods.host import assert_near, recorded
from tests.methods.recorded import assert_gradients, case, on_tiny_llama, path_of, put, text, total, trainable, under
from tests.methods.refused import assert_refused

PENALTY = 5000.0


def test_fisher_equals_enumeration() -> None:
    """Logistic regression: ∂ℓ/∂w = (softmax(w x) − e_y) xᵀ, so F_jk = mean over examples of (p_j − 1[j=y])² x_k²."""
    torch.manual_seed(0)
    x, y = torch.randn(7, 3, dtype=torch.float64), [0, 2, 1, 1, 0, 2, 2]
    weight = nn.Parameter(torch.randn(3, 3, dtype=torch.float64))
    expected = torch.zeros(3, 3, dtype=torch.float64)
    for n in range(7):
        scores = [sum(weight[j, k].item() * x[n, k].item() for k in range(3)) for j in range(3)]
        exponentials = [torch.tensor(s).double().exp().item() for s in scores]
        for j in range(3):
            for k in range(3):
                error = exponentials[j] / sum(exponentials) - (j == y[n])
                expected[j, k] += (error * x[n, k].item()) ** 2 / 7
    losses = (nn.functional.cross_entropy((x[n : n + 1] @ weight.T), torch.tensor([y[n]])) for n in range(7))
    (fisher,) = fisher_diagonal(losses, [weight])
    assert fisher.dtype == torch.float32
    assert_near(fisher, expected.float(), 1e-6)


def recorded_ewc(**options: object) -> tuple[dict[str, Tensor], object, list[dict]]:
    """The recording, a method in its first task with the recorded adapter, and the recorded examples one by one."""
    tensors = recorded("prism_ewc")
    parameters = {k: v for k, v in case(tensors, "fisher").items() if k.startswith("param.")}
    routed = on_tiny_llama(Ewc, parameters, 1, rank=4, alpha=8.0, targets="attention", **options)
    names = {k.removeprefix("param.").removesuffix(".A") for k in parameters if k.endswith(".A")}
    put(routed, "sequential", {n: (parameters[f"param.{n}.A"], parameters[f"param.{n}.B"]) for n in names})
    trainable(routed)
    batches = [text(case(tensors, "fisher"), f"in.batch{i}.") for i in range(3)]
    return tensors, routed, [{k: v[r : r + 1] for k, v in batch.items()} for batch in batches for r in range(2)]


def context_of(routed: object, examples: list[dict]) -> Context:
    def loader(data: list[dict], size: int) -> list[dict]:
        groups = [[data[j] for j in range(i, min(i + size, len(data)))] for i in range(0, len(data), size)]
        return [{k: joined([e[k] for e in group]) for k in group[0]} for group in groups]

    def joined(rows: list) -> Any:
        return torch.cat(rows) if isinstance(rows[0], Tensor) else [value for row in rows for value in row]

    return Context(train_data=examples, loader=loader, forward=lambda batch: routed(**batch))


def fishers(routed: object) -> dict[str, Tensor]:
    layers = routed.core.layers("sequential")
    pairs = [(path, side) for path, _, _ in layers for side in ("A", "B")]
    return {f"{path}.{side}": f for (path, side), f in zip(pairs, routed.method.fisher)}


@pytest.mark.parametrize(
    ("batch", "stored"),
    [(1, "fisher_per_example/aux.fisher"), (2, "fisher/out.fisher"), (2, "fisher_micro/out.fisher")],
)
def test_fisher_of_the_recording(batch: int, stored: str) -> None:
    """fisher_batch=2 is what Prism computed in batches of 2; 1 is the per-example Fisher, here twice as large."""
    tensors, routed, examples = recorded_ewc(fisher_batch=batch)
    routed.method.after_task(routed.method.tasks[0], context_of(routed, examples))
    mine, compared = fishers(routed), 0
    for key, expected in tensors.items():
        if key.startswith(stored + "."):
            assert_near(mine[path_of(key.removeprefix(stored + "."))], expected)
            compared += 1
    assert compared == 4
    assert all(p.grad is None for p in routed.method.trained())
    assert routed.core.llava.training  # dropout is back


def test_penalty_of_the_recording() -> None:
    """At the recorded, moved parameters: gradients of cross-entropy (`before`) and of cross-entropy plus penalty
    (`after`). Prism adds the penalty's to `p.grad` by hand."""
    tensors, routed, examples = recorded_ewc(fisher_batch=2, strength=PENALTY)
    routed.method.after_task(routed.method.tasks[0], context_of(routed, examples))
    moved = case(tensors, "penalty")
    names = {k.removeprefix("param.").removesuffix(".A") for k in moved if k.startswith("param.") and k.endswith(".A")}
    put(routed, "sequential", {n: (moved[f"param.{n}.A"], moved[f"param.{n}.B"]) for n in names})
    plain, penalised = total(routed, text(moved))
    assert_near(plain, moved["out.loss"])
    for kind, loss in (("before", plain), ("after", penalised)):
        routed.zero_grad()
        loss.backward(retain_graph=True)
        assert_gradients(routed, "sequential", under(moved, f"grad.{kind}."), "A", "B")


def consolidated(mode: str, gamma: float = 1.0) -> tuple[Ewc, nn.Parameter, list[tuple[Tensor, Tensor]]]:
    """A method that ended three tasks on one parameter, and (F, θ) of each."""
    torch.manual_seed(1)
    method = Ewc(Ewc.Config(mode=mode, gamma=gamma, strength=3.0), None, [])
    method.setup()
    past = [(torch.rand(4, 5), torch.randn(4, 5)) for _ in range(3)]
    for fisher, _ in past:
        fisher[1, 2] = 0.0  # an element that no task needs
    for fisher, at in past:
        method.consolidate([fisher.clone()], [at.clone()])
    parameter = nn.Parameter(torch.randn(4, 5))
    method.trained = lambda: [parameter]
    return method, parameter, past


def test_one_pair_of_tensors_holds_the_penalties_of_all_tasks() -> None:
    method, parameter, past = consolidated("per_task")
    here = parameter.detach().double().requires_grad_(True)
    expected = sum(1.5 * (f.double()[j, k] * (here[j, k] - a.double()[j, k]) ** 2)
                   for f, a in past for j in range(4) for k in range(5))  # fmt: skip
    expected.backward()
    term = method.loss(None, {}, None)["ewc"]
    term.backward()
    assert_near(term.double(), expected)
    assert_near(parameter.grad.double(), here.grad)
    assert len(method.fisher) == len(method.center) == 1


def test_online_mode_has_one_centre_and_a_decaying_fisher() -> None:
    """F = γ² F¹ + γ F² + F³ around θ³ alone: value and gradient, element by element in fp64."""
    method, parameter, past = consolidated("online", 0.5)
    here = parameter.detach().double().requires_grad_(True)
    (f1, _), (f2, _), (f3, centre) = ((f.double(), at.double()) for f, at in past)
    expected = sum(1.5 * (0.25 * f1[j, k] + 0.5 * f2[j, k] + f3[j, k]) * (here[j, k] - centre[j, k]) ** 2
                   for j in range(4) for k in range(5))  # fmt: skip
    expected.backward()
    term = method.loss(None, {}, None)["ewc"]
    term.backward()
    assert_near(term.detach().double(), expected.detach())
    assert_near(parameter.grad.double(), here.grad)


def test_no_term_in_the_first_task_and_none_where_the_task_ended() -> None:
    method = Ewc(Ewc.Config(), None, [])
    method.setup()
    assert method.loss(None, {}, None) == {}
    at = torch.randn(3, 3)
    method.consolidate([torch.rand(3, 3)], [at])
    method.trained = lambda: [nn.Parameter(at.clone())]
    assert float(method.loss(None, {}, None)["ewc"].detach()) == 0.0


def test_settings_that_are_refused() -> None:
    assert_refused("ewc", "mode", "offline", "per_task, online")
    assert_refused("ewc", "strength", -1.0, "at least 0")
    assert_refused("ewc", "gamma", 1.5, "(0, 1]")
    assert_refused("ewc", "fisher_batch", 0, "at least 1")
    assert_refused("ewc", "fisher_examples", 0, "at least 1")
