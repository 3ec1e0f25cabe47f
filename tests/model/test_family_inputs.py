"""Prompts and projectors of every family: where vectors are put in, what learns, and each row's own mixture of projectors."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hide_llava.adapters.core import Core
from hide_llava.backbones import chat
from hide_llava.backbones.chat import ChatBackbone
from hide_llava.data.collator import Collator
from hide_llava.data.turns import IGNORE
from tests.families import FAMILIES, Family, Zoo, asked, furthest, learned, logits, picture, ready

QUESTIONS = [("What is it?", ((90, 60),)), ("How many?", ()), ("What is the object?", ((40, 80),))]
COUNT = 3
# The first token of a row that has one which begins a text; elsewhere prompts stand before everything.
BEGUN = ("llava_next", "mistral3", "gemma3", "smolvlm", "idefics3")


def rows_of(backbone: ChatBackbone) -> list[dict[str, Any]]:
    return [asked(backbone, question, [picture(*size) for size in sizes]) for question, sizes in QUESTIONS]


def records_of(backbone: ChatBackbone) -> list[dict[str, Any]]:
    return [
        learned(backbone, [(question, len(sizes), "a red star")], [picture(*size) for size in sizes])
        for question, sizes in QUESTIONS
    ]


def drawn(rows: int, count: int = COUNT) -> Tensor:
    return torch.randn(rows, count, 48, generator=torch.Generator().manual_seed(3))


# ------------------------------------------------------------------------------------------------------------------ prompts


@pytest.mark.parametrize("family", FAMILIES, indirect=True)
def test_prompts_of_a_batch_are_those_of_its_rows(family: Family) -> None:
    backbone, rows, prompts = family.backbone, rows_of(family.backbone), drawn(3)
    plain = family.logits(rows)
    alone = [logits(backbone, [row], "left", prompts[i : i + 1])[0] for i, row in enumerate(rows)]
    assert [len(found) for found in alone] == [len(row["input_ids"]) + COUNT for row in rows]
    for side in ("left", "right"):
        assert furthest(logits(backbone, rows, side, prompts), alone) <= 5e-5
    assert all((a[-1] - b[-1]).abs().max() > 0.1 for a, b in zip(alone, plain))
    assert furthest(family.logits(rows), plain) == 0  # nothing of them is left
    assert furthest(logits(backbone, rows, "left", drawn(3, 0)), plain) == 0
    first = [answer[0] for answer in backbone.answer(ready(backbone, rows, "left", prompts), 2)]
    assert first == [int(found[-1].argmax()) for found in alone]


@pytest.mark.parametrize("family", FAMILIES, indirect=True)
def test_prompts_stand_behind_what_begins_a_text(family: Family) -> None:
    """By what the decoder is given: the embeddings without prompts, and the vectors between two of them."""
    backbone, given = family.backbone, []
    rows, prompts = rows_of(backbone), drawn(3)

    def received(rows: Sequence[dict[str, Any]], side: str, prompts: Tensor | None = None) -> list[Tensor]:
        given.clear()
        made = ready(backbone, rows, side, prompts)
        with torch.no_grad():
            backbone.run(made)
        return [row[mask.bool()] for row, mask in zip(given[0], made.attention_mask)]

    def keep(_: nn.Module, __: tuple, kwargs: dict[str, Any]) -> None:
        given.append(kwargs["inputs_embeds"].clone())

    handle = backbone.decoder.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        for side in ("left", "right"):
            plain, with_prompts = received(rows, side), received(rows, side, prompts)
            for row, before, after, own in zip(rows, plain, with_prompts, prompts):
                picture_first = 16 if family.kind == "paligemma" and row["pixels"] is not None else 0
                start = picture_first + (family.kind in BEGUN or family.kind == "paligemma")
                wanted = torch.cat([before[:start], own, before[start:]])
                assert furthest([after], [wanted]) <= 1e-5
    finally:
        handle.remove()


@pytest.mark.parametrize("family", FAMILIES, indirect=True)
def test_gradients_reach_prompts(family: Family) -> None:
    backbone, records = family.backbone, records_of(family.backbone)
    prompts = drawn(3).requires_grad_()
    made = ready(backbone, records, "right", prompts, train=True)
    assert made.inserted == COUNT and made.labels.shape == made.attention_mask.shape
    for labels, where, record in zip(made.labels, made.where, records):
        assert int(where.sum()) == COUNT and (labels[where] == IGNORE).all()
        assert labels[labels != IGNORE].tolist() == record["labels"][record["labels"] != IGNORE].tolist()
    backbone.run(made, labels=made.labels).loss.backward()
    assert prompts.grad.abs().amin() > 0
    assert all(parameter.grad is None for parameter in backbone.model.parameters())


# --------------------------------------------------------------------------------------------------------------- projectors


def copies_of(core: Core) -> dict[str, dict[str, Tensor]]:
    """Two projectors that differ from the model's and from each other."""
    generator = torch.Generator().manual_seed(5)
    return {
        name: {k: v + 0.2 * torch.randn(v.shape, generator=generator) for k, v in core.projector_state().items()}
        for name in ("a", "b")
    }


def encoded(backbone: ChatBackbone, rows: Sequence[dict[str, Any]]) -> list[Tensor]:
    """All that the projector gives for the pictures of rows, as upstream holds it: one for each place where it goes."""
    output = backbone.see(Collator()(rows)).output
    places = [output.pooler_output, *(getattr(output, "deepstack_features", None) or ())]
    return [torch.cat([part.flatten(0, -2) for part in pieces(place)]) for place in places]


def pieces(value: Tensor | Sequence[Tensor]) -> Sequence[Tensor]:
    return [value] if isinstance(value, Tensor) else value


@pytest.mark.parametrize("family", FAMILIES, indirect=True)
def test_gradients_reach_the_projector_alone(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it: Qwen3-VL's features for deeper layers too. A batch without pictures takes part with zeros, by the projector's
    weights, or by its forward where they are divided among processes."""
    backbone = family.load()
    backbone.projector.requires_grad_(True)
    records = records_of(backbone)
    trained = set(backbone.projector.parameters())
    assert len(trained) == len(backbone.projector.state_dict())
    if family.kind.startswith("qwen3"):
        assert len(list(backbone.projector.children())) == 3
    for rows, reached, divided in ((records, True, False), (records[1:2], False, False), (records[1:2], False, True)):
        monkeypatch.setattr(chat, "divided", lambda _, divided=divided: divided)
        made = ready(backbone, rows, "right", None, train=True)
        assert (made.beside is None) == reached
        loss = backbone.run(made, labels=made.labels).loss
        loss.backward()
        for parameter in backbone.model.parameters():
            assert (parameter.grad is not None) == (parameter in trained)
        assert all(bool(parameter.grad.abs().max() > 0) == reached for parameter in trained)
        backbone.model.zero_grad(set_to_none=True)
    given = ready(backbone, records[1:2], "right", None, train=False)
    assert given.beside is None and not backbone.run(given, labels=given.labels).loss.requires_grad


@pytest.mark.parametrize("family", FAMILIES, indirect=True)
def test_each_row_has_its_own_mixture_of_projectors(family: Family) -> None:
    core = Core(family.load())
    backbone, rows = core.backbone, rows_of(core.backbone)
    copies, own = copies_of(core), core.projector_state()
    weights = {"a": torch.tensor([1.0, 0.0, 0.0]), "b": torch.tensor([0.0, 0.0, 1.0])}

    def by(core: Core, name: str, row: dict[str, Any]) -> tuple[Tensor, list[Tensor]]:
        core.load_projector(copies[name])
        with torch.no_grad():
            found = logits(backbone, [row])[0], encoded(backbone, [row]) if row["pixels"] is not None else []
        core.load_projector(own)
        return found

    for side in ("left", "right"):
        batch = Collator(side=side)(rows)
        with torch.no_grad():
            made = backbone.ready(batch, backbone.see(batch), copies, weights, None, False)
            mixed = backbone.run(made).logits
        mixed = [found[mask.bool()] for found, mask in zip(mixed, made.attention_mask)]
        wanted = [by(core, "a", rows[0])[0], logits(backbone, rows[1:2])[0], by(core, "b", rows[2])[0]]
        assert furthest(mixed, wanted) <= 5e-5
    assert furthest([wanted[0]], logits(backbone, rows[:1])) > 0.1
    # Shares in between, and everything that the decoder takes of a picture.
    pictures = [rows[0], rows[2]]
    shares = {"a": torch.tensor([0.3, 1.4]), "b": torch.tensor([0.7, -0.4])}
    with torch.no_grad(), backbone.mixing(copies, shares, [row["pixels"] for row in pictures]):
        both = encoded(backbone, pictures)
    assert len(both) == (3 if family.kind.startswith("qwen3") else 1)
    singles = [
        [shares["a"][i] * a + shares["b"][i] * b for a, b in zip(by(core, "a", row)[1], by(core, "b", row)[1])]
        for i, row in enumerate(pictures)
    ]
    assert furthest(both, [torch.cat(parts) for parts in zip(*singles)]) <= 2e-5
    assert furthest(logits(backbone, rows), family.logits(rows)) == 0


@pytest.mark.parametrize("family", FAMILIES, indirect=True)
def test_a_trained_projector_answers_beside_a_bf16_model(family: Family) -> None:
    """It is fp32, as are copies of it; also in training, under autocast."""
    core = Core(family.load(dtype="bfloat16"))
    backbone = core.backbone
    core.load_projector({name: value.float() for name, value in core.projector_state().items()})
    assert {p.dtype for p in backbone.projector.parameters()} == {
        torch.float32
    } and backbone.model.dtype == torch.bfloat16
    rows, records = rows_of(backbone), records_of(backbone)
    assert len(backbone.answer(ready(backbone, rows), 2)) == 3
    batch, weights = Collator(side="left")(rows), {"a": torch.full((3,), 0.5), "b": torch.full((3,), 0.5)}
    with torch.no_grad():
        mixed = backbone.ready(batch, backbone.see(batch), copies_of(core), weights, None, False)
        assert backbone.run(mixed).logits.isfinite().all()
        assert len(backbone.answer(mixed, 2)) == 3
    backbone.projector.requires_grad_(True)
    with torch.autocast("cpu", torch.bfloat16):
        made = ready(backbone, records, "right", None, train=True)
        backbone.run(made, labels=made.labels).loss.backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in backbone.projector.parameters())


def test_qwen3_adds_deeper_features(zoo: Zoo) -> None:
    """The test above would show nothing if the decoder did not read them."""
    family = zoo("qwen3_vl")
    core = Core(family.load())
    row = rows_of(core.backbone)[:1]
    state = core.projector_state()
    core.load_projector({k: v if k.startswith("0.") else v + 0.3 for k, v in state.items()})
    assert furthest(logits(core.backbone, row), family.logits(row)) > 0.1
