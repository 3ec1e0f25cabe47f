"""Records of other shapes: each is what its twin in LLaVA's own JSON is, or is refused by name."""

import base64
import io
import json
import os
import re
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from hide_llava.data import embedded, tables
from hide_llava.data.convert import convert
from hide_llava.data.images import load_image, size_of
from hide_llava.data.records import load_questions, load_records, unusable
from hide_llava.data.stream import stream
from hide_llava.errors import UserError


def png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 5 + seed, 3)).astype(np.uint8)
    made = io.BytesIO()
    Image.fromarray(pixels).save(made, "PNG")
    return made.getvalue()


def inline(seed: int) -> str:
    return f"data:image/png;base64,{base64.b64encode(png(seed)).decode()}"


def messages(*texts: Any) -> list[dict]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def parts(*pieces: Any) -> list[dict]:
    return [{"type": "text", "text": p} if isinstance(p, str) else p for p in pieces]


def at(path: str | None, kind: str = "image_url") -> dict:
    return {"type": kind, **({} if path is None else {kind: {"url": path} if kind == "image_url" else path})}


def read(tmp_path: Path, records: list, name: str = "train.jsonl") -> list[dict]:
    file = tmp_path / name
    lines = "\n".join(json.dumps(record) for record in records)
    file.write_text(lines if name.endswith("l") else json.dumps(records), encoding="utf-8")
    return list(load_records(file, tmp_path, tmp_path / "cache", on_bad="keep"))


# ------------------------------------------------------------------------------------------------------------- the shapes

TWINS = [  # a record → the pictures and the turns of its twin
    ({"messages": messages(parts(at("a.png"), "What?"), "A kite.")}, ["a.png"], ["<image>\nWhat?", "A kite."]),
    ({"messages": messages(parts(at("a.png", "image"), "What?"), "A kite.")}, ["a.png"], ["<image>\nWhat?", "A kite."]),
    ({"messages": messages(parts({"type": "image", "path": "a.png"}, "What?"), "x")}, ["a.png"], ["<image>\nWhat?", "x"]),
    ({"messages": messages(parts({"type": "input_image", "image_url": "a.png"}, {"type": "input_text", "text": "What?"}), "x")},
     ["a.png"], ["<image>\nWhat?", "x"]),
    ({"messages": messages("What?", parts("A ", "kite."))}, [], ["What?", "A kite."]),
    ({"messages": messages(parts("Is ", at("a.png"), "like\n", at("b.png"), at("c.png"), "?"), "no")},
     ["a.png", "b.png", "c.png"], ["Is \n<image>\nlike\n<image>\n<image>\n?", "no"]),
    ({"images": ["a.png", "b.png"],
      "messages": messages(parts(at(None, "image"), "Q1"), "x", parts("Q2", at(None, "image")), "y")},
     ["a.png", "b.png"], ["<image>\nQ1", "x", "Q2\n<image>", "y"]),
    ({"messages": messages("<image>What?", "x"), "images": ["a.png"]}, ["a.png"], ["<image>What?", "x"]),
    ({"messages": messages(parts(at("a.png"), "Q"), "x"), "images": ["a.png"]}, ["a.png"], ["<image>\nQ", "x"]),
    ({"messages": [{"role": "system", "content": "Be brief."}, *messages(parts(at("a.png"), "Q"), "x")]},
     ["a.png"], ["<image>\nBe brief.\n\nQ", "x"]),
    ({"messages": [{"role": "developer", "content": " "}, *messages("Q", "x")]}, [], ["Q", "x"]),
    ({"conversations": messages("Q", "x")}, [], ["Q", "x"]),
    ({"images": ["a.png"], "conversations": [{"from": "system", "value": "S"}, {"from": "human", "value": "<image>\nQ"},
                                             {"from": "gpt", "value": "x"}]}, ["a.png"], ["<image>\nS\n\nQ", "x"]),
    ({"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "x"}], "system": "S"}, [], ["S\n\nQ", "x"]),
    ({"messages": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "x"}]}, [], ["Q", "x"]),
    ({"messages": messages(parts(at("file://a.png"), "Q"), "x")}, ["a.png"], ["<image>\nQ", "x"]),
    ({"problem": "Q", "solution": "<think> t </think> x", "image": "a.png"}, ["a.png"], ["<image>\nQ", "<think> t </think> x"]),
    ({"problem": "Q", "solution": "x"}, [], ["Q", "x"]),
    ({"problem": "Q <image>", "solution": "x", "images": ["a.png"]}, ["a.png"], ["Q <image>", "x"]),
    ({"problem": "Q", "solution": "x", "images": ["a.png", "b.png"]}, ["a.png", "b.png"], ["<image>\n<image>\nQ", "x"]),
]  # fmt: skip


@pytest.mark.parametrize(("record", "images", "texts"), TWINS)
def test_a_record_is_its_twin(tmp_path: Path, record: dict, images: list[str], texts: list[str]) -> None:
    (row,) = read(tmp_path, [{"id": 4, **record}])
    assert row["image"] == images and json.loads(row["id"]) == 4
    assert row["conversations"] == [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


REFUSED = [
    ({"messages": messages(parts({"type": "video", "video": "a.mp4"}, "Q"), "x")}, "message 1 has a part 'video'"),
    ({"messages": messages(parts({"type": "input_audio", "input_audio": {}}), "x")}, "a part 'input_audio'"),
    ({"messages": messages(parts(at("https://host/a.png"), "Q"), "x")}, "by its address .*nothing is downloaded"),
    ({"conversations": [{"from": "human", "value": "<image>Q"}, {"from": "gpt", "value": "x"}], "image": "http://h/a.png"},
     "by its address"),
    ({"messages": messages(parts(at(None), "Q"), "x")}, "a place for a picture that the record does not name"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "message 1 has the role 'tool'"),
    ({"messages": [*messages("Q", "x"), {"role": "system", "content": "S"}]}, "a system turn behind its beginning"),
    ({"messages": messages("Q", None)}, "message 2 has a part None"),
    ({"messages": [{"role": "user", "content": "Q", "images": ["a.png"]}]}, "message 1 has 'images'"),
    ({"messages": messages("Q", "x"), "video": "a.mp4"}, "has 'video', which is not read"),
    ({"messages": messages("Q", "x"), "image": "a.png", "images": ["b.png"]}, "keep one of the keys"),
    ({"messages": messages(parts(at("../a.png"), "Q"), "x")}, "leaves the image root"),
    ({"messages": messages(parts(at("data:image/png;base64,!!"), "Q"), "x")}, "no base64"),
    ({"messages": messages("Q", "x"), "conversations": messages("Q", "x")}, "both 'conversations' and 'messages'"),
    ({"conversations": [{"from": "human", "value": "Q", "image": "a.png"}, {"from": "gpt", "value": "x"}]},
     "turn 1 has 'image', which is not read"),
    *(({"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "x"}], key: "a"}, f"has '{key}', which")
      for key in ("image_bytes", "img_b64", "audios", "frames", "image_data", "video_path", "sound", "media")),
]  # fmt: skip


@pytest.mark.parametrize(("record", "says"), REFUSED)
def test_a_record_is_refused_by_name(tmp_path: Path, record: dict, says: str) -> None:
    good = next(one for one in GOOD if one.keys() & record.keys())
    first, second = read(tmp_path, [good, {"id": "x", **record}])
    assert unusable(first) is None and re.search(says, str(unusable(second)))
    with pytest.raises(UserError, match=r"1 of 2 records .*\n.*record 1 \(id 'x'\): "):
        load_records(tmp_path / "train.jsonl", tmp_path, tmp_path / "cache")


GOOD = ({"messages": messages("Q", "x")}, {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "x"}]})


@pytest.mark.parametrize("records", [GOOD, GOOD[::-1]])
def test_two_shapes_in_one_file_are_told_apart(tmp_path: Path, records: tuple[dict, dict]) -> None:
    with pytest.raises(UserError, match=r"train\.jsonl: record 2 has turns of \{\w+, \w+\}, record 0 turns of \{\w+, \w+\}; "):
        read(tmp_path, [records[0], records[0], records[1]])


def test_questions_of_conversations(tmp_path: Path) -> None:
    records = [
        {"id": "a", "messages": messages(parts(at("a.png"), "What?"), "A kite."), "category": "sky"},
        {"messages": messages("Who?"), "answer": ["me"]},
        {"question_id": 7, "messages": [{"role": "system", "content": "S"}, *messages("Why?", "so")]},
    ]
    file = tmp_path / "test.json"
    file.write_text(json.dumps(records))
    assert load_questions(file) == [
        {"id": "a", "category": "sky", "image": "a.png", "text": "<image>\nWhat?", "answer": "A kite.", "question_id": "a"},
        {"answer": ["me"], "text": "Who?", "question_id": 1},
        {"question_id": 7, "text": "S\n\nWhy?", "answer": "so"},
    ]
    file.write_text(json.dumps([{"id": "b", "messages": messages("Q", "x", "Q2")}]))
    with pytest.raises(UserError, match=r"question 0: is a conversation of 3 turns \(human, gpt, human\)"):
        load_questions(file)


# -------------------------------------------------------------------------------------------- pictures in the file itself


def rows(count: int = 5) -> list[dict]:
    """Records as Hugging Face's data sets have them, every picture in its row."""
    return [
        {"id": i, "image": {"bytes": png(i), "path": f"cat{i}.png"},
         "conversations": [{"from": "human", "value": f"<image>\nWhat is {i}?"}, {"from": "gpt", "value": "a cat"}]}
        for i in range(count)
    ]  # fmt: skip


def write_parquet(file: Path, records: list[dict], group: int = 2) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(records), file, row_group_size=group)
    return file


def write_saved(folder: Path, records: list[dict], shards: int = 2) -> Path:
    datasets.Dataset.from_list(records).save_to_disk(folder, num_shards=shards)
    return folder


def write_arrow(file: Path, records: list[dict]) -> Path:
    table = pyarrow.Table.from_pylist(records)
    with pyarrow.OSFile(str(file), "wb") as sink, pyarrow.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return file


def write_shards(folder: Path, records: list[dict]) -> Path:
    for i, part in enumerate((records[:3], records[3:])):
        write_parquet(folder / f"train-0000{i}-of-00002.parquet", part)
    return folder


WRITERS = {"train.parquet": write_parquet, "saved": write_saved, "shards": write_shards, "train.arrow": write_arrow}


@pytest.mark.parametrize("name", WRITERS)
def test_pictures_are_taken_out_of_their_row(tmp_path: Path, name: str) -> None:
    source = WRITERS[name](tmp_path / "annotations" / name if name != "train.arrow" else tmp_path / name, rows())
    root = tmp_path / "images"  # which is not there, and need not be
    records = load_records(source, root, tmp_path / "cache")
    assert [json.loads(row["id"]) for row in records] == [0, 1, 2, 3, 4]
    for i in (4, 0, 3, 1, 2):
        (image,) = records[i]["image"]
        assert Path(image).name == f"cat{i}.png" and not os.path.isabs(image) and embedded.is_there(root / image)
        assert load_image(root / image).tobytes() == Image.open(io.BytesIO(png(i))).tobytes()
        assert size_of(root / image, "exif") == (5 + i, 4) and embedded.read(root / image) == png(i)
    again = load_records(source, root, tmp_path / "cache")
    assert again["image"][:] == records["image"][:] and len(list((tmp_path / "cache").iterdir())) == 1


def test_the_names_follow_the_folder_of_pictures(tmp_path: Path) -> None:
    """The same file, asked for from two places: each table's names lead to it."""
    source = write_parquet(tmp_path / "a" / "train.parquet", rows())
    for root in (tmp_path / "images", tmp_path):
        image = load_records(source, root, tmp_path / "cache")[1]["image"][0]
        assert image.endswith("a/train.parquet/@1.0/cat1.png") and embedded.read(root / image) == png(1)
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_several_pictures_and_parts_in_a_table(tmp_path: Path) -> None:
    image = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    part = pyarrow.struct([("type", pyarrow.string()), ("text", pyarrow.string()), ("image", image)])
    turn = pyarrow.struct([("role", pyarrow.string()), ("content", pyarrow.list_(part))])
    schema = pyarrow.schema([("id", pyarrow.string()), ("messages", pyarrow.list_(turn)), ("images", pyarrow.list_(image))])
    held = [{"bytes": png(k), "path": None} for k in range(3)]
    records = [
        {"id": "own", "images": None, "messages": messages(parts({"type": "image", "image": held[0]}, "or",
         {"type": "image", "image": held[1]}, "?"), parts("x"))},
        {"id": "named", "images": held[1:], "messages": messages(parts({"type": "image"}, "or", {"type": "image"}), parts("y"))},
        {"id": "file", "images": [{"bytes": None, "path": "b.png"}], "messages": messages(parts({"type": "image"}), parts("z"))},
    ]  # fmt: skip
    file = tmp_path / "t.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(records, schema), file)
    own, named, other = load_records(file, tmp_path, tmp_path / "cache")
    assert own["image"] == ["t.parquet/@0.0", "t.parquet/@0.1"] and own["conversations"][0]["value"] == "<image>\nor\n<image>\n?"
    assert named["image"] == ["t.parquet/@0.1", "t.parquet/@1.1"]  # the first is a picture that the row before has, too
    assert other["image"] == ["b.png"]
    assert [embedded.read(tmp_path / name) for row in (own, named) for name in row["image"]] == [png(k) for k in (0, 1, 1, 2)]


def test_equal_pictures_of_questions_have_one_name(tmp_path: Path) -> None:
    """MME asks two questions about a picture and knows them by its name."""
    asked = [{"question_id": i, "image": {"bytes": png(i // 2), "path": None}, "text": f"{i}?", "answer": "Yes"}
             for i in range(4)]  # fmt: skip
    questions = load_questions(write_parquet(tmp_path / "test.parquet", asked), tmp_path)
    assert [q["image"] for q in questions] == [f"test.parquet/@{i}.0" for i in (0, 0, 2, 2)]
    assert questions[3] == {"question_id": 3, "text": "3?", "answer": "Yes", "image": "test.parquet/@2.0"}
    plain = [{"image": {"bytes": png(0), "path": "a.png"}, "question": "Q?", "answer": None}]
    (only,) = load_questions(write_parquet(tmp_path / "plain.parquet", plain), tmp_path)
    assert only["text"] == "Q?" and only["question_id"] == 0 and "answer" not in only


def test_pictures_in_lines_of_json_and_not_in_a_list(tmp_path: Path) -> None:
    held = [{"id": i, "messages": messages(parts(at(inline(i)), "é?"), "x")} for i in range(3)]
    records = read(tmp_path, held)
    for i in (2, 0, 1):
        assert embedded.read(tmp_path / records[i]["image"][0]) == png(i)
    (row,) = read(tmp_path, held[:1], "train.json")
    assert "found again in JSON lines and in Parquet, not in a JSON list" in str(unusable(row))


def test_a_table_that_is_another_than_it_was(tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "t.parquet", rows())
    image = load_records(file, tmp_path, tmp_path / "cache")[4]["image"][0]
    write_parquet(file, rows(2))
    with pytest.raises(UserError, match=r"cat4\.png is not in .*t\.parquet, which is another file than it was"):
        load_image(tmp_path / image)
    file.unlink()
    assert not embedded.is_there(tmp_path / image)
    with pytest.raises(UserError, match=r"@4\.0/cat4\.png does not exist"):
        load_image(tmp_path / image)


def test_a_data_file_cannot_name_a_place_outside(tmp_path: Path) -> None:
    """Only names that are given here may lead out of the folder of pictures."""
    write_parquet(tmp_path / "secret.parquet", rows())
    bad = {**GOOD[1], "image": "../secret.parquet/@0.0/cat0.png"}
    (tmp_path / "in").mkdir()
    assert "leaves the image root" in str(unusable(read(tmp_path / "in", [bad])[0]))


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"PAR1 and no more", "is damaged"), (b"ARROW1\0\0 and no more", "is damaged"), (b"\xff\xff\xff\xff\x10", "is damaged")],
)
def test_damaged_tables(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "t.arrow").write_bytes(content)
    with pytest.raises(UserError, match=rf"t\.arrow {says}"):
        list(stream(tmp_path / "t.arrow"))


def test_folders_that_are_no_split(tmp_path: Path) -> None:
    write_parquet(tmp_path / "two" / "train-00000-of-00001.parquet", rows())
    write_parquet(tmp_path / "two" / "test-00000-of-00001.parquet", rows())
    (tmp_path / "none").mkdir()
    datasets.DatasetDict({"train": datasets.Dataset.from_list(rows())}).save_to_disk(tmp_path / "saved")
    for folder, says in {"two": r"several splits \(test, train\)", "none": "neither Parquet nor Arrow", "saved": "several splits",
                         "gone": "does not exist"}.items():  # fmt: skip
        with pytest.raises(UserError, match=f"{folder}.*{says}"):
            list(stream(tmp_path / folder))
    assert len(list(stream(tmp_path / "saved" / "train"))) == 5


def test_groups_that_are_too_large_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_parquet(tmp_path / "t.parquet", rows(), group=5)
    monkeypatch.setattr(tables, "LARGEST_GROUP", 100)
    with pytest.raises(UserError, match=r"groups of rows of up to .*hide-llava convert .*t\.parquet TARGET\.parquet"):
        list(stream(file))
    assert convert(file, tmp_path / "u.parquet").records == 5  # what the message says
    texts = write_parquet(tmp_path / "texts.parquet", [{"id": i, **GOOD[1]} for i in range(50)], group=50)
    assert len(list(stream(texts))) == 50  # nothing of it is ever looked for again


def test_columns_that_are_not_read(tmp_path: Path) -> None:
    """A second picture column is refused by name, as `image_2` in JSON is; other columns stay."""
    odd = [{**row, "depth": {"bytes": png(9), "path": None}} for row in rows(2)]
    table = load_records(write_parquet(tmp_path / "odd.parquet", odd), tmp_path, tmp_path / "cache", on_bad="keep")
    assert "has 'depth', which is not read" in str(unusable(table[0]))
    more = [{**row, "source": "x", "score": 0.5} for row in rows(2)]
    assert len(load_records(write_parquet(tmp_path / "more.parquet", more), tmp_path, tmp_path / "cache")) == 2
