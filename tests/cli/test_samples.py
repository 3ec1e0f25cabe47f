"""docs/BROWSER.md: its commands and its Python as they are printed, on a finished run; its table of choices against the page."""

import re
import runpy
import shlex
import shutil
from pathlib import Path

import pytest

from hide_llava.results import html
from tests.cli.call import call

PAGE = (Path(__file__).parents[2] / "docs" / "BROWSER.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


@pytest.fixture
def here(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """runs/A, in the folder where the commands are typed."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(finished, tmp_path / "runs" / "A"))


def test_the_pages_commands(here: Path) -> None:
    samples = here / "results" / "samples"
    shutil.rmtree(samples)
    pictures = []
    for line in blocks("sh")[0].splitlines():
        words = shlex.split(line, comments=True)
        called = call(*words[1:])
        assert words[0] == "hide-llava" and called.code == 0, called.err
        assert "samples/browser.js" in (here / "results" / "report.html").read_text() and (samples / "index.js").is_file()
        pictures.append(len(list(samples.glob("pictures/*/*.jpg"))))
    assert pictures[0] > 0 and pictures[1] == 0


def test_the_pages_python(here: Path, capsys: pytest.CaptureFixture) -> None:
    (code,) = blocks("python")
    (here.parent / "lost.py").write_text(code)
    runpy.run_path(str(here.parent / "lost.py"))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["task0", "task1", "task2"]
    assert all(re.search(r": \d+ of [1-9]\d* lost, \d+ kept$", line) for line in lines)


def test_every_choice_is_described() -> None:
    """Each field of the form, and each key of the note below it."""
    page = html.render("browser.html", browser={"questions": 1})
    fields = re.findall(r"<label[^>]*>(?:<input[^>]*>)?\s*([A-Za-z ]+?)\s*<?(?:select|input|/label)", page)
    named = re.findall(r"^\| ([A-Za-z ]+?)(?::.*?)? \|", PAGE, re.MULTILINE)
    assert set(fields) - {"Page"} == {"Task", "Outcome", "Sort by", "Search", "misrouted", "wrong format"} <= set(named)
    keys = set(re.findall(r"<kbd>(.*?)</kbd>", page))
    assert keys == {"j", "k", "n", "p", "/", "Enter"} and all(f"`{key}`" in PAGE for key in keys)


def test_a_number_of_thumbnails_that_is_none(here: Path) -> None:
    called = call("report", here, "--thumbnails", "-1")
    assert called.code == 2 and "-1" in called.err and called.err.startswith("error: ")
