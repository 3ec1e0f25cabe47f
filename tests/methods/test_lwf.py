"""LwF: the distillation term against explicit loops, its zero, its teacher."""

import math

import pytest
import torch

from hide_llava.adapters.probe import logits
from hide_llava.adapters.route import Route
from hide_llava.data.turns import IGNORE
from hide_llava.methods.lwf import Lwf, distillation
from tests.methods.host import assert_near, recorded
from tests.methods.recorded import case, on_tiny_llama, put, text, trainable
from tests.methods.refused import assert_refused


def naive(new: torch.Tensor, old: torch.Tensor, labels: list[list[int]], temperature: float) -> torch.Tensor:
    """T² KL, token by token and word by word; mean over the answer tokens of a sample, then over samples."""
    whole = torch.zeros((), dtype=torch.float64)
    for b, row in enumerate(labels):
        places = [i for i in range(1, len(row)) if row[i] != IGNORE]
        for i in places:
            p, q = (z[b, i - 1].double() / temperature for z in (old, new))
            p, q = p - p.exp().sum().log(), q - q.exp().sum().log()
            for v in range(len(p)):
                whole = whole + p[v].exp() * (p[v] - q[v]) / len(places)
    return temperature**2 * whole / len(labels)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_term_against_loops(temperature: float) -> None:
    torch.manual_seed(0)
    labels = [[IGNORE, IGNORE, 3, 1, 2], [IGNORE, 4, IGNORE, IGNORE, 1], [IGNORE, IGNORE, IGNORE, IGNORE, 0]]
    old, new = torch.randn(3, 5, 6), torch.randn(3, 5, 6)
    mine = new.clone().requires_grad_(True)
    theirs = new.double().requires_grad_(True)
    term = distillation(mine, old, torch.tensor(labels), temperature)
    expected = naive(theirs, old, labels, temperature)
    term.backward()
    expected.backward()
    assert_near(term.double(), expected)
    assert_near(mine.grad.double(), theirs.grad)
    assert not mine.grad[1, 1].any() and mine.grad[1, 0].any()  # only where the next token is an answer's
    assert float(distillation(old, old, torch.tensor(labels), temperature)) == 0.0


def second_task() -> tuple:
    tensors = case(recorded("olora_mcitlib"), "tiny_llama")
    parameters = {k: v for k, v in tensors.items() if k.startswith("param.")}
    routed = on_tiny_llama(Lwf, parameters, 1, rank=2, alpha=4.0, strength=0.7)
    names = {k.removeprefix("param.").removesuffix(".A.0") for k in parameters if k.endswith(".A.0")}
    put(routed, "sequential", {n: (parameters[f"param.{n}.A.0"], parameters[f"param.{n}.B.0"]) for n in names})
    return routed, text(tensors), names, parameters


def test_zero_at_the_start_of_a_task_and_none_in_the_first() -> None:
    routed, batch, _, _ = second_task()
    output = routed(**batch)
    assert routed.method.loss(output, batch, None) == {}
    routed.method.before_task(routed.method.tasks[1], None)
    trainable(routed)
    term = routed.method.loss(routed(**batch), batch, None)["lwf"]
    assert abs(term.item()) < 1e-12
    assert routed.training and routed.core.llava.training and routed.core.route.active == ["sequential"]


def test_the_teacher_stays_while_the_student_moves() -> None:
    routed, batch, names, parameters = second_task()
    method = routed.method
    method.before_task(method.tasks[1], None)
    trainable(routed)
    before = logits(routed.core, batch, Route(["teacher"]))
    put(routed, "sequential", {n: (parameters[f"param.{n}.A.1"], parameters[f"param.{n}.B.1"]) for n in names})
    output = routed(**batch)
    term = method.loss(output, batch, None)["lwf"]
    expected = 0.7 * naive(output.logits.detach(), before, batch["labels"].tolist(), 2.0)
    assert math.isfinite(term.item()) and term.item() > 1e-4
    assert_near(term.detach().double(), expected)
    term.backward()
    assert all(p.grad is None for p in routed.core.parameters_of("teacher"))
    assert all(p.grad is not None for p in routed.core.parameters_of("sequential"))
    with torch.no_grad():  # the teacher's projector is the one of the task's start, too
        kept = {k: v.clone() for k, v in routed.core.projectors["teacher"].items()}
        next(iter(routed.core.projector.parameters())).add_(1.0)
    assert all(torch.equal(routed.core.projectors["teacher"][k], v) for k, v in kept.items())


def test_settings_that_are_refused() -> None:
    assert_refused("lwf", "temperature", 0.0, "greater than 0")
    assert_refused("lwf", "strength", -0.5, "at least 0")
