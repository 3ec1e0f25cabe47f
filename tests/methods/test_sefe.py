"""SEFE: key elements, penalty and gradients against the authors' recordings; rewritten answers."""

import pytest
import torch
from datasets import Dataset
from torch import Tensor

from hide_llava.adapters.key_elements import key_mean, pack, select, unpack
from hide_llava.data.answer_styles import diversify, templates, understand
from hide_llava.data.dataset import check_turns
from hide_llava.data.records import features
from hide_llava.methods.base import Context
from hide_llava.methods.sefe import Sefe
from tests.methods.host import assert_near, recorded
from tests.methods.recorded import (
    assert_gradients,
    assert_logits,
    case,
    on_tiny_llama,
    path_of,
    put,
    text,
    total,
    trainable,
    under,
)
from tests.methods.refused import assert_refused

TENSORS = recorded("reglora_sefe")
LINEARS = sorted({k.split("task0.")[1][:-2] for k in TENSORS if k.startswith("select/task0.") and k.endswith(".A")})


def factors(task: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Recorded A and B of a finished task, by linear."""
    return {f"model.{n}": (TENSORS[f"select/task{task}.{n}.A"], TENSORS[f"select/task{task}.{n}.B"]) for n in LINEARS}


def after(tasks: int, reference: str = "authors") -> tuple:
    """A method that has finished the first `tasks` recorded tasks, in training of the next."""
    parameters = {k: v for k, v in case(TENSORS, "loss_task1").items() if k.startswith("param.")}
    routed = on_tiny_llama(Sefe, parameters, 0, rank=4, alpha=8.0, reference=reference)
    for task in range(tasks):
        routed.method.before_task(routed.method.tasks[task], None)
        put(routed, routed.method.adapter, factors(task))
        routed.method.after_task(routed.method.tasks[task], None)
    return routed, parameters


def pairs(keys: Tensor) -> list[tuple[int, int]]:
    return [tuple(row) for row in keys.tolist()]


@pytest.mark.parametrize("task", [0, 1, 2])
def test_selection_of_the_recording(task: int) -> None:
    """The recorded list with its duplicates is the masks of all tasks; its set is our union."""
    counted, _ = after(task + 1)
    union, _ = after(task + 1, "none")
    for name in LINEARS:
        a, b = factors(task)[f"model.{name}"]
        shape, path = (b.shape[0], a.shape[1]), path_of(f"model.{name}")
        stored = pairs(TENSORS[f"select/task{task}.{name}.keys"])
        masks = [unpack(m, shape[0] * shape[1]).view(shape) for m in counted.method.keys[path]]
        assert sorted(p for m in masks for p in pairs(m.nonzero())) == sorted(stored)
        (mask,) = union.method.keys[path]
        assert set(pairs(unpack(mask, shape[0] * shape[1]).view(shape).nonzero())) == set(stored)


@pytest.mark.parametrize("task", [1, 2, 3])
def test_loss_of_the_recording(task: int) -> None:
    """Logits, both losses and their gradients in every linear. With reference=authors: duplicates count twice, divisor
    224, no alpha / rank. Past LoRA layers were merged there."""
    mine = case(TENSORS, f"loss_task{task}")
    routed, base = after(task)
    method = routed.method
    parameters = {**base, **{k: v for k, v in mine.items() if k.startswith("param.")}}
    if task < 3:
        method.before_task(method.tasks[task], None)
    else:  # a fourth task, which the host does not have
        method.learned.append(3)
        method.core.add(method.expert(3), method.config)
    current = {f"model.{n}": (parameters[f"param.model.{n}.A"], parameters[f"param.model.{n}.B"]) for n in LINEARS}
    put(routed, method.adapter, current)
    for past in method.experts[:-1]:  # the recording's base holds no past experts
        put(routed, past, {})
    trainable(routed)
    batch = text(mine)
    assert_logits(routed, batch, mine["out.logits"])
    plain, whole = total(routed, batch)
    assert_near(plain, mine["out.ce"])
    assert_near(whole, mine["out.total"])
    term = method.loss(None, {}, None)["key_elements"] / 2500
    assert_near(term, mine["out.reg"])
    for kind, loss in (("total", whole), ("reg", term)):
        routed.zero_grad()
        loss.backward()
        gradients = under(mine, f"grad.{kind}.")
        assert len(gradients) == 2 * len(LINEARS)
        assert_gradients(routed, method.adapter, gradients, "A", "B")
    method.config.reference = "none"  # every element once, mean over the 14 linears there are
    for masks in method.keys.values():
        for other in masks[1:]:
            masks[0] |= other
        del masks[1:]
    ours = method.loss(None, {}, None)["key_elements"].detach() / 2500
    assert_near(ours * 14 / 224, mine["aux.reg_deduplicated"])


def test_masks_only_grow() -> None:
    before: dict[str, Tensor] = {}
    for task in range(3):
        routed, _ = after(task + 1, "none")
        for path, (mask,) in routed.method.keys.items():
            old = before.get(path, torch.zeros_like(mask))
            assert torch.equal(mask & old, old)
            assert task == 0 or not torch.equal(mask, old)
            before[path] = mask


def test_packing_and_the_mean_against_loops() -> None:
    torch.manual_seed(0)
    for count in (1, 8, 13, 64):
        bits = torch.rand(count) < 0.4
        assert pack(bits).numel() == -(-count // 8) and torch.equal(unpack(pack(bits), count), bits)
    a, b = torch.randn(2, 7, requires_grad=True), torch.randn(5, 2, requires_grad=True)
    bits = select(a.detach(), b.detach(), 0.3)
    order = (b @ a).detach().abs().flatten().sort(descending=True).values
    assert int(bits.sum()) == 10 and float((b @ a).detach().abs().flatten()[bits].min()) == float(order[9])
    x, y = a.detach().double().requires_grad_(True), b.detach().double().requires_grad_(True)
    chosen = [(j, k) for j in range(5) for k in range(7) if bits[7 * j + k]]
    expected = sum(sum(y[j, r] * x[r, k] for r in range(2)).abs() for j, k in chosen) / len(chosen)
    expected.backward()
    term = key_mean(a, b, [pack(bits)])
    term.backward()
    assert_near(term.detach().double(), expected.detach())
    assert_near(a.grad.double(), x.grad)
    assert_near(b.grad.double(), y.grad)


def test_penalty_of_all_linears_against_loops() -> None:
    """λ · mean over linears of the mean |(B A)_jk| over the recorded key elements: value and gradients, in fp64."""
    routed, _ = after(2, "none")
    method, means, leaves = routed.method, [], {}
    method.before_task(method.tasks[2], None)
    put(routed, method.adapter, factors(2))
    trainable(routed)
    for name in LINEARS:
        a, b = leaves[f"model.{name}"] = [p.double().requires_grad_(True) for p in factors(2)[f"model.{name}"]]
        keys = set(pairs(TENSORS[f"select/task1.{name}.keys"]))
        means.append(sum(sum(b[j, r] * a[r, k] for r in range(4)).abs() for j, k in keys) / len(keys))
    expected = 2500 * sum(means) / len(means)
    expected.backward()
    term = method.loss(None, {}, None)["key_elements"]
    term.backward()
    assert_near(term.detach().double(), expected.detach())
    gradients = {f"{name}.{side}": p.grad for name, pair in leaves.items() for side, p in zip("AB", pair)}
    assert_gradients(routed, method.adapter, gradients, "A", "B")


def test_the_penalty_is_computed_once_in_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three micro-batches of a step with shares of their own: the gradient that three terms would give, at the cost of one."""
    routed, _ = after(2, "none")
    method, asked = routed.method, []
    method.before_task(method.tasks[2], None)
    put(routed, method.adapter, factors(2))
    trainable(routed)
    monkeypatch.setattr("hide_llava.methods.sefe.key_mean", lambda *args: asked.append(1) or key_mean(*args))
    parameters = method.core.parameters_of(method.adapter)

    def step(once: bool) -> tuple[list[float], list[Tensor]]:
        values = []
        for share in (0.5, 0.25, 0.25):
            if not once:
                method.term.forget()
            term = method.loss(None, {}, None)["key_elements"] * share
            term.backward()
            values.append(float(term.detach()))
        gradients = [p.grad.clone() for p in parameters]
        method.core.llava.zero_grad()
        return values, gradients

    every, once = step(False), step(True)
    assert len(asked) == 3 * len(LINEARS) and every[0] == once[0]  # the last of the first three was kept
    for expected, found in zip(every[1], once[1]):
        assert_near(found, expected, 1e-6)
    with torch.no_grad():
        parameters[0].mul_(2.0)  # as an optimizer changes it
    assert float(method.loss(None, {}, None)["key_elements"].detach()) != once[0][0] / 0.5
    assert len(asked) == 4 * len(LINEARS)
    parameters[0].data.mul_(2.0)  # as DeepSpeed does, which no version counts
    method.after_step(1)
    method.loss(None, {}, None)
    assert len(asked) == 5 * len(LINEARS)
    with torch.no_grad():
        assert not method.loss(None, {}, None)["key_elements"].requires_grad


def test_state_survives() -> None:
    routed, _ = after(2)
    keys, state = routed.method.keys, routed.method.state()
    other, _ = after(0)
    other.method.load_state(state)
    assert other.method.learned == [0, 1] and other.method.keys.keys() == keys.keys()
    for path, masks in keys.items():
        assert len(masks) == 2 and all(torch.equal(x, y) for x, y in zip(masks, other.method.keys[path]))


# ------------------------------------------------------------------------------------------------------ answer styles
CHOICE = "Which one?\nA. cat\nB. dog\nAnswer with the option's letter from the given choices directly."
WORD = "What is this?\nAnswer the question using a single word or phrase."


def record(question: str, answer: str, number: int, image: bool = True) -> dict:
    turns = [{"from": "human", "value": ("<image>\n" if image else "") + question}, {"from": "gpt", "value": answer}]
    return {"id": str(number), "image": ["x.png"] if image else [], "conversations": turns}


def table(rows: list[tuple[str, str]]) -> Dataset:
    return Dataset.from_list([record(q, a, i, i % 3 > 0) for i, (q, a) in enumerate(rows)], features=features())


def test_a_record_is_understood() -> None:
    assert understand(record(CHOICE, "B", 0)) == ("Which one?", "dog", "choice")
    assert understand(record(WORD, "lemon", 0)) == ("What is this?", "lemon", "short")
    assert understand(record("Is it red?", "Yes", 0)) == ("Is it red?", "Yes", "yes_no")
    assert understand(record("Describe.", "A dog runs in a field.", 0)) == (
        "Describe.",
        "A dog runs in a field.",
        "long",
    )
    two = record(WORD, "lemon", 0)
    assert understand({**two, "conversations": two["conversations"] * 2}) is None


@pytest.mark.parametrize("percent", [0.0, 20.0, 100.0])
def test_share_number_and_images_are_kept(percent: float) -> None:
    records = table([(WORD, ("lemon", "barn", "pizza")[i % 3]) for i in range(30)])
    new = diversify(records, percent, 3)
    old = {r["id"]: r for r in records}
    changed = [r for r in new if r != old[r["id"]]]
    assert sorted(new["id"]) == sorted(records["id"]) and len(changed) == round(30 * percent / 100)
    for r in new:
        assert r["image"] == old[r["id"]]["image"]
        assert r["conversations"][0]["value"].startswith("<image>\n") == (r["image"] == ["x.png"])
        assert r["conversations"][0]["value"].count("<image>") == (r["image"] == ["x.png"])
    assert new.to_list() == diversify(records, percent, 3).to_list()
    assert percent == 0.0 or new.to_list() != diversify(records, percent, 4).to_list()


def test_a_rewritten_record_keeps_a_place_for_each_picture() -> None:
    two = {**record("Which is it, <image> or <image>?", "lemon", 0), "image": ["x.png", "y.png"]}
    two["conversations"][0]["value"] = two["conversations"][0]["value"].removeprefix("<image>\n")
    for seed in range(5):
        (new,) = diversify(Dataset.from_list([two], features=features()), 100.0, seed)
        assert new != two and new["image"] == two["image"]
        check_turns(new["conversations"], 2, ())


def test_rewritten_answers_are_right() -> None:
    """Every rewritten record still says the truth about its own picture."""
    answers = ("lemon", "barn", "pizza", "jellyfish")
    records = table([(WORD, answers[i % 4]) for i in range(80)])
    truth, seen = {r["id"]: r["conversations"][1]["value"] for r in records}, set()
    for r in diversify(records, 100.0, 0):
        question, answer = (turn["value"] for turn in r["conversations"])
        lines, right = question.splitlines(), truth[r["id"]]
        if lines[-1] == "Answer yes or no.":
            candidate = lines[-2].removeprefix("Is this a correct answer: ")
            assert answer == ("Yes" if candidate == right else "No") and candidate in answers
            seen.add(answer)
        elif lines[-1].startswith("Answer with the option"):
            options = {line[0]: line[3:] for line in lines if line[1:3] == ". "}
            assert options[answer] == right and sorted(options.values()) == sorted(set(answers))
            seen.add("choice " + answer)
        else:
            assert lines[-1] == "Answer in a complete sentence." and answer == f"The answer is {right}."
            seen.add("sentence")
        assert all(line not in lines[:-1] for line in templates()["instructions"])
    assert seen == {"Yes", "No", "sentence", *(f"choice {x}" for x in "ABCD")}


def test_only_styles_that_templates_can_write() -> None:
    captions = diversify(table([("Describe.", f"A dog number {i} runs.") for i in range(20)]), 100.0, 0)
    assert all(len(r["conversations"][1]["value"].split()) == 1 for r in captions)  # yes, no or a letter
    same = diversify(table([(WORD, "lemon")] * 12), 100.0, 0)  # no wrong candidate: no choice, and never "No"
    assert {r["conversations"][1]["value"] for r in same} == {"Yes", "The answer is lemon."}


def test_the_method_rewrites_its_task_unless_told_not_to() -> None:
    records = table([(WORD, ("lemon", "barn")[i % 2]) for i in range(10)])
    routed, _ = after(0)
    method = routed.method
    new = method.train_data(method.tasks[0], records, Context())
    assert sum(r not in records.to_list() for r in new.to_list()) == 2
    method.config.rewritten = 0.0
    assert method.train_data(method.tasks[0], records, Context()) is records


def test_settings_that_are_refused() -> None:
    assert_refused("sefe", "reference", "paper", "none, authors")
    assert_refused("sefe", "fraction", 0.0, "(0, 1]")
    assert_refused("sefe", "rewritten", 120.0, "[0, 100]")
    assert_refused("sefe", "strength", -1.0, "at least 0")
