"""MR-LoRA: the router's question and letters, its training, and the choice per sample."""

from pathlib import Path

import pytest
import torch
from torch import nn

from hide_llava.adapters.core import Core
from hide_llava.adapters.probe import logits
from hide_llava.adapters.route import Route
from hide_llava.backbones.llama_tokenizer import encode, load_tokenizer
from hide_llava.backbones.llava15 import Llava15
from hide_llava.errors import UserError
from hide_llava.evaluation.cells import _Collate
from hide_llava.methods.base import Task
from hide_llava.methods.mrlora import MrLora, fit
from hide_llava.pipeline import run
from hide_llava.training.run import Run
from hide_llava.training.session import Session
from tests.golden_reference import GOLDEN
from tests.methods.refused import assert_refused
from tests.methods.test_contract import questions
from tests.tiny import configuration, write_world

PACKAGED = Path(__file__).parent.parent.parent / "hide_llava" / "assets" / "mini" / "llava"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Session, Path]:
    """Three tasks with a router that is trained well, restored after the last one."""
    world = write_world(tmp_path_factory.mktemp("world"))
    settings = ("method.rank=2", "method.alpha=4", "method.dropout=0", "method.router_rank=8", "method.router_lr=1e-2",
                "method.router_epochs=12", "train.epochs=1", "method.descriptions={task0: objects, task1: counting}")  # fmt: skip
    config = configuration(world, "mrlora", world / "run", *settings)
    run(config, evaluate=False, report=False)
    session = Session(Run.at(world / "run"))
    session.restore(2)
    return session, world


def batch_of(session: Session, world: Path) -> dict:
    """Two questions of each task, mixed."""
    return _Collate()([questions(session, world, t)[i] for i in (1, 4) for t in (2, 0, 1)])


def test_every_sample_goes_to_the_expert_of_its_task(trained: tuple[Session, Path]) -> None:
    session, world = trained
    batch = batch_of(session, world)
    with session:
        route = session.method.route(batch, None, False)
        alone = [session.method.route(_Collate()([questions(session, world, t)[i]]), None, False)
                 for i in (1, 4) for t in (2, 0, 1)]  # fmt: skip
    chosen = torch.stack(list(route.weights.values()), 1)
    assert chosen.argmax(1).tolist() == [2, 0, 1, 2, 0, 1] and set(chosen.flatten().tolist()) == {0.0, 1.0}
    assert torch.equal(chosen, torch.cat([torch.stack(list(r.weights.values()), 1) for r in alone]))
    assert torch.equal(route.gates["routed"], chosen.repeat_interleave(2, 1))
    assert route.projectors == route.weights


def test_an_answer_is_that_of_the_chosen_expert(trained: tuple[Session, Path]) -> None:
    """The concatenated adapter with a one-hot gate is the expert with its own projector."""
    session, world = trained
    batch = batch_of(session, world)
    core = session.core
    with session:
        route = session.method.route(batch, None, False)
        mixed = logits(core, batch, route, last=1)
        for b, task in enumerate([2, 0, 1, 2, 0, 1]):
            expert = session.method.expert(task)
            only = Route([expert], projectors={expert: torch.ones(6)})
            torch.testing.assert_close(logits(core, batch, only, last=1)[b], mixed[b], atol=1e-4, rtol=1e-4)


def test_the_router_asks_on_top_of_the_weighted_experts_as_it_was_trained(trained: tuple[Session, Path]) -> None:
    session, world = trained
    method, core, batch = session.method, session.core, batch_of(session, world)
    with session:
        gate = torch.full((6,), method.config.router_merge)
        asked = logits(core, batch, Route(["routed", "router"], {"routed": gate}))
        core.projectors["base"] = method.initial_projector
        method.fitting = True
        learned = logits(core, batch, method.route(batch, None, True))
        method.fitting = False
        del core.projectors["base"]
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(asked[real], learned[real], atol=1e-4, rtol=1e-4)


def test_the_question_lists_learned_tasks_only(trained: tuple[Session, Path]) -> None:
    method = trained[0].method
    names = [method.letter(i) for i in range(3)]
    asked = method.ask("How many?").splitlines()
    assert asked[0] == "How many?"
    assert asked[2:5] == [f"{names[0]}. objects", f"{names[1]}. counting", f"{names[2]}. task2"]
    method.learned = [0, 1]
    assert len(method.ask("How many?").splitlines()) == len(asked) - 1
    method.learned = [0, 1, 2]


class WithoutModel(Llava15):
    image_positions = 4


@pytest.mark.parametrize("folder", [PACKAGED, GOLDEN / "misc" / "llama_fast_export"], ids=["mini", "fast export"])
def test_letters_differ_in_one_token(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    method = MrLora.__new__(MrLora)
    method.core, method.tasks = Core(WithoutModel(nn.Linear(1, 1), tokenizer)), [Task(i, str(i), 6) for i in range(6)]
    before, letters = method.letters
    assert len(letters) >= 6 and len(set(letters.values())) == len(letters)
    for letter, token in letters.items():
        assert encode(f"ASSISTANT: {letter}", tokenizer) == [*encode("ASSISTANT:", tokenizer), *before, token]
    del method.letters
    method.tasks = [Task(i, str(i), 40) for i in range(40)]
    with pytest.raises(UserError, match="too few for 40 tasks"):
        _ = method.letters


def test_fit_is_adamw_with_a_cosine_over_shuffled_batches() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(10, 3), torch.randn(10)
    start, weight = torch.randn(3), nn.Parameter(torch.zeros(3), requires_grad=False)
    weight.data.copy_(start)
    asked = []

    def loss(places: list[int]) -> torch.Tensor:
        asked.append(len(places))
        return ((x[places] @ weight - y[places]) ** 2).mean()

    fit(loss, 10, [weight], 0.1, 3, 4, seed=5)
    assert asked == [1] * 30  # at 7B the activations of one record are kept, not of a batch
    order = torch.Generator().manual_seed(5)
    w, m, v = start.double(), torch.zeros(3).double(), torch.zeros(3).double()
    step = 0
    for _ in range(3):
        shuffled = torch.randperm(10, generator=order).tolist()
        for places in (shuffled[:4], shuffled[4:8], shuffled[8:]):
            gradient = sum(2 * (x[i].double() @ w - y[i].double()) * x[i].double() for i in places) / len(places)
            rate = 0.05 * (1 + torch.cos(torch.tensor(torch.pi * step / 9)).item())
            step += 1
            m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
            w = w - rate * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)
    torch.testing.assert_close(weight.detach().double(), w, atol=1e-5, rtol=1e-5)
    assert not weight.requires_grad and weight.grad is None


def test_settings_that_are_refused() -> None:
    assert_refused("mrlora", "router_samples", 0, "at least 1")
    assert_refused("mrlora", "router_rank", -1, "at least 1")
    assert_refused("mrlora", "router_lr", 0.0, "greater than 0")
    assert_refused("mrlora", "router_merge", -0.2, "at least 0")
