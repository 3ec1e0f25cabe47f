"""The examples of docs/DATA.md are what the page says of them: one record in several shapes."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hide_llava.data.convert import convert
from hide_llava.data.embedded import read
from hide_llava.data.records import load_questions, load_records
from tests.cli.call import call

PAGE = (Path(__file__).parent.parent.parent / "docs" / "DATA.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "kites").mkdir()
    Image.fromarray(np.full((4, 6, 3), 90, np.uint8)).save(tmp_path / "kites" / "1.jpg")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_shape_of_the_page_is_one_record(home: Path) -> None:
    first, *others = [json.loads(block) for block in blocks("json")]
    assert len(others) == 3
    (home / "0.json").write_text(json.dumps([first]))
    want = load_records(home / "0.json", home, home / "cache")[0]
    for other in others:
        (home / "1.json").write_text(json.dumps([other]))
        assert load_records(home / "1.json", home, home / "cache")[0] == want
    (code,) = blocks("python")
    done = subprocess.run([sys.executable, "-c", code], cwd=home, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (row,) = load_records(home / "train.parquet", home, home / "cache")
    assert row == {**want, "image": ["train.parquet/@0.0/1.jpg"]}
    assert read(home / row["image"][0]) == (home / "kites" / "1.jpg").read_bytes()


def test_the_commands_of_the_page_run(home: Path) -> None:
    """As they are printed, on the page's own records."""
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    assert [line.split()[:2] for line in lines] == [["hide-llava", "convert"]] * 3
    (home / "pictures").mkdir()
    (home / "kites").rename(home / "pictures" / "kites")
    (home / "messages.jsonl").write_text(json.dumps(json.loads(blocks("json")[1])) + "\n")
    convert(home / "messages.jsonl", home / "test.parquet", home / "pictures")
    for line in lines:
        called = call(*shlex.split(line)[1:])
        assert called.code == 0 and "1 records; 1 pictures" in called.out, called.err
    (record,) = json.loads((home / "copy" / "train.json").read_text())
    assert record["conversations"] == json.loads(blocks("json")[0])["conversations"]
    assert (home / "copy" / record["image"][0]).is_file()
    (question,) = load_questions(home / "test.jsonl")
    assert question["text"].endswith("How many kites are red?") and question["answer"] == "Two."
