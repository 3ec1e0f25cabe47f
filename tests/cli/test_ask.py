"""`hide-llava ask` on the finished run: a person's page, a program's object, refusals before anything is loaded."""

import importlib
import io
import json
import re
import runpy
import shlex
import shutil
from pathlib import Path

import pytest
from PIL import Image

from hide_llava.methods.base import REGISTRY, Method
from hide_llava.training import session
from tests.cli.call import call, refused, understood

PAGE = Path(__file__).parent.parent.parent / "docs" / "ASK.md"


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that is loaded all the same fails the test."""
    monkeypatch.setattr(session.Session, "__init__", lambda *_: pytest.fail("a model is loaded"))


@pytest.fixture
def asked(finished: Path, world: Path) -> tuple[Path, str, dict]:
    """A picture of the first task, its question, and the stored answer after the last stage."""
    question = json.loads((world / "data" / "task0" / "test.json").read_text())[0]
    stored = (finished / "eval" / "03-task2" / "task0" / "predictions.jsonl").read_text().splitlines()[0]
    return world / "data" / question["image"], question["text"], json.loads(stored)


def test_the_answer_its_routing_and_each_expert(finished: Path, asked: tuple[Path, str, dict]) -> None:
    picture, text, row = asked
    called = call("ask", finished, "--image", picture, text)
    assert called.code == 0, called.err
    answer, routing, experts = called.out.split("\n\n")
    assert answer == "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in row["text"])
    heading, *lines = routing.splitlines()
    assert heading == "routing after stage 3, Task 2" and len(lines) == 3
    for line, (name, weight), title in zip(lines, row["routing"].items(), ("Task 0", "Task 1", "Task 2")):
        assert line == f"  {name}  {title}  {'█' * round(20 * weight):░<20}  {weight:.2f}"
    heading, *lines = experts.splitlines()
    assert heading == "each expert alone" and len(lines) >= 3 and lines[0].startswith("  expert-01  Task 0  ")


def test_as_json_of_an_earlier_stage_from_standard_input(
    finished: Path, asked: tuple[Path, str, dict], monkeypatch: pytest.MonkeyPatch
) -> None:
    picture, text, row = asked
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{text}\n"))
    called = call("ask", finished, "--image", picture, "--stage", "1", "--task", "task0", "--max-new-tokens", "3", "--json")
    assert called.code == 0, called.err
    told = json.loads(called.out)
    assert list(told) == ["stage", "task", "text", "token_ids", "prompt", "routing", "experts"]
    assert told["stage"] == 1 and told["task"] == "task0" and told["prompt"] == text and len(told["token_ids"]) == 3
    assert told["routing"] == {"expert-01": 1.0} and told["experts"]["expert-01"]["title"] == "Task 0"
    told = json.loads(call("ask", finished, "--image", picture, text, "--json", "--no-experts").out)
    assert told["token_ids"] == row["token_ids"] and told["text"] == row["text"] and "experts" not in told


@pytest.mark.usefixtures("unloaded")
def test_what_cannot_be_asked(finished: Path, asked: tuple[Path, str, dict], tmp_path: Path) -> None:
    picture, text, _ = asked
    (tmp_path / "no.png").write_bytes(b"not a picture")
    for words, says in (
        ((tmp_path, text), ("not a run folder",)),
        ((finished, text, "--image", tmp_path / "none.png"), ("none.png does not exist",)),
        ((finished, text, "--image", tmp_path / "no.png"), ("no.png", "cannot be decoded")),
        ((finished, text, "--image", picture, "--image", picture), ("names 2 pictures", "takes one")),
        ((finished, text, "--stage", "4"), ("--stage 4", "stages 1 to 3")),
        ((finished, text, "--task", "tsk0"), ("--task tsk0", "Did you mean 'task0'")),
        ((finished, " "), ("the question is empty",)),
        ((finished, "What is <image>?"), ("names no image",)),
    ):
        refused("ask", *words, says=says)


@pytest.mark.usefixtures("unloaded")
def test_a_run_that_is_not_finished(run: Path) -> None:
    """The stages that are there can be asked."""
    (run / "stages" / "03-task2" / "method.json").unlink()
    refused("ask", run, "What?", "--stage", "3", says=("--stage 3", "not trained yet", "trained: 1, 2"))
    shutil.rmtree(run / "stages")
    refused("ask", run, "What?", says=("no stage of this run is trained yet",))


# --------------------------------------------------------------------------------------------------------------- docs/ASK.md


@pytest.fixture
def here(finished: Path, asked: tuple[Path, str, dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The page, in a folder that has what its commands name."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "A").symlink_to(finished)
    Image.open(asked[0]).convert("RGB").save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    return PAGE.read_text(encoding="utf-8")


def test_the_pages_commands_run(here: str) -> None:
    lines = [line for line in here.splitlines() if line.startswith("hide-llava ask ")]
    assert len(lines) >= 3
    for line in lines:
        words = shlex.split(line)[1:]
        called = call(*(word if word != "iconqa" else "task1" for word in words))
        assert called.code == 0, called.err
        assert ("each expert alone" in called.out) == ("--no-experts" not in words and "--json" not in words)
    (line,) = [line for line in here.splitlines() if line.startswith("hide-llava chat ")]
    assert understood(*shlex.split(line)[1:]).options["host"] == "127.0.0.1"


def test_the_pages_python_runs(here: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```$", here, re.DOTALL | re.MULTILINE)
    assert len(code.strip().splitlines()) <= 10
    (tmp_path / "page.py").write_text(code)
    made = runpy.run_path(str(tmp_path / "page.py"))
    assert made["model"].stage == 2 and made["answer"].routing == {"expert-01": 1.0}
    assert "expert-01 Task 0" in capsys.readouterr().out


def test_the_page_names_the_methods_that_have_experts(here: str) -> None:
    (listed,) = re.findall(r"Methods with an adapter for each task have experts: (.*?)\. The others", here, re.DOTALL)
    importlib.import_module("hide_llava.methods.all")
    own = {cls.name for cls in REGISTRY.values() if cls.experts is not Method.experts and "hide_llava.methods." in cls.__module__}
    assert set(re.findall(r"`(\w+)`", listed)) == own
