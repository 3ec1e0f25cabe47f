"""DualPrompt: whose prompt is used when, the pull on the task's key, what a task inherits."""

import torch
from torch import Tensor

from hide_llava.methods.dualprompt import DualPrompt
from tests.methods.host import assert_near, tasks, trainable_at_7b
from tests.methods.prompted import CONTEXT, alone, naive_cosine, naive_query, on_words, some_features
from tests.methods.refused import assert_refused

SHAPE = {"length": 2, "general_length": 3, "strength": 0.7}


def after(count: int) -> DualPrompt:
    """A method in its `count`-th task; what each task would have learned is drawn at random."""
    torch.manual_seed(2)
    method = on_words(DualPrompt, **SHAPE)
    for task in tasks(3)[:count]:
        method.before_task(task, CONTEXT)
        with torch.no_grad():
            for parameter in method.prompt_parameters():
                parameter.add_(torch.randn_like(parameter))
    return method


def expert(method: DualPrompt, task: int) -> Tensor:
    return list(method.modules["experts"].values())[task].detach()


def test_training_uses_the_current_task_and_inference_the_nearest_key() -> None:
    method, features = after(3), some_features()
    general, keys = method.modules["general"]["prompt"].detach(), list(method.modules["task_keys"].values())
    chosen = []
    for row in range(4):
        cosines = [float(naive_cosine(naive_query(features, row), list(k.detach().double()))) for k in keys]
        chosen.append(cosines.index(max(cosines)))
    assert len(set(chosen)) > 1  # the samples do differ
    for train, order in ((True, [2] * 4), (False, chosen)):
        route = method.route({}, features, train)
        for row, task in enumerate(order):
            assert torch.equal(route.prompts[row], torch.cat([general, expert(method, task)]))
            assert [float(w[row]) for w in route.weights.values()] == [float(t == task) for t in range(3)]


def test_pull_against_loops() -> None:
    method, features = after(2), some_features()
    key = method.modules["task_keys"]["task-02"]
    theirs = key.detach().double().requires_grad_(True)
    expected = sum(0.7 * (1 - naive_cosine(naive_query(features, row), list(theirs))) / 4 for row in range(4))
    term = method.loss(None, {}, features)["pull"]
    assert_near(term.detach().double(), expected.detach())
    for parameter in method.prompt_parameters():
        parameter.requires_grad_(True)
    method.loss(None, {}, features)["pull"].backward()
    expected.backward()
    assert_near(key.grad.double(), theirs.grad)
    assert method.modules["task_keys"]["task-01"].grad is None


def test_a_task_trains_its_own_and_starts_from_the_last() -> None:
    method = after(1)
    first = expert(method, 0).clone()
    method.before_task(tasks()[1], CONTEXT)
    assert torch.equal(expert(method, 1), first)
    trained = {id(p) for group in method.params() for p in group["params"]}
    assert trained == {id(p) for p in (method.modules["general"]["prompt"], method.modules["experts"]["task-02"],
                                       method.modules["task_keys"]["task-02"])}  # fmt: skip
    assert not torch.equal(method.modules["task_keys"]["task-02"], method.modules["task_keys"]["task-01"])
    for parameter in method.prompt_parameters():
        parameter.requires_grad_(True)
    method.route({}, some_features(), True).prompts.sum().backward()
    assert method.modules["experts"]["task-01"].grad is None and method.modules["experts"]["task-02"].grad.all()


def test_state_grows_shrinks_and_keeps_what_trains() -> None:
    method, features = after(3), some_features()
    later, stored = method.state(), {k: v.clone() for k, v in method.modules.state_dict().items()}
    before = method.prompt_parameters()
    method.load_state(later)  # as when a task resumes: the optimizer holds these very parameters
    assert all(a is b for a, b in zip(before, method.prompt_parameters()))
    earlier = {**later, "learned": 1}
    method.load_state(earlier)
    assert list(method.modules["experts"]) == list(method.modules["task_keys"]) == ["task-01"]
    expected = after(3).route({}, features, False).prompts
    for restored in (method, on_words(DualPrompt, **SHAPE)):
        restored.load_state(later)
        restored.modules.load_state_dict(stored)
        assert torch.equal(restored.route({}, features, False).prompts, expected)


def test_every_sample_selects_for_itself() -> None:
    method, features = after(3), some_features(3)
    together = method.route({}, features, False).prompts
    for row in range(4):
        assert torch.equal(method.route({}, alone(features, row), False).prompts[0], together[row])


def test_size_at_7b() -> None:
    assert trainable_at_7b(DualPrompt) == (5 + 5) * 4096 + 2 * 768


def test_settings_that_are_refused() -> None:
    assert_refused("dualprompt", "general_length", 0, "at least 1")
    assert_refused("dualprompt", "strength", -1.0, "at least 0")
    assert_refused("dualprompt", "query", "mean", "image_text, image")
