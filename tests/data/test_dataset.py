"""Sample policy, question samples and padding."""

import functools
import json

import datasets
import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from hide_llava.backbones.clip_pixels import ImageTransform
from hide_llava.backbones.llava15_reader import Llava15Reader
from hide_llava.backbones.vicuna import IMAGE_TOKEN, encode_question
from hide_llava.data import decoded, measured
from hide_llava.data.collator import Collator, moved
from hide_llava.data.dataset import QuestionDataset, TrainingDataset, check_turns, pictures_of
from hide_llava.data.decoded import decode, undecodable
from hide_llava.data.images import load_image
from hide_llava.data.preview import collapse, preview
from hide_llava.data.reader import Read, Reader
from hide_llava.data.records import load_records, readable
from hide_llava.data.turns import routing_text
from hide_llava.errors import BadRecord, UserError

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
    assert list(image["pixels"]) == ["pixel_values"] and image["pixels"]["pixel_values"].shape == (1, 3, 28, 28)
    assert text["pixels"] is None and (image["sizes"], text["sizes"]) == ([(40, 20)], [])
    assert image["types"] == text["types"] == {}
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
    assert (second["pixels"], second["text"], second["prompt"]) == (None, "Two plus two?", "Two plus two?")
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
    bare = {"types": {}, "pixels": None, "sizes": [], "text": "t", "question_id": "q"}
    samples = [{"input_ids": row, **bare} for row in (long, short)]
    batch = Collator(pad_id=0, side=side)(samples)
    assert batch["input_ids"][0].tolist() == long.tolist()
    assert batch["input_ids"][1][pad].tolist() == [0, 0]
    # From lengths: the 0 that is a real token stays visible.
    assert batch["attention_mask"].sum(1).tolist() == [5, 3] and batch["attention_mask"][1][pad].tolist() == [0, 0]
    assert "labels" not in batch and batch["pixels"] == [None, None]
    assert batch["ids"] == ["q", "q"] and batch["texts"] == ["t", "t"] and batch["has_image"].tolist() == [False, False]


def test_padding_of_labels_and_side_name():
    samples = [
        {"input_ids": torch.ones(n, dtype=torch.long), "labels": torch.ones(n, dtype=torch.long), "types": {}, "pixels": None,
         "sizes": [], "text": "", "id": n}
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
    "role of a turn": {"conversations": [{"from": "tool", "value": "be nice"}, {"from": "human", "value": "A?"}]},
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
        load_records(file, images, tmp_path / "cache", several=False)
    assert "record 3 (id 'several pictures'): names 2 pictures" in str(stopped.value)
    table = load_records(file, images, tmp_path / "cache", on_bad="keep")
    dataset = training(table, images, tokenizer, small, on_bad_sample="skip", workers=3)
    assert [dataset[i]["id"] for i in range(len(dataset))] == ["first", "last"]
    assert [(bad["index"], bad["kind"]) for bad in dataset.skipped] == [
        *enumerate(MALFORMED, start=1), (len(rows) - 2, "no object")
    ]  # fmt: skip
    assert dataset.left_out().startswith(f"{len(rows) - 2} of {len(rows)} records left out (1 × ")
    ids = [json.loads(row["id"]) for row in readable(table, several=False)]
    assert ids[0] == "first" and ids[-1] == "last" and "several pictures" not in ids and "missing picture" in ids
    assert [json.loads(row["id"]) for row in readable(table)] == [*ids[:3], "several pictures", *ids[3:]]


# ------------------------------------------------------------------------------------------------------ several pictures


class Counting(Reader):
    """A model that reads several pictures, each in a position per 100 pixels of it; words are ids, pictures are 7."""

    image_id, special, several, by_size = 7, (), True, True

    def training(self, turns, images, max_length):
        asked, said = self.question(turns[0]["value"], images), [len(word) for word in turns[1]["value"].split()]
        if len(asked.ids) >= max_length:
            raise BadRecord(f"no token of an answer is left within {max_length}", "too long")
        ids, labels = asked.ids + said, [-100] * len(asked.ids) + said
        return Read(ids, labels, asked.routed_by, asked.spans, {"kind": [int(token == 7) for token in ids]})

    def draft(self, turns, images, max_length):
        read = self.training(turns, images, 1 << 30)
        return collapse(read, 7)

    def question(self, text, images, before=()):
        ids, spans = [], []
        for width, height in images:
            spans.append((len(ids), len(ids) + width * height // 100))
            ids += [7] * (width * height // 100)
        ids += [100] * len(text.replace("<image>", "").split())
        return Read(ids, None, routing_text(text), tuple(spans), {"kind": [int(token == 7) for token in ids]})

    def answer_start(self, text):
        return []

    def pixels(self, images):
        return {"values": torch.stack([torch.tensor(image.size) for image in images])}

    def settings(self):
        return ["counting"]

    def piece(self, token):
        return f"{token} "


@pytest.fixture
def pair(images):
    """Two pictures of 8 and of 6 positions; the second stands on its side, as its EXIF block says."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20)).save(images / "phone.png", exif=exif)
    return ["good.png", "phone.png"]


def test_a_record_of_several_pictures(write, images, pair, turns, tmp_path):
    rows = [{"id": 0, "image": pair, "conversations": turns("<image> or <image>?", "the first")},
            {"id": 1, "conversations": turns("Q", "A")},
            {"id": 2, "image": pair[:1], "conversations": turns("<image> What?", "a b c")}]  # fmt: skip
    table = load_records(write(rows), images, tmp_path / "cache")
    dataset = TrainingDataset(table, images, Counting())
    assert list(pictures_of(table, images)) == [str(images / name) for name in [*pair, pair[0]]]
    assert list(pictures_of(rows, images)) == list(pictures_of(table, images))
    both, none, one = (dataset[i] for i in range(3))
    assert both["sizes"] == [(40, 20), (20, 30)] and none["sizes"] == [] and one["sizes"] == [(40, 20)]
    assert both["pixels"]["values"].tolist() == [[40, 20], [20, 30]] and none["pixels"] is None
    assert both["input_ids"].tolist() == [7] * 14 + [100, 100, 3, 5] and both["labels"].tolist() == [-100] * 16 + [3, 5]
    assert both["types"]["kind"].tolist() == [1] * 14 + [0] * 4
    assert dataset.longest == (18, 3) and dataset.modality_lengths == [5, -2, 5]
    assert [dataset.encode(row).spans for row in table] == [((0, 8), (8, 14)), (), ((0, 8),)]
    batch = Collator()([both, none, one])
    assert batch["has_image"].tolist() == [True, False, True] and batch["sizes"] == [both["sizes"], [], one["sizes"]]
    assert [row and list(row) for row in batch["pixels"]] == [["values"], None, ["values"]]
    assert batch["types"]["kind"].tolist() == [[1] * 14 + [0] * 4, [0] * 18, [1] * 8 + [0] * 10]


def test_a_size_that_changes_is_measured_again(write, images, pair, turns, tmp_path, monkeypatch):
    """The file's name is the same, the record is longer: what was kept does not hold."""
    monkeypatch.setenv("HIDE_CACHE", str(tmp_path / "cache"))
    table = load_records(write([{"id": 0, "image": pair, "conversations": turns("<image><image>", "a")}]), images)
    build = functools.partial(TrainingDataset, table, images, Counting())
    assert build().longest == build().longest == (15, 1)
    assert build(orientation="ignore").longest == (15, 1)  # as many pixels
    Image.new("RGB", (50, 20)).save(images / "good.png")
    assert build().longest == (17, 1)
    with pytest.raises(UserError, match="no token of an answer is left within 16"):
        build(max_length=16)


@pytest.mark.parametrize(("name", "kind"), [("cut.png", "undecodable picture"), ("gone.png", "missing picture")])
def test_one_bad_picture_of_several_makes_a_bad_record(write, images, turns, tmp_path, name, kind):
    talk = turns("<image><image>", "a")
    rows = [
        {"id": i, "image": named, "conversations": talk}
        for i, named in enumerate((["good.png"] * 2, ["good.png", name]))
    ]
    table = load_records(write(rows), images, tmp_path / "cache")
    with pytest.raises(UserError, match=rf"record 1 \(id 1\): Image .*{name}"):
        TrainingDataset(table, images, Counting())
    dataset = TrainingDataset(table, images, Counting(), on_bad_sample="skip")
    assert dataset.indices == [0] and [(bad["id"], bad["kind"]) for bad in dataset.skipped] == [(1, kind)]


def test_several_pictures_are_refused_for_a_model_of_one(write, images, turns, tokenizer, small, tmp_path):
    talk = turns("<image><image>\nWhat?", "a")
    rows = [
        {"id": 0, "image": ["good.png"], "conversations": talk},
        {"id": 1, "image": ["good.png"] * 2, "conversations": talk},
    ]
    table = load_records(write(rows), images, tmp_path / "cache")
    with pytest.raises(UserError, match=r"record 1 \(id 1\): names 2 pictures .*; this model takes one a record"):
        training(table, images, tokenizer, small)
    dataset = training(table, images, tokenizer, small, on_bad_sample="skip")
    assert dataset.indices == [0] and [bad["kind"] for bad in dataset.skipped] == ["several pictures"]
    asked = [{"question_id": "q7", "image": ["good.png"] * 2, "text": "What?"}]
    with pytest.raises(UserError, match=r"^Question 'q7' names 2 pictures .*; this model takes one a record"):
        QuestionDataset(asked, images, Llava15Reader(tokenizer, PATCHES, small))


def test_questions_with_several_pictures(images, pair):
    asked = [{"question_id": 0, "image": pair, "text": "<image> or <image>?"}, {"question_id": 1, "text": "What now?"},
             {"question_id": 2, "image": "good.png", "text": "What?"}]  # fmt: skip
    for orientation, sizes in (("exif", [(40, 20), (20, 30)]), ("ignore", [(40, 20), (30, 20)])):
        data = QuestionDataset(asked, images, Counting(), orientation)
        assert [data[i]["sizes"] for i in range(3)] == [sizes, [], sizes[:1]]
        assert data[0]["pixels"]["values"].tolist() == [list(size) for size in sizes] and data[1]["pixels"] is None
        assert data.longest() == max(len(data[i]["input_ids"]) for i in range(3)) == 16
    assert data[0]["types"]["kind"].tolist() == [1] * 14 + [0] * 2 and data[0]["prompt"] == data[0]["text"]
    with pytest.raises(UserError, match=r"Question 3: image .*gone\.png does not exist"):
        QuestionDataset([{"question_id": 3, "image": ["good.png", "gone.png"], "text": "?"}], images, Counting())
    with pytest.raises(UserError, match=r"Question 3 names 2 pictures and contains <image> 1 times"):
        QuestionDataset([{"question_id": 3, "image": pair, "text": "<image>?"}], images, Counting())


def test_the_longest_question_of_a_model_of_one_size(images, tokenizer, small):
    texts = [("What?", "good.png"), ("What is it?", None), ("Where? " * 9, "good.png")]
    asked = [{"question_id": i, "text": text, "image": image} for i, (text, image) in enumerate(texts)]
    data = QuestionDataset(asked, images, Llava15Reader(tokenizer, PATCHES, small))
    assert data.longest() == max(len(data[i]["input_ids"]) for i in range(3)) == len(data[2]["input_ids"])
    assert QuestionDataset([], images, Llava15Reader(tokenizer, PATCHES, small)).longest() == 0


PLACES = [  # texts of the turns, pictures, what is wrong
    (["A?", "b"], 0, None),
    (["<image> A?", "b"], 1, None),
    (["<image><image> A?", "b"], 1, None),  # one picture, whose place is put right
    (["A?", "b", "<image> C?", "d"], 1, None),
    (["<image> or <image>?", "b"], 2, None),
    (["<image> A?", "b", "<image><image> C?", "d"], 3, None),
    (["<image> A?", "b"], 0, "names no image file"),
    (["A?", "b"], 1, "no question contains <image>"),
    (["<image> A?", "b", "<image> C?", "d"], 1, "2 questions contain <image> but the record names one image"),
    (["A?", "b"], 2, "names 2 pictures but its questions contain <image> 0 times"),
    (
        ["<image> A?", "b"],
        2,
        "names 2 pictures but its questions contain <image> 1 times; write it once where each belongs",
    ),
    (["<image> A?", "b", "<image><image>", "d"], 2, "names 2 pictures but its questions contain <image> 3 times"),
    (["<image><image> A?", "<image>"], 3, "an answer contains <image>"),
]


@pytest.mark.parametrize(("texts", "count", "fault"), PLACES)
@pytest.mark.parametrize("leading", [False, True])
def test_as_many_places_as_pictures(turns, texts, count, fault, leading):
    talk = [*([{"from": "gpt", "value": "hello"}] if leading else []), *turns(*texts)]
    if fault is None:
        check_turns(talk, count, ())
    else:
        with pytest.raises(BadRecord, match=fault) as error:
            check_turns(talk, count, ())
        assert error.value.kind == ("no picture" if not count else "place of the picture")


def test_a_batch_moves_whole():
    batch = {"ids": [1], "a": torch.ones(1), "pixels": [{"x": torch.ones(2)}, None], "types": {"t": torch.ones(3)}, "n": None,
             "sizes": [[(1, 2)], []]}  # fmt: skip
    there = moved(batch, torch.device("meta"))
    assert there["a"].is_meta and there["pixels"][0]["x"].is_meta and there["types"]["t"].is_meta
    assert (there["ids"], there["n"], there["sizes"], there["pixels"][1]) == ([1], None, [[(1, 2)], []], None)
    assert not batch["pixels"][0]["x"].is_meta


def test_pixels_of_one_form_move_together() -> None:
    """One copy for all rows, because a host waits for each; others go alone, and every row keeps its own."""
    rows = [{"x": torch.ones(2, 3), "y": torch.ones(1, 2)}, None, {"x": torch.ones(4, 3), "y": torch.ones(1, 5)},
            {"x": torch.ones(1, 3), "z": torch.ones(3)}]  # fmt: skip
    copies = []

    class Counted(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            copies.extend([1] * (function is torch.ops.aten._to_copy.default))
            return function(*args, **(kwargs or {}))

    with Counted():
        there = moved({"pixels": rows}, torch.device("meta"))["pixels"]
    assert len(copies) == 1 + 2 + 1  # x together, each y, z
    for row, other in zip(rows, there):
        assert (row is None) == (other is None)
        for key in row or {}:
            assert other[key].is_meta and other[key].shape == row[key].shape and not row[key].is_meta
        assert row is None or list(row) == list(other)
    again = moved(rows, torch.device("cpu"))  # on their device already: not copied
    assert all(again[i][key] is rows[i][key] for i in (0, 2, 3) for key in rows[i])


def test_a_preview_shows_each_picture_once(write, images, pair, turns, tmp_path):
    rows = [{"id": 0, "image": pair, "conversations": turns("<image> or <image>?", "the first")},
            {"id": 1, "image": pair, "conversations": turns("<image> or?", "the first")},
            {"id": 2, "image": ["good.png", "gone.png"], "conversations": turns("<image><image>", "a")}]  # fmt: skip
    shown = [json.loads(line) for line in preview(write(rows), images, Counting(), 2048, None, True)]
    assert shown[0]["input_ids"] == [7, 7, 100, 100, 3, 5] and shown[0]["labels"] == [-100] * 4 + [3, 5]
    assert shown[0]["image_tokens"] == 14 and "error" not in shown[0]
    assert "names 2 pictures but its questions contain <image> 1 times" in shown[1]["error"]
    assert "gone.png does not exist" in shown[2]["error"]
    (readable, *_) = preview(write(rows), images, Counting(), 2048, 1, False)
    assert "18 positions, 2 supervised" in readable and readable.count("[image × 7]") == 2  # 8 and 6: their mean


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
            same = torch.equal(*(rows[i]["pixels"]["pixel_values"] for i in range(2)))
            assert same == (orientation == "exif")
    with pytest.raises(UserError, match="orientation is 'upright'"):
        build(*records, orientation="upright")


def test_records_are_tokenised_once(images, turns, write, tokenizer, small, tmp_path, monkeypatch):
    """What is kept goes by content and settings; on several processes it is what one finds; a damaged file is made anew."""
    monkeypatch.setenv("HIDE_CACHE", str(tmp_path / "cache"))
    calls, encode = [], TrainingDataset.encode
    monkeypatch.setattr(
        TrainingDataset, "encode", lambda self, record, *sizes: calls.append(1) or encode(self, record, *sizes)
    )
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
