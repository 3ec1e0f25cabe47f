"""How every family reads: what is learned of a record, what is refused, and that a question is asked as it was trained."""

import copy
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import ImageFile
from torch.utils.data import DataLoader, Dataset

from hide_llava.backbones.auto import reader_of
from hide_llava.backbones.chat_reader import ChatReader
from hide_llava.data import dataset
from hide_llava.data.collator import Collator
from hide_llava.data.dataset import QuestionDataset, TrainingDataset, item
from hide_llava.data.records import load_records
from hide_llava.data.turns import IGNORE
from hide_llava.errors import BadRecord, UserError
from tests.families import (
    FAMILIES,
    MARK,
    QWEN,
    SEVERAL,
    Family,
    Turn,
    Zoo,
    furthest,
    learned,
    logits,
    picture,
    record,
    written,
)

RECORDS: dict[str, tuple[list[Turn], list[tuple[int, int]]]] = {
    "text": ([("How many?", 0, "two cells")], []),
    "picture": ([("What is it?", 1, "a red star")], [(60, 40)]),
    "turns": ([("What is it?", 1, "a red star"), ("Sure?", 0, "yes"), ("A line?", 0, "no line")], [(60, 90)]),
    "text turns": ([("How many?", 0, "two"), ("Sure?", 0, "yes")], []),
    "second turn": ([("How many?", 0, "two"), ("And here?", 1, "three")], [(90, 60)]),
    "two pictures": ([("Which?", 2, "the second one")], [(60, 60), (40, 80)]),
    "pictures of two turns": ([("What is it?", 1, "a star"), ("And here?", 1, "a line")], [(60, 60), (90, 60)]),
}


def expected(family: Family, turns: Sequence[Turn], sizes: Sequence[tuple[int, int]]) -> tuple[list[int], list[int]]:
    """Ids and labels from upstream's call for each piece of the conversation as it is written by hand."""
    pieces, mark, images = written(family.kind, turns), MARK[family.kind], [picture(*size) for size in sizes]
    whole = family.expanded("".join(text for text, _ in pieces), images)["input_ids"][0].tolist()
    ids, labels, left = [], [], list(images)
    for text, is_learned in pieces:
        count = text.count(mark)
        here, left = left[:count], left[count:]
        if family.kind == "llava_onevision" and len(images) > 1:  # several are not cut into tiles: each takes as much
            each = whole.count(family.ids(mark)[0]) // len(images)
            made = family.ids(text.replace(mark, mark * each))
        else:
            made = family.expanded(text, here)["input_ids"][0].tolist() if text else []
        ids += made
        labels += made if is_learned else [IGNORE] * len(made)
    assert ids == whole
    return ids, labels


@pytest.mark.parametrize("name", RECORDS)
@pytest.mark.parametrize("family", FAMILIES, indirect=True)
def test_answers_and_what_ends_them_are_learned(family: Family, name: str) -> None:
    turns, sizes = RECORDS[name]
    if family.kind not in SEVERAL and name in ("two pictures", "pictures of two turns"):
        pytest.skip("one picture a record")
    if family.kind == "paligemma" and name == "second turn":  # its picture would stand before the first question
        with pytest.raises(BadRecord, match="moves a later picture to the front"):
            family.reader.training(record(turns), sizes, 2048)
        return
    read = family.reader.training(record(turns), sizes, 2048)
    ids, labels = expected(family, turns, sizes)
    assert read.ids == ids and read.labels == labels
    image = family.reader.image_id
    assert len(read.spans) == len(sizes) and all(image in ids[start:stop] for start, stop in read.spans)
    outside = [token for at, token in enumerate(ids) if not any(a <= at < b for a, b in read.spans)]
    assert image not in outside
    drafted, marked, positions = family.reader.draft(record(turns), sizes, 2048)
    assert len(drafted) == len(marked) == len(ids) - positions + len(sizes)
    assert [label for label in marked if label != IGNORE] == [label for label in labels if label != IGNORE]


@pytest.mark.parametrize("family", FAMILIES, indirect=True)
def test_a_record_is_trained_as_its_question_is_asked(family: Family) -> None:
    """Before an answer the model has seen what it will see when it is asked: the same tokens, and the same logits."""
    for name in ("text", "picture", "turns", "text turns"):
        turns, sizes = RECORDS[name]
        images = [picture(*size) for size in sizes]
        question = family.asked(turns[0][0], images)
        trained = learned(family.backbone, turns, images)
        count = len(question["input_ids"])
        assert torch.equal(trained["input_ids"][:count], question["input_ids"])
        start = family.reader.answer_start(turns[0][2])
        assert trained["input_ids"][count : count + len(start)].tolist() == start
        (asked,), (seen,) = family.logits([question]), family.logits([trained], "right")
        assert furthest([seen[count - 1]], [asked[-1]]) <= 5e-5


@pytest.mark.parametrize("family", FAMILIES, indirect=True)
def test_a_question_may_follow_others(family: Family) -> None:
    """Its tokens are how a record of the same turns begins, up to the answer; a picture without a place stands in the first."""
    for name in ("turns", "text turns"):
        turns, sizes = RECORDS[name]
        said = record(turns)
        whole = family.reader.training(said, sizes, 2048)
        start = family.reader.answer_start(turns[-1][2])
        for before in (said[:-2], [{**turn, "value": turn["value"].replace("<image>\n", "")} for turn in said[:-2]]):
            asked = family.reader.question(turns[-1][0], sizes, before)
            assert asked.ids == whole.ids[: len(asked.ids)] and asked.routed_by == whole.routed_by
            assert whole.ids[len(asked.ids) :][: len(start)] == start and len(asked.spans) == len(sizes)


@pytest.mark.parametrize("family", FAMILIES, indirect=True)
def test_an_answer_does_not_see_what_comes_after_it(family: Family) -> None:
    """The next turn, or the next word."""
    for name in ("turns", "text turns"):
        turns, sizes = RECORDS[name]
        images = [picture(*size) for size in sizes]
        other = [turns[0], ("Why not?", 0, "a circle"), *turns[2:]]
        one, two, three = (learned(family.backbone, given, images) for given in (turns, other, turns[:1]))
        end = int((three["labels"] != IGNORE).nonzero().max())
        found = [logits(family.backbone, [row], "right")[0][:end] for row in (one, two, three)]
        assert furthest(found[:2], [found[2]] * 2) <= 5e-5


def test_paligemma_is_given_what_its_processor_gives(zoo: Zoo) -> None:
    """Upstream's call with a suffix: ids, labels and token types of a record with a picture."""
    family, image = zoo("paligemma"), picture(60, 40)
    theirs = family.backbone.processor(
        text=["<image>What is it?"], images=[image], suffix=["a red star"], return_tensors="pt"
    )
    ours = learned(family.backbone, [("What is it?", 1, "a red star")], [image])
    assert torch.equal(ours["input_ids"], theirs["input_ids"][0])
    assert torch.equal(ours["labels"], theirs["labels"][0])
    assert torch.equal(ours["types"]["token_type_ids"], theirs["token_type_ids"][0])
    asked = family.backbone.processor(text=["<image>What is it?"], images=[image], return_tensors="pt")
    assert torch.equal(family.asked("What is it?", [image])["input_ids"], asked["input_ids"][0])


def test_pictures_stand_where_the_text_has_them(zoo: Zoo) -> None:
    """Of a record with several; one picture stands first, as LLaVA puts it."""
    reader, two = zoo("qwen3_vl").reader, [(60, 60), (90, 60)]
    shown = "".join(map(reader.piece, reader.question("From <image> to\n<image>\nwhat changed?", two).ids))
    assert shown.replace("<|image_pad|>", "").startswith(
        "<|im_start|>user\nFrom <|vision_start|><|vision_end|> to<|vision_start|><|vision_end|>what changed?<|im_end|>"
    )
    one = "".join(map(reader.piece, reader.question("What is\n<image>\nhere?", two[:1]).ids))
    assert one.replace("<|image_pad|>", "").startswith("<|im_start|>user\n<|vision_start|><|vision_end|>What is")


@pytest.mark.parametrize("family", FAMILIES, indirect=True)
def test_a_folder_reads_as_its_model_does(family: Family) -> None:
    """What `check` and `preview` have, without weights."""
    alone = reader_of(family.folder, None)
    assert alone.settings() == family.reader.settings() == json.loads(json.dumps(alone.settings()))
    for turns, sizes in (RECORDS["picture"], RECORDS["text turns"]):
        assert alone.training(record(turns), sizes, 2048) == family.reader.training(record(turns), sizes, 2048)


# ------------------------------------------------------------------------------------------------ templates that are refused


def changed(family: Family, folder: Path, change: Callable[[str], str]) -> ChatReader:
    """The reader of a copy whose template is another."""
    copy = shutil.copytree(family.folder, folder / family.kind)
    file = copy / "chat_template.jinja"
    text = change(file.read_text())
    assert text != file.read_text()
    file.write_text(text)
    return reader_of(copy, None)


TEMPLATES = tuple(kind for kind in FAMILIES if kind != "paligemma")
OPENED = "{% if add_generation_prompt %}<think>\n{% endif %}"


@pytest.mark.parametrize("family", TEMPLATES, indirect=True)
def test_a_template_that_thinks_is_refused(family: Family, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"opens a <think> block .* has no variable enable_thinking"):
        changed(family, tmp_path, lambda text: text + OPENED)


def test_a_template_that_can_be_told_not_to_think_is_told(zoo: Zoo, tmp_path: Path) -> None:
    family = zoo("qwen3_vl")
    told = "{% if enable_thinking is not defined or enable_thinking %}" + OPENED + "{% endif %}"
    reader = changed(family, tmp_path / "told", lambda text: text + told)
    turns = record(RECORDS["turns"][0])
    assert reader.training(turns, [(60, 90)], 2048) == family.reader.training(turns, [(60, 90)], 2048)
    with pytest.raises(UserError, match="even with enable_thinking=False"):
        changed(family, tmp_path / "not", lambda text: text + "{# enable_thinking #}" + OPENED)
    # A block that is there in the prompt and not in the conversation: the answer stands elsewhere.
    closed = "{% if add_generation_prompt %}<think>\n\n</think>\n\n{% endif %}"
    with pytest.raises(BadRecord, match="does not write this answer right behind its generation prompt"):
        changed(family, tmp_path / "closed", lambda text: text + closed).training(turns, [(60, 90)], 2048)


def with_space(text: str) -> str:
    """A prompt that ends with a space, which becomes one token with the word behind it."""
    spaced = text.replace("{{ message['role'] }}\n", "{{ message['role'] }}: ")
    return spaced.replace("<|im_start|>assistant\n", "<|im_start|>assistant: ")


@pytest.mark.parametrize("family", [*QWEN, "internvl", "llava_onevision"], indirect=True)
def test_an_answer_that_merges_with_its_prompt_is_refused(family: Family, tmp_path: Path) -> None:
    """The first answer of a record, or a later one."""
    reader = changed(family, tmp_path, with_space)
    for turns in ([("What is it?", 1, "star")], [("What is it?", 1, "\nstar"), ("Sure?", 0, "star")]):
        with pytest.raises(BadRecord, match="tokens of its question change when the answer follows it"):
            reader.training(record(turns), [(60, 40)], 2048)
    assert reader.training(record([("What is it?", 1, "\nstar")]), [(60, 40)], 2048)
    assert reader.draft(record([("What is it?", 1, "star")]), [(60, 40)], 2048) == ([], [], 0)


@pytest.mark.parametrize("family", [*QWEN, "internvl", "llava_onevision"], indirect=True)
def test_an_answer_that_nothing_ends_is_refused(family: Family, tmp_path: Path) -> None:
    end = "{% if message['role'] != 'assistant' %}<|im_end|>{% endif %}\n{% endfor %}"
    reader = changed(family, tmp_path, lambda text: text.replace("<|im_end|>\n{% endfor %}", end))
    for name in ("picture", "turns"):
        turns, sizes = RECORDS[name]
        with pytest.raises(BadRecord, match="ends this answer with no token that stops generation"):
            reader.training(record(turns), sizes, 2048)


# --------------------------------------------------------------------------------------------------- records that are refused

EXTRA = {"gemma3": ["<image_soft_token>", "<end_of_turn>"], "mistral3": ["[IMG_BREAK]", "[/INST]"],
         "smolvlm": ["<fake_token_around_image>"], "internvl": ["<img>", "<|im_start|>"],
         **{kind: ["<|video_pad|>", "<|vision_start|>", "<|im_start|>"] for kind in QWEN}}  # fmt: skip


def annotations(folder: Path, rows: Sequence[dict[str, Any]]) -> Any:
    file = folder / "records.json"
    file.write_text(json.dumps(rows))
    return load_records(file, folder / "cache")


@pytest.mark.parametrize("family", FAMILIES, indirect=True)
def test_text_that_is_no_text_to_the_model_is_refused(family: Family, tmp_path: Path) -> None:
    """By the record's name. In a question only what stands for pictures: other special tokens are read as they are asked."""
    kind, stop = family.kind, family.backbone.tokenizer.eos_token
    own = {"gemma3": "<image_soft_token>", **dict.fromkeys(QWEN, "<|video_pad|>")}
    picture(60, 40).save(tmp_path / "a.png")
    bad = [("How many?", f"two {token}") for token in (MARK[kind], stop, *EXTRA.get(kind, []))]
    bad += [(f"Is {token} here?", "yes") for token in dict.fromkeys((MARK[kind], own.get(kind, MARK[kind])))]
    taken = {
        f"n{place}p" for place, (question, _) in enumerate(bad) if "<image>" in question
    }  # the picture's place, to all
    rows = [
        {"id": f"n{place}{named}", **({"image": "a.png"} if named else {}),
         "conversations": record([(question, int(bool(named)), answer)])}
        for place, (question, answer) in enumerate(bad) for named in ("", "p")
    ]  # fmt: skip
    rows.append({"id": "good", "conversations": record([("How many <b>?", 0, "two <i>")])})
    records = annotations(tmp_path, rows)
    made = TrainingDataset(records, tmp_path, family.reader, on_bad_sample="skip")
    refused = {entry["id"]: entry["reason"] for entry in made.skipped}
    assert set(refused) == {row["id"] for row in rows} - {"good"} - taken
    with pytest.raises(UserError, match="n0"):
        TrainingDataset(records, tmp_path, family.reader)
    for question, _ in bad[-1:]:
        with pytest.raises(UserError, match="Question 'q7'"):
            asked = QuestionDataset([{"question_id": "q7", "text": question}], tmp_path, family.reader)
            asked[0]


@pytest.mark.parametrize("family", FAMILIES, indirect=True)
def test_a_record_that_is_cut_inside_its_picture_is_refused_undecoded(
    family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the data set is built, by the size in the picture's header."""
    picture(60, 90).save(tmp_path / "a.png")
    turns = RECORDS["turns"][0]
    whole = family.reader.training(record(turns), [(60, 90)], 2048)
    (_, stop), first = whole.spans[0], next(at for at, label in enumerate(whole.labels) if label != IGNORE)
    rows = [{"id": "seven", "image": "a.png", "conversations": record(turns)},
            {"id": "text", "conversations": record([("How many?", 0, "two")])}]  # fmt: skip
    records = annotations(tmp_path, rows)

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("a picture is decoded")

    monkeypatch.setattr(dataset, "undecodable", lambda *_, **__: {})
    monkeypatch.setattr(dataset, "load_image", never)
    monkeypatch.setattr(ImageFile.ImageFile, "load", never)
    monkeypatch.setattr(family.reader, "pixels", never)
    for limit, reason in ((stop - 1, r"image ends at token \d+.*train\.max_length.*model\.image\.max_pixels"),
                          (first, r"no token of an answer is left within train\.max_length")):  # fmt: skip
        with pytest.raises(UserError, match=reason) as told:
            TrainingDataset(records, tmp_path, family.reader, max_length=limit)
        assert "seven" in str(told.value)
        skipped = TrainingDataset(records, tmp_path, family.reader, max_length=limit, on_bad_sample="show").skipped
        assert [(entry["id"], entry["kind"]) for entry in skipped if entry["id"] == "seven"] == [("seven", "too long")]
    kept = TrainingDataset(records, tmp_path, family.reader, max_length=first + 1)
    assert kept.longest == (
        first + 1,
        len(kept.encode(kept.records[1]).ids) - kept.encode(kept.records[1]).labels.count(IGNORE),
    )
    assert kept.encode(kept.records[0]).ids == whole.ids[: first + 1]


# --------------------------------------------------------------------------------------------------------------- its workers


class Samples(Dataset):
    """Samples that a reader makes where they are asked for; whole batches of several readers, for a process of its own."""

    def __init__(self, readers: Sequence[ChatReader], batches: bool = False):
        self.readers, self.batches = readers, batches

    def __len__(self) -> int:
        return len(self.readers) if self.batches else 4 * len(self.readers)

    def __getitem__(self, place: int) -> dict[str, Any]:
        if self.batches:
            return Collator()([self.sample(self.readers[place], i) for i in range(4)])
        return self.sample(self.readers[place // 4], place % 4)

    def sample(self, reader: ChatReader, place: int) -> dict[str, Any]:
        turns, sizes = list(RECORDS.values())[place]
        read, images = reader.training(record(turns), sizes, 2048), [picture(*size) for size in sizes]
        pixels = reader.pixels(images) if images else None
        return {**item(read, pixels, sizes), "labels": torch.tensor(read.labels), "id": place}


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


@pytest.mark.parametrize("family", FAMILIES, indirect=True)
def test_a_reader_goes_to_other_processes(family: Family) -> None:
    again = copy.deepcopy(family.reader)  # through `__getstate__`, as a spawned process gets it
    own, copied = Samples([family.reader]), Samples([again])
    batches = [list(DataLoader(own, batch_size=2, collate_fn=Collator(), num_workers=n)) for n in (0, 2)]
    assert len(batches[0]) == 2 and same(batches[0], batches[1])
    assert same(batches[0], list(DataLoader(copied, batch_size=2, collate_fn=Collator())))


@pytest.mark.nightly
def test_readers_go_to_processes_that_know_nothing(zoo: Zoo) -> None:
    """Spawned, as on systems that do not fork; all families in one loader, because each process imports everything."""
    samples = Samples([zoo(kind).reader for kind in FAMILIES], batches=True)
    loader = DataLoader(samples, batch_size=None, num_workers=2, multiprocessing_context="spawn")
    assert same([samples[place] for place in range(len(samples))], list(loader))
