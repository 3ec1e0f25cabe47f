"""Sample policy, question samples and padding."""

import json

import datasets
import pytest
import torch
from PIL import Image

from hide_llava.backbones.clip_pixels import ImageTransform
from hide_llava.backbones.llava15_reader import Llava15Reader
from hide_llava.backbones.vicuna import IMAGE_TOKEN, encode_question
from hide_llava.data import decoded, measured
from hide_llava.data.collator import Collator
from hide_llava.data.dataset import QuestionDataset, TrainingDataset
from hide_llava.data.decoded import decode, undecodable
from hide_llava.data.images import load_image
from hide_llava.data.records import load_records, readable
from hide_llava.errors import UserError

PATCHES = 4


@pytest.fixture(scope="module")
def small():
    return ImageTransform({"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}})


def training(table, images, tokenizer, small, masks="exact", routing="question", **options):
    return TrainingDataset(table, images, Llava15Reader(tokenizer, PATCHES, small, masks, routing), **options)


@pytest.fixture
def images(tmp_path):
    root = tmp_path / "images"
    root.mkdir()
    Image.new("RGB", (40, 20), "red").save(root / "good.png")
    (root / "cut.png").write_bytes((root / "good.png").read_bytes()[:60])
    return root


@pytest.fixture
def build(write, images, tokenizer, small, tmp_path):
    def make(*records, **options):
        file = write([{"id": i, **record} for i, record in enumerate(records)])
        table = load_records(file, images, tmp_path / "cache")
        return training(table, images, tokenizer, small, **options)

    return make


def test_items(build, turns):
    dataset = build(
        {"image": "good.png", "conversations": turns("<image>\nWhat is it?", "a")},
        {"conversations": turns("One line", "b")},
    )
    image, text = dataset[0], dataset[1]
    assert image["input_ids"].dtype == image["labels"].dtype == torch.long
    assert image["pixel_values"].shape == (3, 28, 28) and text["pixel_values"] is None
    assert (image["input_ids"] == IMAGE_TOKEN).sum() == PATCHES
    assert (image["labels"][image["input_ids"] == IMAGE_TOKEN] == -100).all()
    assert (image["text"], text["text"]) == ("What is it?", "One line")
    assert (image["id"], text["id"]) == (0, 1)
    assert dataset.modality_lengths == [5, -3]


def test_reference_routing(build, turns):
    records = [{"conversations": turns("One line", "b")}, {"conversations": turns("a\nb", "c")}]
    dataset = build(*records, routing="reference")
    assert [dataset[0]["text"], dataset[1]["text"]] == ["", "b"]


BAD = {
    "missing file": ({"image": "gone.png"}, "gone.png does not exist"),
    "no placeholder": ({"image": "good.png", "first": "What?"}, "no question contains <image>"),
    "two placeholders": ({"image": "good.png", "more": "<image> again?"}, "2 questions contain <image>"),
    "no image": ({"first": "<image>\nWhat?"}, "names no image file"),
    "placeholder in answer": ({"first": "What?", "answer": "<image>"}, "an answer contains <image>"),
    "empty answer": ({"first": "What?", "answer": ""}, "no supervised token"),
    "empty answer in the first round": ({"first": "What?", "answer": "", "more": "And?"}, "an answer is empty"),
    "unknown token in answer": ({"first": "What?", "answer": "an <unk>"}, "contains '<unk>'"),
    "eos in answer": ({"first": "What?", "answer": "a </s> b"}, "no supervised token"),
    "nothing left": ({"first": "What? " * 200, "limit": 60}, "within train.max_length=60"),
    "image beyond limit": (
        {"image": "good.png", "first": "What? " * 99, "more": "<image> here?", "limit": 120},
        "beyond the limit of 120",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_sample_is_an_error_naming_the_record_or_skipped_and_listed(build, turns, name):
    fields, reason = BAD[name]
    texts = [fields.get("first", "<image>\nWhat?"), fields.get("answer", "yes")]
    texts += [fields["more"], "no"] if "more" in fields else []
    bad = {"conversations": turns(*texts)} | ({"image": fields["image"]} if "image" in fields else {})
    good = {"conversations": turns("Q", "A")}
    options = {"max_length": fields["limit"]} if "limit" in fields else {}
    with pytest.raises(UserError, match=reason) as error:
        build(good, bad, **options)
    assert "train.json: 1 of 2 records" in str(error.value) and "record 1 (id 1)" in str(error.value)
    dataset = build(good, bad, on_bad_sample="skip", **options)
    assert len(dataset) == 1 and dataset[0]["id"] == 0
    assert [(entry["index"], entry["id"]) for entry in dataset.skipped] == [(1, 1)]
    assert reason in dataset.skipped[0]["reason"]


def test_undecodable_image(build, turns):
    good = {"image": "good.png", "conversations": turns("<image>\nWhat?", "a")}
    bad = {"image": "cut.png", "conversations": turns("<image>\nWhat?", "a")}
    with pytest.raises(UserError, match=r"record 1 \(id 1\): Image .*cut\.png cannot be decoded"):
        build(good, bad)  # before training, not in the middle of it
    skipping = build(good, bad, on_bad_sample="skip")
    assert skipping.indices == [0] and "cut.png" in skipping.skipped[0]["reason"]


def test_nothing_usable_and_wrong_options(build, turns):
    with pytest.raises(UserError, match="no usable sample"):
        build({"conversations": turns("Q", "")}, on_bad_sample="skip")
    with pytest.raises(UserError, match="error, skip"):
        build({"conversations": turns("Q", "A")}, on_bad_sample="ignore")
    with pytest.raises(UserError, match="question, reference"):
        build({"conversations": turns("Q", "A")}, routing="both")


def test_concatenated_files_are_all_named(write, turns, images, tokenizer, small, tmp_path):
    files = [write([{"id": 1, "conversations": turns("Q", "")}], name) for name in ("one file.json", "two.json")]
    table = datasets.concatenate_datasets(
        [load_records(file, images, tmp_path / "cache" / file.stem) for file in files]
    )
    with pytest.raises(UserError, match=r"one file\.json \+ .*two\.json: 2 of 2 records"):
        training(table, images, tokenizer, small)


def test_long_complaints_are_cut_short(build, turns):
    with pytest.raises(UserError, match="9 of 9 records") as error:
        build(*[{"conversations": turns("Q", "")} for _ in range(9)])
    assert str(error.value).count("record ") == 5 and "and 4 more" in str(error.value)


def test_questions(images, tokenizer, small):
    questions = [
        {"question_id": "a", "image": "good.png", "text": "What is it?"},
        {"question_id": 2, "text": "Two plus two?"},
        {"question_id": 3, "image": "good.png", "text": "<image>\nWhere?"},
    ]
    dataset = QuestionDataset(questions, images, Llava15Reader(tokenizer, PATCHES, small))
    first, second, third = (dataset[i] for i in range(3))
    ids = encode_question("What is it?", True, tokenizer)
    at = ids.index(IMAGE_TOKEN)
    assert first["input_ids"].tolist() == [*ids[:at], *[IMAGE_TOKEN] * PATCHES, *ids[at + 1 :]]
    assert (second["pixel_values"], second["text"], second["prompt"]) == (None, "Two plus two?", "Two plus two?")
    assert (third["text"], third["prompt"], third["question_id"]) == ("Where?", "Where?", 3)
    reference = QuestionDataset(questions, images, Llava15Reader(tokenizer, PATCHES, small, routing="reference"))
    assert [reference[i]["text"] for i in range(3)] == ["What is it?", "", "Where?"]


@pytest.mark.parametrize("question", [{"text": "<image>\nWhat?"}, {"text": "What?", "image": "gone.png"}])
def test_bad_question(images, tokenizer, small, question):
    with pytest.raises(UserError, match="Question 'q7'"):
        QuestionDataset([{"question_id": "q7", **question}], images, Llava15Reader(tokenizer, PATCHES, small))


def test_undecodable_question_image(images, tokenizer, small):
    question = {"question_id": "q7", "text": "What?", "image": "cut.png"}
    dataset = QuestionDataset([question], images, Llava15Reader(tokenizer, PATCHES, small))
    with pytest.raises(UserError, match=r"Question 'q7': Image .*cut\.png cannot be decoded"):
        dataset[0]


@pytest.mark.parametrize(("side", "pad"), [("right", slice(3, None)), ("left", slice(None, -3))])
def test_padding(side, pad):
    long, short = torch.tensor([1, 0, 5, 6, 7]), torch.tensor([1, 0, 9])
    samples = [{"input_ids": row, "pixel_values": None, "text": "t", "question_id": "q"} for row in (long, short)]
    batch = Collator(pad_id=0, side=side)(samples)
    assert batch["input_ids"][0].tolist() == long.tolist()
    assert batch["input_ids"][1][pad].tolist() == [0, 0]
    # From lengths: the 0 that is a real token stays visible.
    assert batch["attention_mask"].sum(1).tolist() == [5, 3] and batch["attention_mask"][1][pad].tolist() == [0, 0]
    assert "labels" not in batch and batch["pixel_values"] is None
    assert batch["ids"] == ["q", "q"] and batch["texts"] == ["t", "t"] and batch["has_image"].tolist() == [False, False]


def test_padding_of_labels_and_side_name():
    samples = [
        {"input_ids": torch.ones(n, dtype=torch.long), "labels": torch.ones(n, dtype=torch.long), "pixel_values": None,
         "text": "", "id": n}
        for n in (2, 3)
    ]  # fmt: skip
    assert Collator()(samples)["labels"].tolist() == [[1, 1, -100], [1, 1, 1]]
    with pytest.raises(UserError, match="right or left"):
        Collator(side="both")


MALFORMED = {  # kind → record, and the words that tell it; case 21 of the public reports
    "missing picture": {"image": "gone.png"},
    "undecodable picture": {"image": "cut.png"},
    "several pictures": {"image": ["good.png", "cut.png"]},
    "image path": {"image": "/abs/good.png"},
    "picture under another key": {"image": None, "img": "good.png"},
    "turn without text": {"conversations": [{"from": "human", "value": "<image>\nA?"}, {"from": "gpt", "value": None}]},
    "role of a turn": {"conversations": [{"from": "system", "value": "be nice"}, {"from": "human", "value": "A?"}]},
    "order of turns": {"conversations": [{"from": "human", "value": "<image>\nA?"}, {"from": "human", "value": "B?"}]},
    "no conversations": {"conversations": []},
    "empty answer": {"conversations": [{"from": "human", "value": "<image>\nA?"}, {"from": "gpt", "value": ""}]},
    "no answer": {"conversations": [{"from": "human", "value": "<image>\nA?"}]},
    "place of the picture": {"conversations": [{"from": "human", "value": "A?"}, {"from": "gpt", "value": "b"}]},
    "no picture": {"image": ""},
}


def test_skip_means_skip_for_every_kind(write, turns, images, tokenizer, small, tmp_path):
    """Every malformed record is skipped, counted by kind and listed with its place in the file; the table is cached."""
    good = {"image": "good.png", "conversations": turns("<image>\nA?", "b")}
    rows = [{"id": "first", **good}, *({"id": kind, **good, **fields} for kind, fields in MALFORMED.items()), "a string",
            {"id": "last", **good, "image": ["good.png"]}]  # fmt: skip
    file = write(rows)
    with pytest.raises(UserError, match="records cannot be trained on") as stopped:
        load_records(file, images, tmp_path / "cache")
    assert "record 3 (id 'several pictures'): names 2 pictures" in str(stopped.value)
    table = load_records(file, images, tmp_path / "cache", on_bad="keep")
    dataset = training(table, images, tokenizer, small, on_bad_sample="skip", workers=3)
    assert [dataset[i]["id"] for i in range(len(dataset))] == ["first", "last"]
    assert [(bad["index"], bad["kind"]) for bad in dataset.skipped] == [
        *enumerate(MALFORMED, start=1), (len(rows) - 2, "no object")
    ]  # fmt: skip
    assert dataset.left_out().startswith(f"{len(rows) - 2} of {len(rows)} records left out (1 × ")
    ids = [json.loads(row["id"]) for row in readable(table)]
    assert ids[0] == "first" and ids[-1] == "last" and "several pictures" not in ids and "missing picture" in ids


def test_pictures_are_decoded_once(images, tmp_path, monkeypatch):
    for i in range(5):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(images / f"{i}.jpg")
    paths = [str(images / f"{i}.jpg") for i in range(5)] * 2 + [str(images / name) for name in ("cut.png", "gone.png")]
    seen = []

    def counted(path):
        seen.append(path)
        return decode(path)

    monkeypatch.setattr(decoded, "decode", counted)
    for times in (1, 0):  # what is good is remembered, what is bad is looked at again
        seen.clear()
        bad = undecodable(paths, 2, cache_dir=tmp_path / "cache")
        assert {file.rpartition("/")[2]: fault.kind for file, fault in bad.items()} == {
            "cut.png": "undecodable picture", "gone.png": "missing picture"
        }  # fmt: skip
        assert len(seen) == 5 * times + 2
    (images / "3.jpg").write_bytes((images / "3.jpg").read_bytes()[:200])  # changed: decoded again
    assert str(images / "3.jpg") in undecodable(paths, 2, cache_dir=tmp_path / "cache")


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_cut_anywhere_is_found(images, progressive):
    """The check makes few pixels of a JPEG; it must see all that full decoding sees."""
    draw = Image.effect_noise((160, 120), 60).convert("RGB")
    draw.save(images / "whole.jpg", progressive=progressive)
    whole = (images / "whole.jpg").read_bytes()
    for cut in range(0, len(whole), max(1, len(whole) // 60)):
        (images / "cut.jpg").write_bytes(whole[:cut])
        with pytest.raises(UserError, match="cannot be decoded"):
            load_image(images / "cut.jpg")
        assert decode(str(images / "cut.jpg")) is not None, cut


def test_orientation_reaches_items_and_questions(build, turns, images, tokenizer, small):
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = Image.new("RGB", (40, 20), "red")
    stored.paste("blue", (20, 0, 40, 20))
    stored.save(images / "phone.png", exif=exif)
    stored.transpose(Image.Transpose.ROTATE_270).save(images / "upright.png")
    names = ("phone.png", "upright.png")
    records = [{"image": name, "conversations": turns("<image>\nA?", "b")} for name in names]
    asked = [{"question_id": i, "image": name, "text": "A?"} for i, name in enumerate(names)]
    for orientation in ("exif", "ignore"):
        data = [build(*records, orientation=orientation),
                QuestionDataset(asked, images, Llava15Reader(tokenizer, PATCHES, small), orientation)]  # fmt: skip
        for rows in data:
            same = torch.equal(rows[0]["pixel_values"], rows[1]["pixel_values"])
            assert same == (orientation == "exif")
    with pytest.raises(UserError, match="orientation is 'upright'"):
        build(*records, orientation="upright")


def test_records_are_tokenised_once(images, turns, write, tokenizer, small, tmp_path, monkeypatch):
    """What is kept goes by content and settings; on several processes it is what one finds; a damaged file is made anew."""
    monkeypatch.setenv("HIDE_CACHE", str(tmp_path / "cache"))
    calls, encode = [], TrainingDataset.encode
    monkeypatch.setattr(TrainingDataset, "encode", lambda self, record: calls.append(1) or encode(self, record))
    rows = [{"id": i, "conversations": turns("Q " * (i + 1), "A " * (i % 3))} for i in range(9)]

    def build(name="a.json", rows=rows, **options):
        calls.clear()
        table = load_records(write(rows, name), images)
        return training(table, images, tokenizer, small, on_bad_sample="skip", **options)

    first = build()
    assert len(calls) == 9 and len(first) == 6
    items = [first[i] for i in range(6)]
    assert first.longest == tuple(max(n) for n in zip(*((len(i["input_ids"]), int((i["labels"] != -100).sum())) for i in items)))
    again = build("other name.json")
    assert not calls and vars(again).keys() == vars(first).keys()
    for name in ("indices", "skipped", "modality_lengths", "longest"):
        assert getattr(again, name) == getattr(first, name), name
    build(max_length=99)
    assert len(calls) == 9
    build(rows=[*rows[:8], {"id": 8, "conversations": turns("Q", "B")}])
    assert len(calls) == 9
    for file in (tmp_path / "cache" / "measured").glob("*.json"):
        file.write_text(file.read_text()[:-5])
    build()
    assert len(calls) == 9
    monkeypatch.setattr(measured, "MANY", 1)
    monkeypatch.setattr(measured, "TOGETHER", 2)
    (tmp_path / "cache" / "measured").rename(tmp_path / "gone")
    random = torch.get_rng_state()
    apart = build(workers=2)
    assert not calls and apart.skipped == first.skipped and apart.longest == first.longest  # not in this process
    assert torch.equal(torch.get_rng_state(), random)
