"""Ways of choosing an expert against loops in float64, their statistics, and every method that takes them."""

from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from hide_llava.errors import UserError
from hide_llava.evaluation.cells import _Collate, answer_batch
from hide_llava.interop.export_hide import _check
from hide_llava.methods.base import Context, Features, Method
from hide_llava.methods.disco import Disco
from hide_llava.methods.hide import HiDe
from hide_llava.methods.individual import Individual
from hide_llava.methods.mrlora import MrLora
from hide_llava.methods.registry import method_config
from hide_llava.methods.routers import RIDGES, RandomMoments, Statistics, best_ridge, distances, held_out
from hide_llava.pipeline import run
from hide_llava.settings import inference_options
from hide_llava.training.run import Run
from hide_llava.training.run_folder import RunFolder
from hide_llava.training.session import Session
from tests.methods.host import assert_near, fill, on_one_linear, run_linear
from tests.methods.refused import assert_refused
from tests.methods.test_contract import assert_same, questions, tensors_of
from tests.stops import stopped_after, until_done
from tests.tiny import configuration

WIDTH = 12
CPU = torch.device("cpu")
MODELS = {"clip_image": WIDTH, "clip_text": WIDTH}


def rows(count: int, seed: int, center: int | None = None) -> Features:
    """Random features, the last row without an image; center: a task, around whose own point they lie."""
    generator = torch.Generator().manual_seed(seed)
    image, text = torch.randn(2, count, WIDTH, generator=generator)
    if center is not None:
        image[:, center] += 4.0
        text[:, -1 - center] += 4.0
    has_image = torch.arange(count) < max(1, count - 1)
    return Features(image * has_image[:, None], text, has_image)


def batch_of(count: int, name: str) -> dict:
    """What `held_out` reads of a collated batch."""
    return {"ids": [f"{name}{i}" for i in range(count)], "texts": ["what is it?"] * count, "sizes": [[(20, 30)]] * count}


def gathered(*tasks: Features, random_features: int | None = None) -> Statistics:
    statistics = Statistics(random_features=random_features)
    for task, features in enumerate(tasks):
        statistics.start(task, MODELS, CPU)
        half = len(features.text) // 2
        for name, part in (("a", slice(0, half)), ("b", slice(half, None))):
            some = Features(features.image[part], features.text[part], features.has_image[part])
            statistics.add(task, some, batch_of(len(some.text), f"{task}{name}"))
        statistics.finish(task)
    return statistics


# ---- the rules -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("modality", ["both", "image", "text"])
def test_nearest_mean_is_the_loop_over_tasks_and_numbers(modality: str) -> None:
    """Without an image the text alone; a task that never had one has a mean image of zeros."""
    features = rows(5, 0)
    image = [torch.randn(WIDTH), None, torch.randn(WIDTH)]
    text = [torch.randn(WIDTH) for _ in range(3)]
    ours = distances(features, image, text, modality)
    for b in range(5):
        for t in range(3):
            expected = 0.0
            if modality != "image" or not features.has_image[b]:
                expected += sum((float(f) - float(a)) ** 2 for f, a in zip(features.text[b], text[t]))
            if modality != "text" and features.has_image[b]:
                mean = [0.0] * WIDTH if image[t] is None else image[t].tolist()
                expected += sum((float(f) - a) ** 2 for f, a in zip(features.image[b], mean))
            assert float(ours[b, t]) == pytest.approx(expected, rel=1e-5)


def random_rows(projection: Tensor, features: Features) -> Tensor:
    """h [B, M] by a loop in float64."""
    found = []
    for image, text in zip(features.image.double(), features.text.double()):
        unit = [v / v.norm() if v.norm() > 0 else v for v in (image, text)]
        found.append((torch.cat(unit) @ projection.double()).clamp(min=0.0))
    return torch.stack(found)


@pytest.mark.parametrize("ridge", [None, 0.3])
def test_ranpac_is_ridge_regression_on_the_rows_themselves(ridge: float | None) -> None:
    """From G and C, with tasks one after the other: as least squares on all rows, with sqrt(λ) I below them."""
    tasks = [rows(count, seed, seed - 1) for count, seed in ((20, 1), (33, 2), (26, 3))]
    moments = gathered(*tasks, random_features=24).moments
    ours = moments.classifier([0, 1, 2], ridge)
    h = torch.cat([random_rows(moments.projection, features) for features in tasks])
    y = torch.cat([torch.eye(3, dtype=torch.float64)[t].expand(len(f.text), 3) for t, f in enumerate(tasks)])
    held = torch.cat([held_out(batch_of(n, f"{t}{name}")) for t, f in enumerate(tasks)
                      for name, n in (("a", len(f.text) // 2), ("b", len(f.text) - len(f.text) // 2))])  # fmt: skip

    def fitted(x: Tensor, target: Tensor, strength: float) -> Tensor:
        below = strength**0.5 * torch.eye(24, dtype=torch.float64)
        padded = torch.cat([target, torch.zeros(24, 3, dtype=torch.float64)])
        return torch.linalg.lstsq(torch.cat([x, below]), padded).solution

    if ridge is None:
        assert 0 < int(held.sum()) < len(held)
        usual = [r for r in RIDGES if r >= 1e-4]  # below, the rows' own least squares loses digits that G and C keep
        errors = {r: float(((h[held] @ fitted(h[~held], y[~held], r) - y[held]) ** 2).sum()) for r in usual}
        parts = torch.stack([moments.sums[t] for t in range(3)], 2), torch.stack([moments.counts[t] for t in range(3)], 1)
        ridge = best_ridge(moments.gram, *parts)
        assert ridge == min(errors, key=errors.__getitem__)
    assert_near(ours, fitted(h, y, ridge), 1e-6)
    options = HiDe.Config(router="ranpac", router_statistics="ranpac", ridge=ridge)
    statistics, asked = gathered(*tasks, random_features=24), rows(9, 8, 1)
    statistics.prepare(options, [0, 1, 2])
    together = statistics.choose(options, asked, [0, 1, 2])
    assert together.tolist() == (random_rows(moments.projection, asked) @ fitted(h, y, ridge)).argmax(1).tolist()
    assert together[:-1].tolist().count(1) >= 6  # of 8: they lie around the second task's point


def test_the_moments_are_sums_over_all_tasks() -> None:
    tasks = [rows(7, 1, 0), rows(5, 2, 1)]
    moments = gathered(*tasks, random_features=10).moments
    h = [random_rows(moments.projection, features) for features in tasks]
    assert_near(moments.gram.sum(0), sum(torch.outer(row, row) for part in h for row in part))
    for t, part in enumerate(h):
        assert_near(moments.sums[t].sum(0), sum(part))
        assert int(moments.counts[t].sum()) == len(part)


def test_what_is_held_out_is_a_matter_of_the_record() -> None:
    """Not of its batch or its place in it; about a fifth."""
    batch = batch_of(1000, "x")
    held = held_out(batch)
    assert 150 < int(held.sum()) < 250
    backwards = {name: values[::-1] for name, values in batch.items()}
    assert torch.equal(held_out(backwards).flip(0), held)
    assert torch.equal(held_out({name: values[30:31] for name, values in batch.items()}), held[30:31])


def test_too_few_records_to_choose_a_ridge() -> None:
    moments = RandomMoments(4)
    moments.start(0, 2 * WIDTH, CPU)
    moments.add(0, rows(3, 0), torch.zeros(3, dtype=torch.bool))
    with pytest.raises(UserError, match=r"give method\.ridge=1"):
        moments.classifier([0], None)
    assert moments.classifier([0], 1.0).shape == (4, 1)


def test_statistics_within_a_task_go_on_from_what_was_stored() -> None:
    first, second = rows(6, 1), rows(8, 2)
    whole = gathered(first, second, random_features=6)
    before = gathered(first, random_features=6)
    before.start(1, MODELS, CPU)
    part = [Features(*(getattr(second, n)[s] for n in ("image", "text", "has_image"))) for s in (slice(0, 4), slice(4, 8))]
    before.add(1, part[0], batch_of(4, "1a"))
    after = Statistics(random_features=6)
    after.load(before.state(1), 1, True, CPU)
    after.add(1, part[1], batch_of(4, "1b"))
    after.finish(1)
    one, other = whole.state(None), after.state(None)
    assert one.keys() == other.keys() and len(one) == 2 * 2 * 2 + 2 + 2 * 2
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_two_processes_gather_what_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each half of every batch; between tasks, and where a task goes on, the second process begins at 0 beside the total."""
    tasks = [rows(8, 1, 0), rows(6, 2, 1)]
    whole, pair = RandomMoments(5), [RandomMoments(5), RandomMoments(5)]
    for task, features in enumerate(tasks):
        monkeypatch.setattr("hide_llava.methods.routers.is_main", lambda: True)
        whole.start(task, 2 * WIDTH, CPU)
        held = held_out(batch_of(len(features.text), str(task)))
        whole.add(task, features, held)
        for place, moments in enumerate(pair):
            monkeypatch.setattr("hide_llava.methods.routers.is_main", lambda place=place: place == 0)
            moments.start(task, 2 * WIDTH, CPU)
            mine = slice(place, None, 2)
            half = Features(features.image[mine], features.text[mine], features.has_image[mine])
            moments.add(task, half, held[mine])
        total = [sum(parts) for parts in zip(*(moments.reduced(task) for moments in pair))]
        for ours, expected in zip(total, (whole.gram, whole.sums[task], whole.counts[task])):
            assert_near(ours.double(), expected.double())
        for moments in pair:
            moments.gram, moments.sums[task], moments.counts[task] = (tensor.clone() for tensor in total)
    stored = gathered(*tasks, random_features=5)
    stored.gathering = True
    other = Statistics(random_features=5)
    monkeypatch.setattr("hide_llava.adapters.anchors.is_main", lambda: False)
    other.load(stored.state(1), 1, True, CPU)  # still as the second process
    assert not other.moments.gram.any() and not other.moments.sums[1].any() and other.moments.sums[0].any()
    assert not other.text.sums[1].any() and int(other.image.counts[1]) == 0 < int(other.image.counts[0])


# ---- the methods -----------------------------------------------------------------------------------------------------
METHODS = {"hide": HiDe, "disco": Disco, "individual": Individual, "mrlora": MrLora}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_with_task_experts_takes_a_router(name: str) -> None:
    config = METHODS[name].Config
    assert {"router", "router_features", "ridge"} <= inference_options(config)
    for router in ("anchors", "nearest_mean", "ranpac", "oracle"):
        options = method_config({"name": name, "router": router, "router_statistics": "ranpac"})
        assert METHODS[name].is_oracle(vars(options)) == (router == "oracle")
    assert METHODS[name].is_oracle({}) == (name == "individual")  # of a configuration that is older than the option
    assert_refused(name, "router", "ranpac", "method.router_statistics=means (anchors, nearest_mean) or =ranpac")
    assert_refused(name, "router", "nearest", "one of ")
    assert_refused(name, "random_features", 0, "at least 1")
    assert_refused(name, "ridge", 0.0, "greater than 0")
    if name in ("individual", "mrlora"):
        assert_refused(name, "router", "anchors", "method.router_statistics=means")


@pytest.mark.parametrize("router", ["anchors", "nearest_mean", "ranpac"])
def test_each_sample_is_answered_by_the_expert_of_its_features(router: str) -> None:
    """y = W x + s B_e A_e x with another e in each row, in float64; in training the current expert alone."""
    torch.manual_seed(0)
    weight, factors = torch.randn(5, 6), [(torch.randn(2, 6), torch.randn(5, 2)) for _ in range(3)]
    method: Method = on_one_linear(Individual, weight, rank=2, alpha=4.0, projector="frozen", router=router,
                                   router_statistics="ranpac", random_features=30, ridge=1.0)  # fmt: skip
    planned = 0
    for task, (a, b) in zip(method.tasks, factors):
        method.before_task(task, Context(widths=MODELS))
        planned = planned or sum(method.cost().state.values())  # in the first task, as `plan` asks it
        fill(method, method.adapter, a, b)
        features = rows(12, task.index, task.index)
        assert method.loss(None, batch_of(12, str(task.index)), features) == {}
        assert method.route({}, features, True).active == [method.adapter]
        method.after_task(task, Context())
    assert planned == sum(value.nbytes for value in method.state().values() if isinstance(value, Tensor))
    asked = [rows(2, 50 + task, task) for task in (2, 0, 1)]
    together = Features(*(torch.cat([getattr(part, name) for part in asked]) for name in ("image", "text", "has_image")))
    method.prepare_inference()
    route = method.route({"has_image": together.has_image}, together, False)
    chosen = torch.stack(list(route.weights.values()), 1)
    assert chosen.argmax(1).tolist() == [2, 2, 0, 0, 1, 1] and list(route.weights) == method.experts
    x = torch.randn(6, 4, 6)
    ours = run_linear(method, route, x)
    for row, (e, expected) in enumerate(zip([2, 2, 0, 0, 1, 1], x.double())):
        a, b = (factor.double() for factor in factors[e])
        assert_near(ours[row].double(), expected @ (weight.double() + 2.0 * b @ a).T)


def test_hide_puts_all_weight_on_the_chosen_expert() -> None:
    asked = rows(4, 9, 1)
    for router in ("nearest_mean", "ranpac", "oracle"):
        method = HiDe(HiDe.Config(router=router, router_statistics="ranpac", random_features=30, ridge=1.0), None, [])
        method.learned, method.current = [0, 1], 1
        for task in (0, 1):
            method.statistics.start(task, MODELS, CPU)
            method.statistics.add(task, rows(12, task, task), batch_of(12, str(task)))
        method.statistics.prepare(method.config, method.learned)
        assert method.oracle == (router == "oracle")
        assert method.routing_weights(asked, 1 if method.oracle else None).tolist() == [[0.0, 1.0]] * 4


def test_an_export_says_which_router_its_loader_lacks() -> None:
    run = SimpleNamespace(folder=RunFolder(Path("runs/A")), encoder="clip", family=SimpleNamespace(recorded=True))
    made = SimpleNamespace(run=run)
    for router, says in (("ranpac", "is no router that an export's loader knows"), ("oracle", "told the task of each question")):
        method = SimpleNamespace(config=HiDe.Config(router=router, router_statistics="ranpac"))
        with pytest.raises(UserError, match=says):
            _check(made, method)
    _check(made, SimpleNamespace(config=HiDe.Config()))


# ---- a run -----------------------------------------------------------------------------------------------------------
OPTIONS = ("method.router_statistics=ranpac", "method.random_features=16", "train.epochs=1")


@pytest.fixture(scope="module")
def trained(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "individual"
    run(configuration(world, "individual", folder, *OPTIONS), evaluate=False, report=False)
    return folder


def test_statistics_are_stored_with_the_stage_and_survive_a_stop(trained: Path, world: Path, tmp_path: Path) -> None:
    stored = tensors_of(trained)
    gram = [value for name, value in stored.items() if name.endswith("random_features.gram")]
    assert len(gram) == 3 and all((b - a).diagonal(dim1=1, dim2=2).sum() > 0 for a, b in pairwise(gram))
    assert sum(int(stored[f"stages/03-task2/method.safetensors:random_features.{t}.count"].sum()) for t in range(3)) == 24
    with stopped_after(1):
        stops = until_done(lambda: run(configuration(world, "individual", tmp_path / "run", *OPTIONS), evaluate=False,
                                       report=False))  # fmt: skip
    assert stops == 3
    assert_same(tensors_of(tmp_path / "run"), stored)


def test_one_trained_run_answers_by_every_router(trained: Path, world: Path) -> None:
    """Batches of several tasks as their rows alone; the oracle alone is told the task."""
    for router in ("anchors", "nearest_mean", "ranpac", "oracle"):
        config = RunFolder(trained).config
        config.method |= {"router": router, "ridge": 1.0}
        made = Run(config)
        assert made.oracle == (router == "oracle") == any("oracle" in label for label in made.new_manifest()["labels"])
        session = Session(made)
        session.restore(2)
        items = [questions(session, world, t)[i] for i, t in ((0, 0), (3, 1), (5, 2))]
        with session:
            together = answer_batch(session, _Collate()(items), 4, 1)
            alone = [answer_batch(session, _Collate()([item]), 4, 1)[0] for item in items]
        assert [r["token_ids"] for r in together] == [r["token_ids"] for r in alone]
        assert [r["routing"] for r in together] == [r["routing"] for r in alone]
        assert all(sorted(r["routing"].values())[-1] == sum(r["routing"].values()) == 1.0 for r in together)
