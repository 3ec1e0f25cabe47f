"""L2P: selection and pull against loops in fp64, per-sample selection, what trains."""

import torch

from hide_llava.methods.l2p import L2P
from hide_llava.methods.prompt_pool import best, query_of
from tests.methods.host import assert_near, tasks, trainable_at_7b
from tests.methods.prompted import CONTEXT, alone, naive_cosine, naive_query, on_words, some_features
from tests.methods.refused import assert_refused


def pool(**options: object) -> L2P:
    torch.manual_seed(1)
    method = on_words(L2P, size=5, length=2, top_k=3, strength=0.3, **options)
    method.before_task(tasks()[0], CONTEXT)
    return method


def test_selection_and_pull_against_loops() -> None:
    method, features = pool(), some_features()
    keys = method.modules["pool"]["key"].detach().double().requires_grad_(True)
    expected, chosen = torch.zeros((), dtype=torch.float64), []
    for row in range(4):
        cosines = [naive_cosine(naive_query(features, row), list(key)) for key in keys]
        order = sorted(range(5), key=lambda m: -float(cosines[m].detach()))[:3]
        chosen.append(order)
        expected = expected - 0.3 * sum(cosines[m] for m in order) / 4
    route = method.route({}, features, True)
    words = method.modules["pool"]["prompts"]
    for row, order in enumerate(chosen):
        assert torch.equal(route.prompts[row], torch.cat([words[m] for m in order]))
        reported = [bool(route.weights[f"prompt-{m + 1:02d}"][row]) for m in range(5)]
        assert reported == [m in order for m in range(5)]
    term = method.loss(None, {}, features)["pull"]
    assert_near(term.detach().double(), expected.detach())
    term.backward()
    expected.backward()
    assert_near(method.modules["pool"]["key"].grad.double(), keys.grad)
    assert words.grad is None


def test_only_chosen_prompts_learn_from_a_sample() -> None:
    method = pool()
    route = method.route({}, some_features(), True)
    route.prompts[2].square().sum().backward()
    learns = method.modules["pool"]["prompts"].grad.abs().sum((1, 2)) > 0
    assert learns.tolist() == [bool(route.weights[f"prompt-{m + 1:02d}"][2]) for m in range(5)]
    assert int(learns.sum()) == 3


def test_every_sample_selects_for_itself() -> None:
    method, features = pool(), some_features()
    together = method.route({}, features, False).prompts
    for row in range(4):
        assert torch.equal(method.route({}, alone(features, row), False).prompts[0], together[row])


def test_query_by_image_alone() -> None:
    """A record without image has no query there: the first prompts, whatever stands beside it."""
    features = some_features()
    assert_near(query_of(features, "image").norm(dim=1), torch.tensor([1.0, 0.0, 1.0, 1.0]))
    method = pool(query="image")
    assert method.modules["pool"]["key"].shape == (5, 6)
    assert torch.equal(
        method.route({}, features, False).prompts[1], method.modules["pool"]["prompts"][:3].flatten(0, 1)
    )
    assert best(torch.zeros(2, 70), 3).tolist() == [[0, 1, 2]] * 2


def test_prompts_start_as_words_and_the_pool_is_carried_on() -> None:
    method = pool()
    words = method.core.llava.get_input_embeddings().weight
    rows = method.modules["pool"]["prompts"].flatten(0, 1)
    assert ((rows[:, None] == words[None]).all(-1).any(1)).all()
    assert method.modules["pool"]["key"].abs().max() < 1
    before = method.params()[0]["params"]
    method.before_task(tasks()[1], CONTEXT)
    assert all(a is b for a, b in zip(before, method.params()[0]["params"]))
    assert [group["lr"] for group in method.params()] == [7.5e-3]
    assert [group["lr"] for group in pool(lr=None, projector="shared").params()] == ["adapter", "projector"]


def test_restored_in_a_new_process() -> None:
    method, features = pool(), some_features()
    fresh = on_words(L2P, size=5, length=2, top_k=3)
    fresh.load_state(method.state())
    fresh.modules.load_state_dict(method.modules.state_dict())
    assert torch.equal(fresh.route({}, features, False).prompts, method.route({}, features, False).prompts)


def test_size_at_7b() -> None:
    assert trainable_at_7b(L2P) == 10 * 5 * 4096 + 10 * 2 * 768
    assert trainable_at_7b(L2P, query="image") == 10 * 5 * 4096 + 10 * 768


def test_settings_that_are_refused() -> None:
    assert_refused("l2p", "top_k", 11, "at most size=10")
    assert_refused("l2p", "size", 0, "at least 1")
    assert_refused("l2p", "length", 0, "at least 1")
    assert_refused("l2p", "strength", -0.1, "at least 0")
    assert_refused("l2p", "lr", 0.0, "greater than 0")
    assert_refused("l2p", "query", "text", "image_text, image")
    assert_refused("l2p", "projector", "per_task", "frozen, shared")
