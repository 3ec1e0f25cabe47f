"""`convert`: there and back again, and what it does not do."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from pyarrow import parquet

from hide_llava.data import convert as module
from hide_llava.data import embedded
from hide_llava.data.convert import convert
from hide_llava.data.records import load_questions, load_records
from hide_llava.errors import UserError
from tests.data.test_formats import at, inline, messages, parts, png, rows, write_parquet, write_saved

TURNS = [{"from": "human", "value": "<image>\nWhat? é\u2028"}, {"from": "gpt", "value": "A kite."}]
RECORDS = [
    {"id": 7, "image": "a/one.png", "conversations": TURNS, "extra": {"x": [1, None, 2.5]}, "none": None},
    {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "x", "note": 1}], "id": "7", "images": []},
    {"id": None, "images": ["two.png", "a/one.png"], "conversations": [{"from": "gpt", "value": "hi"}, *TURNS], "image": None},
    {"question_id": "q", "text": "not asked", "conversations": TURNS, "image": ["two.png"]},
]
QUESTIONS = [
    {"question_id": 3, "text": "<image>\nWhat?", "image": "a/one.png", "answer": "A kite.", "size": [3, 4]},
    {"question_id": "3b", "text": "Who?", "answer": ["x", "y"]},
]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder with two pictures."""
    for k, name in enumerate(("a/one.png", "two.png")):
        (tmp_path / "pictures" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pictures" / name).write_bytes(png(k))
    return tmp_path


def write(file: Path, records: list) -> Path:
    lines = file.suffix == ".jsonl"
    file.write_text("\n".join(map(json.dumps, records)) if lines else json.dumps(records))
    return file


def contents(file: Path) -> list:
    text = file.read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line] if file.suffix == ".jsonl" else json.loads(text)


@pytest.mark.parametrize("records", [RECORDS, QUESTIONS], ids=["records", "questions"])
@pytest.mark.parametrize(("first", "last"), [("a.json", "b.jsonl"), ("a.jsonl", "b.json")])
def test_there_and_back_again(home: Path, records: list[dict], first: str, last: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every record as it was, and every picture with the same bytes under the same name; in one group of rows or in several."""
    monkeypatch.setattr(module, "GROUP_ROWS", 2 if last == "b.json" else 1024)
    source = write(home / first, records)
    made = convert(source, home / "t.parquet", home / "pictures")
    assert made == (len(records), 4 if records is RECORDS else 1)
    assert convert(home / "t.parquet", home / "u.parquet").records == len(records)
    back = convert(home / "u.parquet", home / "back" / last)
    assert contents(home / "back" / last) == records and back.pictures == (2 if records is RECORDS else 1)
    for file in (home / "back").rglob("*.png"):
        assert file.read_bytes() == (home / "pictures" / file.relative_to(home / "back")).read_bytes()
    assert parquet.ParquetFile(home / "t.parquet").num_row_groups == -(-len(records) // module.GROUP_ROWS)
    assert not [p for p in home.rglob(".*")]  # nothing temporary stays
    convert(home / "u.parquet", home / "again.jsonl", home / "pictures")  # where they are already
    assert contents(home / "again.jsonl") == records


def test_what_is_written_is_read_as_the_source(home: Path) -> None:
    source = write(home / "a.json", RECORDS)
    convert(source, home / "t.parquet", home / "pictures")
    one = load_records(source, home / "pictures", home / "cache")
    two = load_records(home / "t.parquet", home / "pictures", home / "cache")
    assert one["conversations"][:] == two["conversations"][:] and one["id"][:] == two["id"][:]
    for ours, theirs in zip(one["image"][:], two["image"][:]):
        files = [(home / "pictures" / name).read_bytes() for name in ours]
        assert [embedded.read(home / "pictures" / name) for name in theirs] == files
        assert [Path(name).name for name in theirs] == [Path(name).name for name in ours]
    convert(write(home / "q.json", QUESTIONS), home / "q.parquet", home / "pictures")
    asked, again = load_questions(home / "q.json"), load_questions(home / "q.parquet", home)
    assert again[0].pop("image") == "q.parquet/@0.0/one.png" and asked[0].pop("image")
    assert again == asked


def test_hugging_face_reads_the_parquet(home: Path) -> None:
    """With its pictures as pictures."""
    convert(write(home / "a.json", RECORDS), home / "t.parquet", home / "pictures")
    table = datasets.Dataset.from_parquet(str(home / "t.parquet"), cache_dir=str(home / "cache"))
    assert isinstance(table.features["images"].feature, datasets.Image)
    assert [[image.size for image in row] for row in table["images"]] == [[(5, 4)], [], [(6, 4), (5, 4)], [(6, 4)]]
    assert table["id"][:] == ["7", "7", None, "q"] and table["conversations"][0][1] == TURNS[1]


@pytest.mark.parametrize("target", ["t.json", "t.jsonl", "t.parquet"])
def test_other_shapes_become_llavas(home: Path, target: str) -> None:
    """Each source is read as what is written of it; pictures that were in it have a file or a row now."""
    held = [{"id": i, "messages": messages(parts(at(inline(i % 2)), "Q?"), "x")} for i in range(3)]
    sources = {
        "lines": write(home / "m.jsonl", held), "list": write(home / "m.json", held),
        "saved": write_saved(home / "saved", rows()), "table": write_parquet(home / "x" / "t.parquet", rows()),
        "same": write_parquet(home / "y" / "t.parquet", [row | {"image": row["image"] | {"path": "i.png"}} for row in rows()]),
    }  # fmt: skip
    for name, source in sources.items():
        file = home / name / target
        file.parent.mkdir(exist_ok=True)
        made = convert(source, file)
        before = load_records(source if name != "list" else sources["lines"], home / "a", home / "cache")
        after = load_records(file, file.parent, home / "cache")
        assert made.records == len(before) and after["conversations"][:] == before["conversations"][:]
        assert after["id"][:] == before["id"][:]
        for ours, theirs in zip(before["image"][:], after["image"][:]):
            assert [embedded.read(home / "a" / n) for n in ours] == [embedded.read(file.parent / n) for n in theirs]
        if target == "t.json" and name in ("lines", "list"):
            assert made.pictures == 2  # equal ones are one file


def test_questions_of_conversations(home: Path) -> None:
    file = write(home / "m.json", [{"id": "a", "messages": messages(parts(at("two.png"), "What?"), "A kite.")}])
    convert(file, home / "q.jsonl", questions=True)
    (question,) = contents(home / "q.jsonl")
    assert question == {"id": "a", "question_id": "a", "image": ["two.png"], "text": "<image>\nWhat?", "answer": "A kite."}
    convert(file, home / "r.jsonl")
    assert contents(home / "r.jsonl")[0]["conversations"][1]["value"] == "A kite."


def bad(**fields: Any) -> list[dict]:
    return [RECORDS[0], {"id": 1, "conversations": TURNS, "image": "two.png", **fields}]


@pytest.mark.parametrize(
    ("records", "target", "says"),
    [
        (RECORDS, "t.csv", r"t\.csv: expected a name that ends in \.json, \.jsonl, \.parquet"),
        (RECORDS, "there.json", "is there already"),
        (bad(image="gone.png"), "t.parquet", r"record 1: Image .*gone\.png does not exist; name the folder"),
        (bad(image_2="x"), "t.parquet", "record 1: has 'image_2'"),
        (bad(image_2="x"), "t.json", "record 1: has 'image_2'"),
        (bad(conversations=[]), "t.jsonl", "record 1: has no conversations"),
        ([{"text": "Q"}], "t.jsonl", "has no question_id"),
        ([], "t.parquet", "no records"),
        ([{"id": 1, "image": "data:image/png;base64,AAAA", "conversations": TURNS}], "t.json", "record 0: holds a picture that"),
    ],
)
def test_what_is_not_converted(home: Path, records: list, target: str, says: str) -> None:
    """Nothing is left out, and nothing half-written stays."""
    (home / "there.json").write_text("[]")
    source = write(home / "a.json", records)
    with pytest.raises(UserError, match=says):
        convert(source, home / target, home / "pictures")
    assert target == "there.json" or not (home / target).exists()
    assert not [p for p in home.rglob("*.tmp")]


def test_a_picture_that_is_there_is_not_written_over(home: Path) -> None:
    convert(write(home / "a.json", RECORDS), home / "t.parquet", home / "pictures")
    (home / "pictures" / "two.png").write_bytes(png(5))
    with pytest.raises(UserError, match=r"record 2: .*two\.png is there with another content; choose another folder"):
        convert(home / "t.parquet", home / "b.json", home / "pictures")
    assert (home / "pictures" / "two.png").read_bytes() == png(5)
