"""Reading annotation files, and every way in which they may be wrong."""

import codecs
import json
import multiprocessing
import os
import re

import pytest

from hide_llava.data.dataset import check_place
from hide_llava.data.records import (
    check_question,
    load_questions,
    load_records,
    named_pictures,
    pictures,
    readable,
    stream,
    too_many,
    unusable,
)
from hide_llava.errors import UserError
from hide_llava.metrics.rows import tell_apart

GOOD = {"id": 1, "image": "a.png", "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}


@pytest.fixture
def load(write, tmp_path):
    def read(content, **options):
        return load_records(write(content), tmp_path / "images", tmp_path / "cache", **options)

    return read


def changed(**fields):
    return {**GOOD, **fields}


def test_rows(load, turns):
    records = load([
        changed(id=7), changed(id="7"), changed(id=None, question_id="q9"), changed(extra=[1, {"x": 2}]),
        {"conversations": turns("no image", "ok")}, changed(image=None),
        changed(conversations=[{"from": "gpt", "value": "hello"}, *turns("first", "second")]),
    ])  # fmt: skip
    assert [json.loads(record["id"]) for record in records][:3] == [7, "7", None]
    assert records[4] == {"id": "null", "image": [], "conversations": turns("no image", "ok")}
    assert records[5]["image"] == [] and records[0]["image"] == ["a.png"]
    assert len(records[6]["conversations"]) == 3  # the leading answer is skipped when encoding, as in the reference
    assert set(records.column_names) == {"id", "image", "conversations"}


def test_question_id_stands_in_for_id(load, turns):
    records = load([{"question_id": "q1", "conversations": turns("q", "a")}])
    assert json.loads(records[0]["id"]) == "q1"


def test_unicode_and_size(load, turns):
    many = [{"id": i, "image": f"漢/{i}.png", "conversations": turns(f"<image>\n{i}?", "é😀\n\n")} for i in range(3000)]
    records = load(many)
    assert len(records) == 3000 and records[2999]["image"] == ["漢/2999.png"]
    assert records[5]["conversations"] == many[5]["conversations"]


def test_half_a_character_is_told(load):
    """As a text has it that was cut within an emoji; JSON can say it, UTF-8 cannot."""
    record = changed(conversations=[{"from": "human", "value": "a"}, {"from": "gpt", "value": "b\ud83d"}])
    with pytest.raises(UserError, match=r"record 0 \(id 1\): turn 2 holds '\\ud83d', half of a character"):
        load(json.dumps(record))
    with pytest.raises(UserError, match=r"question 3 \(question_id 1\): its text holds '\\ud83d'"):
        check_question({"question_id": 1, "text": "b\ud83d"}, "question 3", None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("  \n", "is empty"),
        ("[]", "no records"),
        ('{"info": 1}', "not a JSON list"),
        ('{\n"info": 1}', "not a JSON list"),
        (f'[{json.dumps(GOOD)},\n {{"id": ]', r"not valid JSON: .*line 2 column"),
        ("[" + json.dumps(GOOD), "not valid JSON"),
        ([3], "record 0: is a int"),
        ([GOOD, {"id": 5}], r"record 1 \(id 5\): has no conversations"),
        ([changed(conversations=[])], "has no conversations"),
        ([changed(conversations="hi")], "has no conversations"),
        ([changed(conversations=["hi"])], "turn 1 must be an object"),
        ([changed(conversations=[{"from": "human", "value": 3}])], "turn 1 must be an object"),
        ([changed(conversations=[{"from": "user", "value": "x"}])], "turn 1 has the role 'user'"),
        ([changed(conversations=[GOOD["conversations"][1]])], "no human turn"),
        ([changed(conversations=[GOOD["conversations"][0]] * 2)], "turn 2 is from 'human', like the one before"),
        ([changed(conversations=[GOOD["conversations"][1]] * 2)], "turn 2 is from 'gpt'"),
        ([changed(image=7)], "image must be a path string"),
        ([changed(image="/etc/passwd")], "leaves the image root"),
        ([changed(image="../secret.png")], "leaves the image root"),
        ([changed(image="a/../../secret.png")], "leaves the image root"),
    ],
)
def test_bad_files(load, tmp_path, content, message):
    for several in (True, False):
        with pytest.raises(UserError, match=message) as error:
            load(content, several=several)
    assert "train.json" in str(error.value)
    whole = isinstance(content, list) and content  # read to its end: the table knows which records are bad
    assert len(list((tmp_path / "cache").glob("*"))) == bool(whole)  # nothing half-written stays


def test_several_pictures_are_read_or_refused_as_the_model_does(load, tmp_path):
    """One table for both: it is told by column, and keeps such a record whole."""
    rows = [changed(id=0), changed(id=1, image=["a.png", "b.png"]), changed(id=2, image=None),
            changed(id=3, images=["a.png"] * 3, image=None), {"id": 4}]  # fmt: skip
    with pytest.raises(UserError, match=r"1 of 5 records.*\n.*record 4 \(id 4\): has no conversations"):
        load(rows)
    with pytest.raises(UserError, match="2 of 4 records cannot be trained on") as error:
        load(rows[:4], several=False)
    assert (
        "record 1 (id 1): names 2 pictures (['a.png', 'b.png']); this model takes one a record, others take several"
        in str(error.value)
    )
    assert "record 3 (id 3): names 3 pictures" in str(error.value)
    assert load(rows[:4])["image"][:] == [["a.png"], ["a.png", "b.png"], [], ["a.png"] * 3]
    kept = load(rows, on_bad="keep", several=False)
    assert kept["image"][:] == [["a.png"], ["a.png", "b.png"], [], ["a.png"] * 3, []]
    for several, good in ((True, [0, 1, 2, 3]), (False, [0, 2])):
        assert [i for i, row in enumerate(kept) if unusable(row, several) is None] == good
        assert [json.loads(row["id"]) for row in readable(kept, several)] == good
    assert unusable(kept[1], False).kind == "several pictures" and unusable(kept[4], False).kind == "no conversations"
    assert len(list((tmp_path / "cache").iterdir())) == 2  # of five records and of four


def test_pictures_of_records_and_questions():
    assert pictures({"image": ["a.png", "b.png"]}) == ["a.png", "b.png"] and pictures({"image": []}) == []
    assert pictures({"image": "a.png"}) == ["a.png"] and pictures({}) == pictures({"image": None}) == []
    assert too_many({"image": "a.png"}) is None and too_many({"image": ["a.png"]}) is None and too_many({}) is None
    assert str(too_many({"image": ["a.png"] * 4})).startswith("names 4 pictures (['a.png', 'a.png', 'a.png'])")


def test_dots_inside_the_root_are_fine(load):
    assert load([changed(image="a/../b.png")])[0]["image"] == ["a/../b.png"]


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match=r"gone\.json does not exist"):
        load_records(tmp_path / "gone.json", tmp_path)


def test_cache_follows_the_content(load, tmp_path, monkeypatch):
    load([GOOD])
    (first,) = (tmp_path / "cache").iterdir()
    stamp = first.stat().st_mtime_ns
    load([GOOD])
    assert first.stat().st_mtime_ns == stamp  # not built again
    assert load([changed(id=2)])[0]["id"] == "2"
    assert len(list((tmp_path / "cache").iterdir())) == 2

    monkeypatch.setenv("HIDE_CACHE", str(tmp_path / "elsewhere"))
    assert len(load_records(tmp_path / "train.json", tmp_path)) == 1
    assert len(list((tmp_path / "elsewhere").iterdir())) == 1


def _build(path, cache):
    os._exit(0 if len(load_records(path, path.parent, cache)) == 500 else 1)


def test_two_processes_build_the_same_table(write, tmp_path):
    path = write([changed(id=i) for i in range(500)])
    context = multiprocessing.get_context("fork")
    builders = [context.Process(target=_build, args=(path, tmp_path / "cache")) for _ in range(2)]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join(60)
    assert [builder.exitcode for builder in builders] == [0, 0]
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_questions(write, golden):
    questions = load_questions(golden / "data/test.json")
    assert questions == json.loads((golden / "data/test.json").read_text())
    lines = "\n".join(json.dumps(question) for question in questions) + "\n\n"
    assert load_questions(write(lines, "test.jsonl")) == questions


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "no questions"),
        ("[1]", "question 0 is a int"),
        ('[{"text": "?"}]', "question 0 has no question_id"),
        ('[{"question_id": 1, "text": "?"}, {"question_id": 4}]', r"question 1 \(question_id 4\) has no text"),
        ('[{"question_id": 1, "text": " "}]', "has no text"),
        ('[{"question_id": "a", "text": "?"}, {"question_id": "a", "text": "?"}]', "repeats the id and the text of record 0"),
        ('[{"question_id": 1, "text": "?"}, {"question_id": "1", "text": "!"}]', "in another form"),
        ('[{"question_id": true, "text": "?"}]', "has no question_id"),
        ('[{"question_id": 1, "text": "?", "img": "a.png"}]', "has 'img', which is not read"),
        ('[{"question_id": 1, "text": "?", "image": "b.png", "images": ["a.png", "b.png"]}]', "and others as 'images'"),
        ('[{"question_id": 1, "text": "?", "image": "../x"}]', "leaves the image root"),
        ('[{"question_id": 1, "text": "?", "image": 4}]', "image must be a path string"),
    ],
)
def test_bad_questions(write, content, message):
    with pytest.raises(UserError, match=message):
        load_questions(write(content))


def test_bad_question_line(write):
    with pytest.raises(UserError, match="line 2 is not valid JSON"):
        load_questions(write('{"question_id": 1, "text": "?"}\n{', "test.jsonl"))


# ------------------------------------------------------------------------------------------------------- what is read

LINES = [{"question_id": 1, "text": "?", "answer": "é\u2028x"}, {"question_id": 2, "text": "!"}]
AS_LIST = json.dumps(LINES, ensure_ascii=False)
AS_LINES = "\n".join(json.dumps(row, ensure_ascii=False) for row in LINES)


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.txt"])
@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8])
@pytest.mark.parametrize("text", [AS_LIST, AS_LINES, AS_LINES.replace("\n", "\r\n\n"), "\n  " + AS_LIST])
def test_the_content_says_whether_it_is_a_list_or_lines(tmp_path, name, mark, text):
    file = tmp_path / name
    file.write_bytes(mark + text.encode())
    assert list(stream(file)) == LINES
    assert load_questions(file) == LINES


def test_training_files_may_be_lines(load, turns):
    rows = [changed(id=i) for i in range(3)]
    lines = load("".join(json.dumps(row) + "\n" for row in rows))
    assert [row["id"] for row in lines] == ["0", "1", "2"] and list(lines[0]) == list(load(rows)[0])
    assert len(load(json.dumps(GOOD))) == 1  # a file of one line


@pytest.mark.parametrize("lines", [False, True])
@pytest.mark.parametrize(
    ("content", "byte"),
    [
        (AS_LIST.encode("utf-16"), 0),
        (AS_LIST.encode("utf-16-le"), 0),
        (AS_LIST.encode("utf-32"), 0),
        (AS_LIST.replace("\u2028", "").encode("latin-1"), AS_LIST.index("é")),
        (b'[{"question_id": 1, "text": "' + b"a" * (1 << 20) + b'\xe9"}]', 29 + (1 << 20)),
    ],
)
def test_another_encoding_is_named_with_file_and_byte(tmp_path, content, byte, lines):
    content = content.strip(b"[]") if lines and byte != 0 else content
    (tmp_path / "odd.json").write_bytes(content)
    with pytest.raises(UserError, match=rf"odd\.json is not UTF-8 text \(byte {byte - (lines and byte > 0)}"):
        list(stream(tmp_path / "odd.json"))


PICTURES = [  # fields of a record or question → its pictures, or what it is refused with
    ({}, []),
    ({"image": None}, []),
    ({"image": ""}, []),
    ({"images": []}, []),
    ({"image": "a.png"}, ["a.png"]),
    ({"image": ["a.png"]}, ["a.png"]),
    ({"images": ["a.png"]}, ["a.png"]),
    ({"images": "a.png"}, ["a.png"]),
    ({"image": "a.png", "images": ["a.png"]}, ["a.png"]),
    ({"image": "a.png", "image_id": "17", "image_size": [3, 4], "num_images": 1}, ["a.png"]),
    ({"image": "coco/a.png", "image_url": "http://host/x/a.png"}, ["coco/a.png"]),
    ({"image": "a.png", "videos": []}, ["a.png"]),
    ({"image": ["a.png", "b.png"]}, ["a.png", "b.png"]),
    ({"images": ["a.png", "a.png"]}, ["a.png", "a.png"]),
    ({"image": ["b.png", "a.png"], "images": ["b.png", "a.png"]}, ["b.png", "a.png"]),
    ({"image": "a.png", "images": ["b.png"]}, r"names pictures as 'image' \(\['a.png'\]\) and others as 'images' \(\['b.png'\]"),
    ({"image": ["a.png", "b.png"], "images": ["b.png", "a.png"]}, "keep one of the keys"),
    ({"image": {"bytes": "x"}}, "must be a path string"),
    ({"image": ["  "]}, "must be a path string"),
    ({"image": ["a.png", ""]}, "must be a path string"),
    ({"image": ["a.png", ["b.png"]]}, "must be a path string"),
    ({"image": ["a.png", "../b.png"]}, "'../b.png' leaves the image root"),
    ({"image": "a.png", "videos": ["b.mp4"]}, "has 'videos'"),
    ({"image": "a.png", "image_2": "b.png"}, "has 'image_2'"),
    ({"image": ["a.png", "b.png"], "image_url": "http://host/x/a.png"}, "has 'image_url'"),
    *(({key: "a.png"}, f"has '{key}', which is not read; name its pictures as 'image'")
      for key in ("image_path", "image_file", "img", "Image", "Images", "img_path", "image_name",
                  "photo", "picture", "video", "audio", "imagePath", "image_paths", "img_url", "image_1")),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "want"), PICTURES)
def test_a_picture_is_read_or_refused_by_name(write, load, turns, fields, want):
    record = {"id": 1, "conversations": turns("q", "a"), **fields}
    question = {"question_id": 1, "text": "q", **fields}
    if isinstance(want, str):
        with pytest.raises(UserError, match=want):
            load([record])
        with pytest.raises(UserError, match=want):
            load_questions(write([question], "q.json"))
        return
    assert named_pictures(record) == want
    assert load([record])[0]["image"] == want
    (row,) = load_questions(write([question], "q.json"))
    assert row.get("image") == (want if len(want) > 1 else want[0] if want else None) and "images" not in row
    assert pictures(row) == want
    if len(want) < 2:
        assert load([record], several=False)[0]["image"] == want
        check_place(row, several=False)
        return
    check_place(row)
    refused = rf"names {len(want)} pictures \({re.escape(repr(want))}\); this model takes one"
    with pytest.raises(UserError, match=rf"record 0 \(id 1\): {refused}"):
        load([record], several=False)
    with pytest.raises(UserError, match=rf"^Question 1 {refused}"):
        check_place(row, several=False)


@pytest.mark.parametrize(
    ("text", "images", "fault"),
    [
        ("What?", [], None),
        ("What?", ["a"], None),
        ("<image> What?", ["a"], None),
        ("What?", ["a", "b"], None),
        ("<image> or <image>?", ["a", "b"], None),
        ("<image>\nWhat?", [], "contains <image> but names no image file"),
        ("<image>\nWhat?", ["a", "b"], "names 2 pictures and contains <image> 1 times; write it as often"),
        ("<image><image><image>", ["a", "b"], "names 2 pictures and contains <image> 3 times"),
    ],
)
def test_a_question_has_as_many_places_as_pictures(text, images, fault):
    question = {"question_id": "q", "text": text, "image": images}
    if fault is None:
        check_place(question)
    else:
        with pytest.raises(UserError, match=f"^Question 'q' {fault}"):
            check_place(question)


# ----------------------------------------------------------------------------------------------------- ids that repeat


def test_one_id_with_several_texts_is_told_apart(write):
    rows = [{"question_id": "a", "text": text} for text in ("x", "y", "z")] + [{"question_id": 7, "text": "x"}]
    told = [q["question_id"] for q in load_questions(write(rows))]
    assert told == ["a", "a#2", "a#3", 7]
    references = tell_apart([{**row, "question_id": str(row["question_id"])} for row in rows])
    assert [str(one) for one in told] == [row["question_id"] for row in references]
    with pytest.raises(UserError, match="would become 'a#2', which another record has"):
        load_questions(write([*rows, {"question_id": "a#2", "text": "w"}]))
