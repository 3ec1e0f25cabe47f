"""Reading annotation files, and every way in which they may be wrong."""

import json
import multiprocessing
import os

import pytest

from hide_llava.data.records import load_questions, load_records
from hide_llava.errors import UserError

GOOD = {"id": 1, "image": "a.png", "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}


@pytest.fixture
def load(write, tmp_path):
    def read(content):
        return load_records(write(content), tmp_path / "images", tmp_path / "cache")

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
    assert records[4] == {"id": "null", "image": None, "conversations": turns("no image", "ok")}
    assert records[5]["image"] is None
    assert len(records[6]["conversations"]) == 3  # the leading answer is skipped when encoding, as in the reference
    assert set(records.column_names) == {"id", "image", "conversations"}


def test_question_id_stands_in_for_id(load, turns):
    records = load([{"question_id": "q1", "conversations": turns("q", "a")}])
    assert json.loads(records[0]["id"]) == "q1"


def test_unicode_and_size(load, turns):
    many = [{"id": i, "image": f"漢/{i}.png", "conversations": turns(f"<image>\n{i}?", "é😀\n\n")} for i in range(3000)]
    records = load(many)
    assert len(records) == 3000 and records[2999]["image"] == "漢/2999.png"
    assert records[5]["conversations"] == many[5]["conversations"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("  \n", "is empty"),
        ("[]", "no records"),
        ('{"id": 1}', "not a JSON list"),
        (f'[{json.dumps(GOOD)},\n {{"id": ]', r"not valid JSON: .*line 2 column"),
        ("[" + json.dumps(GOOD), "not valid JSON"),
        ([3], "record 0 is a int"),
        ([GOOD, {"id": 5}], r"record 1 \(id 5\) has no conversations"),
        ([changed(conversations=[])], "has no conversations"),
        ([changed(conversations="hi")], "has no conversations"),
        ([changed(conversations=["hi"])], "turn 1 must be an object"),
        ([changed(conversations=[{"from": "human", "value": 3}])], "turn 1 must be an object"),
        ([changed(conversations=[{"from": "user", "value": "x"}])], "turn 1 has the role 'user'"),
        ([changed(conversations=[GOOD["conversations"][1]])], "no human turn"),
        ([changed(conversations=[GOOD["conversations"][0]] * 2)], "turn 2 is from 'human', like the one before"),
        ([changed(conversations=[GOOD["conversations"][1]] * 2)], "turn 2 is from 'gpt'"),
        ([changed(image=["a.png"])], "image must be a path string"),
        ([changed(image="")], "image must be a path string"),
        ([changed(image="/etc/passwd")], "leaves the image root"),
        ([changed(image="../secret.png")], "leaves the image root"),
        ([changed(image="a/../../secret.png")], "leaves the image root"),
    ],
)
def test_bad_files(load, tmp_path, content, message):
    with pytest.raises(UserError, match=message) as error:
        load(content)
    assert "train.json" in str(error.value)
    assert not list((tmp_path / "cache").glob("*"))  # nothing half-written stays


def test_dots_inside_the_root_are_fine(load):
    assert load([changed(image="a/../b.png")])[0]["image"] == "a/../b.png"


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
    alike = write([{"question_id": identity, "text": "?"} for identity in (1, "1")])
    assert [question["question_id"] for question in load_questions(alike)] == [1, "1"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "no questions"),
        ("[1]", "question 0 is a int"),
        ('[{"text": "?"}]', "question 0 has no question_id"),
        ('[{"question_id": 1, "text": "?"}, {"question_id": 4}]', r"question 1 \(question_id 4\) has no text"),
        ('[{"question_id": 1, "text": " "}]', "has no text"),
        ('[{"question_id": "a", "text": "?"}, {"question_id": "a", "text": "?"}]', "repeats the id of question 0"),
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
