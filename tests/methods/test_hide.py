"""HiDe's routing against hand-computed numbers, and its options end to end."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hide_llava.adapters.route import Route
from hide_llava.backbones.llava15 import splice
from hide_llava.backbones.vicuna import IMAGE_TOKEN
from hide_llava.data.dataset import QuestionDataset
from hide_llava.data.records import load_questions
from hide_llava.errors import UserError
from hide_llava.evaluation.cells import _Collate, answer_batch
from hide_llava.methods.base import Context, Features, Task
from hide_llava.methods.hide import HiDe
from hide_llava.pipeline import run
from hide_llava.training.run import Run
from hide_llava.training.run_folder import RunFolder
from hide_llava.training.session import Session
from tests.methods.refused import assert_refused
from tests.tiny import configuration

WIDTH = 16


def at_cosine(cosine: float, axis: int, length: float = 1.0) -> Tensor:
    """A vector whose cosine with the first axis is `cosine`; its rest lies on `axis`."""
    vector = torch.zeros(WIDTH)
    vector[0], vector[axis] = cosine, math.sqrt(1 - cosine**2)
    return length * vector


def hide(image: list[float | None], text: list[float], tasks: int = 6, **options: object) -> HiDe:
    """A HiDe that has learned tasks whose anchors have these cosines with the feature (1, 0, 0, …); None: no image."""
    method = HiDe(HiDe.Config(**options), None, [Task(i, str(i), tasks) for i in range(tasks)])
    for i, (a, c) in enumerate(zip(image, text)):
        method.learned.append(i)
        for anchors, cosine in ((method.image_anchors, a), (method.text_anchors, c)):
            anchors.start(i, WIDTH, torch.device("cpu"))
            if cosine is not None:
                anchors.add(i, at_cosine(cosine, i + 1, 2.0 + i)[None])
    return method


def features(*has_image: bool) -> Features:
    row = at_cosine(1.0, 1, 5.0)
    image = torch.stack([row if has else torch.zeros(WIDTH) for has in has_image])
    return Features(image, row.repeat(len(has_image), 1), torch.tensor(has_image))


def softmax(values: list[float], temperature: float = 0.1) -> list[float]:
    exponentials = [math.exp(v / temperature) for v in values]
    return [e / sum(exponentials) for e in exponentials]


def weights(method: HiDe, *has_image: bool, task: int | None = None) -> list[list[float]]:
    return method.routing_weights(features(*(has_image or (True,))), task).tolist()


# ---------------------------------------------------------------------------------------------------- the two softmaxes


def test_softmax_over_the_learned() -> None:
    """z = .8, .7 at τ = .1: e^8 and e^7 share everything."""
    ours = weights(hide([0.8, 0.7], [0.8, 0.7]))[0]
    assert ours == pytest.approx([0.7310585786, 0.2689414214], abs=1e-6)


def test_softmax_over_all_slots() -> None:
    """z = .8, .7, 0, 0, 0, 0: four unlearned slots take e^0 each; the rows do not sum to 1."""
    method = hide([0.8, 0.7], [0.8, 0.7], routing="softmax_all")
    orthogonal = torch.stack([at_cosine(0.0, 8) for _ in range(6)])
    method.slot_anchors = {"image": orthogonal, "text": orthogonal}
    ours = weights(method)[0]
    total = math.exp(8) + math.exp(7) + 4
    assert ours == pytest.approx([math.exp(8) / total, math.exp(7) / total], abs=1e-6)
    assert ours == pytest.approx([0.7303421, 0.2686779], abs=1e-6)  # the leak is 0.1 %
    assert sum(ours) < 0.9991


def test_more_slots_than_an_imported_checkpoint_has_are_refused() -> None:
    method = hide([0.8, 0.7], [0.8, 0.7], routing="softmax_all", slots=12)
    anchors = torch.stack([at_cosine(0.0, 8) for _ in range(10)])
    method.slot_anchors = {"image": anchors, "text": anchors}
    with pytest.raises(UserError, match=r"method\.slots=12: the imported checkpoint has 10 slots"):
        weights(method)


def test_unlearned_slots_are_drawn_once_and_the_same_in_every_process() -> None:
    one, other = (weights(hide([0.8], [0.8], routing="softmax_all"))[0] for _ in range(2))
    torch.manual_seed(7)
    again = weights(hide([0.8], [0.8], routing="softmax_all"))[0]
    assert one == other == again and 0.98 < one[0] < 1
    assert weights(hide([0.8], [0.8], tasks=1, routing="softmax_all"))[0] == [1.0]  # all learned: nothing leaks


def test_fewer_slots_than_experts() -> None:
    """The published code never uses experts beyond its six slots: their weight is 0."""
    method = hide([0.8, 0.7, 0.9], [0.8, 0.7, 0.9], routing="softmax_all", slots=2)
    assert weights(method)[0] == pytest.approx([*softmax([0.8, 0.7]), 0.0], abs=1e-6)


def test_top1_and_oracle() -> None:
    cosines = ([0.3, 0.9, 0.8], [0.5, 0.6, 0.95])
    assert weights(hide(*cosines, routing="top1"))[0] == [0.0, 0.0, 1.0]  # .4, .75, .875
    oracle = hide(*cosines, routing="oracle")
    assert oracle.oracle and not hide(*cosines).oracle
    assert weights(oracle, True, False, task=1) == [[0.0, 1.0, 0.0]] * 2


def test_weights_of_the_two_similarities_and_temperature() -> None:
    cosines = ([0.3, 0.9], [0.5, 0.1])
    for alpha, beta, tau in ((0.5, 0.5, 0.1), (1.0, 0.0, 0.1), (0.0, 1.0, 0.05), (0.7, 0.2, 1.0)):
        method = hide(*cosines, image_weight=alpha, text_weight=beta, temperature=tau)
        want = softmax([alpha * a + beta * c for a, c in zip(*cosines)], tau)
        assert weights(method)[0] == pytest.approx(want, abs=1e-6)


def test_text_only_row_of_a_mixed_batch() -> None:
    """Routed by text alone at the same scale; the rows beside it are what they are without it."""
    image, text = [0.3, 0.9, 0.2], [0.5, 0.1, 0.4]
    method = hide(image, text)
    mixed = weights(method, True, False, True)
    both = softmax([(a + c) / 2 for a, c in zip(image, text)])
    assert mixed[0] == pytest.approx(both, abs=1e-6) and mixed[2] == mixed[0]
    assert mixed[1] == pytest.approx(softmax(text), abs=1e-6)
    assert weights(method, True)[0] == pytest.approx(mixed[0], abs=1e-7)
    assert weights(method, False)[0] == pytest.approx(mixed[1], abs=1e-7)


def test_a_task_that_never_saw_an_image() -> None:
    """It is compared by text alone also for samples with an image; the other tasks by both."""
    method = hide([0.3, None, 0.8], [0.5, 0.9, 0.4])
    assert method.image_anchors.mean(1) is None
    assert weights(method)[0] == pytest.approx(softmax([0.4, 0.9, 0.6]), abs=1e-6)
    assert weights(method, False)[0] == pytest.approx(softmax([0.5, 0.9, 0.4]), abs=1e-6)


def test_every_row_has_its_own_weights() -> None:
    method = hide([0.8, 0.7], [0.8, 0.7])
    generator = torch.Generator().manual_seed(0)
    rows = Features(*torch.randn(2, 5, WIDTH, generator=generator), torch.ones(5, dtype=torch.bool))
    together = method.routing_weights(rows)
    for b in range(5):
        alone = method.routing_weights(Features(rows.image[b : b + 1], rows.text[b : b + 1], rows.has_image[:1]))
        torch.testing.assert_close(alone[0], together[b], atol=1e-7, rtol=0)
    assert len({tuple(row) for row in together.tolist()}) == 5


def test_more_than_ten_tasks() -> None:
    cosines = [0.05 * (i + 1) for i in range(13)]
    method = hide(cosines, cosines, tasks=13)
    assert weights(method)[0] == pytest.approx(softmax(cosines), abs=1e-6)


# ------------------------------------------------------------------------------------------------------------ gathering


def test_text_only_records_do_not_touch_the_image_anchor() -> None:
    rows = Features(torch.randn(4, WIDTH), torch.randn(4, WIDTH), torch.tensor([True, False, True, False]))
    for text_only, used in (("text", [0, 2]), ("reference", [0, 1, 2, 3])):
        method = hide([], [], text_only=text_only)
        method.current = 0
        for anchors in (method.image_anchors, method.text_anchors):
            anchors.start(0, WIDTH, torch.device("cpu"))
        assert method.loss(None, {}, rows) == {}
        assert int(method.image_anchors.counts[0]) == len(used) and int(method.text_anchors.counts[0]) == 4
        torch.testing.assert_close(method.image_anchors.mean(0), rows.image[used].mean(0))
        torch.testing.assert_close(method.text_anchors.mean(0), rows.text.mean(0))


@pytest.mark.parametrize(
    "option", ["fusion", "routing", "projector", "anchors", "text_only", "temperature"], ids=lambda o: o
)
def test_impossible_options_name_the_field(option: str) -> None:
    assert_refused("hide", option, -1.0 if option == "temperature" else "nonsense", "")


# ----------------------------------------------------------------------------------------------------------- end to end


@pytest.fixture(scope="module")
def trained(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """HiDe with one projector per task, trained on the three tiny tasks; experts scaled up so that they matter."""
    output = tmp_path_factory.mktemp("runs") / "hide"
    run(configuration(world, "hide", output, "method.projector=per_task"), evaluate=False, report=False)
    return output


def restored(trained: Path, projector: str = "per_task", **options: object) -> Session:
    """The finished run with other inference options, its experts five times as strong.

    projector: how its projectors are used. It decides what is trained, so a run of another value is refused; here it is
    changed behind that check.
    """
    config = RunFolder(trained).config
    config.method.update(options)
    session = Session(Run(config))
    session.restore(2)
    session.method.config.projector = projector
    for name in session.core.names():
        for _, _, layer in session.core.layers(name):
            layer.lora_B[name].weight.data *= 5
    return session


def batch_of(session: Session, world: Path) -> dict:
    """Rows of all tasks, one of them without an image."""
    items = []
    for t, index in ((0, 0), (1, 1), (2, 5), (2, 2)):
        rows = load_questions(world / "data" / f"task{t}" / "test.json")
        data = QuestionDataset(rows, world / "data", session.backbone.reader())
        items.append(data[index])
    return _Collate()(items)


def logits_of(session: Session, batch: dict) -> Tensor:
    with session, torch.no_grad():
        return session.routed(**{k: v for k, v in batch.items() if k != "prompts"}).logits


def test_experts_are_stored_per_task(trained: Path) -> None:
    session = restored(trained)
    assert session.method.learned == [0, 1, 2] and len(session.core.projectors) == 3
    first, last = (session.core.projectors[f"expert-0{i}"]["linear_1.weight"] for i in (1, 3))
    assert not torch.equal(first, last)
    assert torch.equal(session.core.projector.linear_1.weight, last)  # where training ended
    session.method.before_task(Task(3, "more", 4), Context(widths=session.widths))
    start = session.core.projector_state()
    assert all(torch.equal(start[k], v) for k, v in session.initial_projector.items())  # each task starts from the base


@pytest.mark.parametrize("task", [0, 1, 2])
def test_one_hot_routing_uses_that_tasks_projector(task: int, trained: Path, world: Path) -> None:
    """Projector per task with a one-hot routing: as if that task's projector were the only one."""
    mixed, single = restored(trained, routing="oracle"), restored(trained, routing="oracle", projector="shared")
    single.core.load_projector(single.core.projectors[f"expert-0{task + 1}"])
    batch = {**batch_of(mixed, world), "task": task}
    one, other = logits_of(mixed, batch), logits_of(single, batch)
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    with mixed:
        answers = answer_batch(mixed, batch, 5, task)
    with single:
        assert [r["token_ids"] for r in answers] == [r["token_ids"] for r in answer_batch(single, batch, 5, task)]
    wrong = restored(trained, routing="oracle", projector="shared")
    wrong.core.load_projector(wrong.core.projectors[f"expert-0{(task + 1) % 3 + 1}"])
    images = batch["has_image"]
    assert (logits_of(wrong, batch)[images] - one[images]).abs().max() > 1e-3


def test_soft_routing_mixes_projected_images(trained: Path, world: Path) -> None:
    """The image of row b is Σ_i w_bi P_i(x_b), against every projector applied alone."""
    session = restored(trained)
    batch = batch_of(session, world)
    with session, torch.no_grad():
        ready, _, route = session.routed.prepare({**batch, "labels": None}, False)
        vision = session.routed.see(batch)
        rows = route.weights
        want = 0.0
        for name, projector in session.core.projectors.items():
            session.core.load_projector(projector)
            weight = rows[name][batch["has_image"]][:, None, None]
            want = want + weight * session.core.projector(vision.patches)
    places = batch["input_ids"] == IMAGE_TOKEN
    torch.testing.assert_close(ready.inputs["inputs_embeds"][places], want.flatten(0, 1), atol=1e-5, rtol=1e-5)
    assert torch.stack(list(rows.values()), 1).sum(1).tolist() == pytest.approx([1.0] * 4, abs=1e-5)


@pytest.mark.parametrize("expanded", [[-1], [0, -1], [0], []], ids=str)
@pytest.mark.parametrize("fusion", ["delta_sum", "factor_sum"])
def test_the_whole_model_computes_the_formulas(expanded: list[int], fusion: str, trained: Path, world: Path) -> None:
    """Every linear replaced, row by row, by W + Δ written out: fused below, weighted in the expanded layers."""
    session = restored(trained, expanded_layers=expanded, fusion=fusion, projector="shared")
    batch = batch_of(session, world)
    ours = logits_of(session, batch)
    llava, names = session.core.llava, [f"expert-0{i}" for i in (1, 2, 3)]
    with torch.no_grad():
        found = session.routed.features(batch, session.routed.see(batch))
        shares = session.method.routing_weights(found)
        vision = session.routed.see(batch)
        embeds = splice(llava, batch["input_ids"], vision, session.core.projector)
        layers = [(index % 2, m) for _, index, m in session.core.layers(names[0])]
        kept = [m.get_base_layer().weight.clone() for _, m in layers]
        for b in range(len(shares)):
            for (index, m), w in zip(layers, kept):
                a = [m.lora_A[n].weight.double() for n in names]
                s_b = [m.scaling[n] * m.lora_B[n].weight.double() for n in names]
                if index in [i % 2 for i in expanded]:
                    update = sum(shares[b, i].double() * s_b[i] @ a[i] for i in range(3))
                elif fusion == "delta_sum":
                    update = sum(s_b[i] @ a[i] for i in range(3))
                else:
                    update = sum(s_b) @ sum(a)
                m.get_base_layer().weight.copy_(w.double() + update)
            session.core.follow(Route())
            mask = batch["attention_mask"][b : b + 1]
            row = llava(inputs_embeds=embeds[b : b + 1], attention_mask=mask, use_cache=False).logits
            torch.testing.assert_close(ours[b][mask[0].bool()], row[0][mask[0].bool()], atol=2e-4, rtol=1e-3)


def test_growing_beyond_ten_tasks(world: Path, tmp_path: Path) -> None:
    """Twelve experts: learned, stored, restored, folded and routed; the reference stops at ten anchors."""
    config = configuration(world, "hide", tmp_path / "run")
    session = Session(Run(config))
    generator = torch.Generator().manual_seed(0)
    for t in range(12):
        session.core.unfold()
        session.method.before_task(Task(t, f"t{t}", 12), Context(widths=session.widths))
        rows = Features(*torch.randn(2, 8, 24, generator=generator), torch.ones(8, dtype=torch.bool))
        session.method.loss(None, {}, rows)
        for parameter in session.method.params()[0]["params"]:
            parameter.data.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        session.method.after_task(Task(t, f"t{t}", 12), Context())
    batch = batch_of(session, world)
    with session:
        rows = answer_batch(session, batch, 4, None)
    assert all(len(r["routing"]) == 12 and sum(r["routing"].values()) == pytest.approx(1, abs=1e-4) for r in rows)
    other = Session(Run(config))
    for name in session.core.names():
        session.core.save(name, tmp_path / name)
        other.core.load(name, tmp_path / name)
    other.method.load_state({**session.method.state()})
    with other:
        again = answer_batch(other, batch, 4, None)
    assert [r["token_ids"] for r in again] == [r["token_ids"] for r in rows]
    assert [r["routing"] for r in again] == [r["routing"] for r in rows]
