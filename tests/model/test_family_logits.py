"""The bare model of every family: logits and greedy tokens are transformers' own, alone and in a batch, on either side."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

from hide_llava.backbones.decode import end_tokens
from hide_llava.backbones.llava15 import Llava15
from hide_llava.data.collator import Collator, moved
from hide_llava.evaluation.batches import halves
from tests.families import FAMILIES, MARK, QWEN, SEVERAL, Family, Zoo, furthest, logits, picture, prompt, ready
from tests.zoo import write

NEW = 4
CASES = [("What is it?", ((90, 60),)), ("How many?", ()), ("What is the object in the image?", ((40, 80),)),
         ("Which?", ((60, 60), (60, 30)))]  # fmt: skip


def rows_of(family: Family) -> list[dict]:
    cases = CASES if family.kind in SEVERAL else CASES[:3]
    return [family.asked(question, [picture(*size) for size in sizes]) for question, sizes in cases]


@pytest.mark.parametrize("family", FAMILIES, indirect=True)
def test_logits_and_tokens_are_upstreams(family: Family) -> None:
    """Each row alone, by the text that the family's template makes of it; then all of them in one batch."""
    rows = rows_of(family)
    alone, tokens = [family.logits([row])[0] for row in rows], [family.answers([row], NEW)[0] for row in rows]
    for (question, sizes), ours, said in zip(CASES, alone, tokens):
        text = prompt(family.kind, question, len(sizes))
        given = family.expanded(text, [picture(*size) for size in sizes])
        with torch.no_grad():
            theirs = family.upstream(**given).logits[0]
            made = family.upstream.generate(**given, max_new_tokens=NEW, do_sample=False)[0]
        assert furthest([ours], [theirs]) <= 1e-5
        assert said == made[given["input_ids"].shape[1] :].tolist()
    assert len(set(map(tuple, tokens))) == len(tokens), "answers that do not differ show nothing"
    for side in ("left", "right"):
        assert furthest(family.logits(rows, side), alone) <= 5e-5
    assert family.answers(rows, NEW) == tokens


@pytest.mark.parametrize("family", ["llava_next", "idefics3", "gemma3", "paligemma"], indirect=True)
def test_the_processor_is_upstreams(family: Family) -> None:
    """Of the families whose processor transformers can make without torchvision."""
    theirs = AutoProcessor.from_pretrained(family.folder)
    images, mark = [picture(90, 60)], MARK[family.kind]
    for text, shown in ((f"{mark}What is it?", images), ("How many?", None)):
        if shown or family.kind != "paligemma":
            one, other = (p(text=[text], images=[shown] if shown else None, return_tensors="pt")
                          for p in (theirs, family.backbone.processor))  # fmt: skip
            assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("family", FAMILIES, indirect=True)
def test_the_halves_of_a_batch_answer_as_the_whole(family: Family) -> None:
    """Also down to single rows, and after a move to a device."""
    batch = moved(Collator(side="left")(rows_of(family)), torch.device("cpu"))
    backbone = family.backbone

    def answered(part: dict) -> list[list[int]]:
        return backbone.answer(backbone.ready(part, backbone.see(part), {}, None, None, False), NEW)

    whole = answered(batch)
    parts = [half for part in halves(batch) for half in (halves(part) if len(part["ids"]) > 1 else [part])]
    assert [row for half in halves(batch) for row in answered(half)] == whole
    assert [row for part in parts for row in answered(part)] == whole
    assert [name for part in parts for name in part["ids"]] == batch["ids"]


@pytest.mark.parametrize("family", QWEN, indirect=True)
def test_the_batch_before_leaves_nothing_behind(family: Family) -> None:
    """Upstream keeps the shift of positions that a picture causes, until it is given the next; what it does with an old one
    has changed between its versions, so that it gets none."""
    backbone, (one, text, other, *_) = family.load(), rows_of(family)

    def answered(rows: list[dict]) -> list[list[int]]:
        return backbone.answer(ready(backbone, rows), NEW)

    of_text, said = logits(backbone, [text]), answered([text])
    pictures, shown = logits(backbone, [one, other]), answered([one, other])
    assert backbone.model.model.rope_deltas.any()
    assert furthest(logits(backbone, [text]), of_text) == 0
    for rows, wanted in (([text], said), ([one, other], shown), ([text] * 3, said * 3), ([text], said)):
        backbone.model.model.rope_deltas = torch.full((2, 1), -2)  # of a batch of two with large pictures
        assert answered(rows) == wanted
    backbone.model.model.rope_deltas = torch.full((2, 1), -2)
    assert furthest(logits(backbone, [text] * 3), of_text * 3) <= 5e-5
    assert furthest(logits(backbone, [one, other]), pictures) == 0
    ready(backbone, [text])
    assert backbone.model.model.rope_deltas is None


# --------------------------------------------------------------------------------------------------------- where answers end


@pytest.mark.parametrize("family", FAMILIES, indirect=True)
def test_an_answer_ends_with_any_of_the_stop_tokens(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """What rows say in another place than their last is made a stop token."""
    rows = rows_of(family)
    before = family.answers(rows, NEW)
    ends = [before[0][1], before[1][2]]
    monkeypatch.setattr(family.backbone.model.generation_config, "eos_token_id", sorted(set(ends)))
    assert family.backbone.stop_ids == set(ends)

    def cut(answer: list[int]) -> list[int]:
        return answer[: next((place for place, token in enumerate(answer) if token in ends), NEW) + 1]

    assert family.answers(rows, NEW) == [cut(answer) for answer in before]


@pytest.mark.parametrize("family", FAMILIES, indirect=True)
def test_stop_tokens_are_those_of_the_folder(family: Family) -> None:
    """Gemma 3 ends an answer with two."""
    wanted = {"gemma3": ["<eos>", "<end_of_turn>"]}.get(family.kind, [family.backbone.tokenizer.eos_token])
    assert family.backbone.stop_ids == set(family.backbone.tokenizer.convert_tokens_to_ids(wanted))
    assert family.backbone.stop_ids == family.reader.stops == end_tokens(family.backbone.model)


@pytest.mark.parametrize("family", FAMILIES, indirect=True)
def test_a_folder_that_samples_and_penalises_is_asked_greedily(family: Family, tmp_path: Path) -> None:
    rows = rows_of(family)
    said = family.answers(rows, NEW)
    folder = shutil.copytree(family.folder, tmp_path / family.kind)
    file = folder / "generation_config.json"
    stored = json.loads(file.read_text())
    file.write_text(json.dumps({
        **stored, "do_sample": True, "temperature": 5.0, "top_k": 3, "top_p": 0.5, "repetition_penalty": 3.0,
        "suppress_tokens": [said[0][0]], "begin_suppress_tokens": [said[1][0]], "no_repeat_ngram_size": 1,
        "min_new_tokens": NEW + 2, "num_beams": 2, "max_length": 4,
    }))  # fmt: skip
    other = Family(family.kind, folder)
    assert other.answers(rows, NEW) == said
    assert other.backbone.stop_ids == family.backbone.stop_ids


# ------------------------------------------------------------------------------------------------------------------ LLaVA-1.5


def test_the_generic_way_gives_what_the_splice_of_llava15_gives(zoo: Zoo) -> None:
    """Ids and encoded pictures in upstream's forward, against embeddings that are put together here."""
    folder = write("llava", zoo.folder / "llava")
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)
    image = model.config.image_token_id
    ids = torch.randint(20, 400, (2, 24), generator=torch.Generator().manual_seed(0))
    ids[0, 2:18] = ids[1, 4:20] = image
    pixels = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, -3:] = 0

    def of(given: dict[str, Tensor]) -> Tensor:
        return model(**given, attention_mask=mask).logits[mask.bool()]

    splice = Llava15(model)
    batch = {"input_ids": ids.masked_fill(ids == image, -200), "attention_mask": mask,
             "has_image": torch.tensor([True, True]), "pixels": [{"pixel_values": row[None]} for row in pixels]}  # fmt: skip
    with torch.no_grad():
        encoded = model.model.get_image_features(pixel_values=pixels, return_dict=True)
        generic = of({"input_ids": ids, "mm_encoder_outputs": {"image": encoded}})
        spliced = of(splice.ready(batch, splice.see(batch), {}, None, None, False).inputs)
    assert torch.equal(generic, spliced)
    assert generic.std() > 0.1
