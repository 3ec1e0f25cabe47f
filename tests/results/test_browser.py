"""The data of the sample browser: what is written, that it is harmless, and that it stays inside of the run folder."""

from __future__ import annotations

import json
import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from browsed import HOSTILE, browsed_run, hostile_run, store
from PIL import Image
from synthetic import sequential_run, write

from hide_llava.errors import UserError
from hide_llava.results import browser, thumbnails
from hide_llava.results.report import write_report
from hide_llava.results.routing import misrouted
from hide_llava.results.run_reader import read_run
from hide_llava.training.run import Run

TEMPLATES = Path(browser.__file__).parent / "templates"


def report(run: Path, most: int = 1000) -> Path:
    """The folder of samples that a report of the run writes."""
    return write_report(run, most).parent / "samples"


@pytest.fixture(autouse=True)
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take a second a report, and are tested elsewhere."""
    monkeypatch.setattr("hide_llava.results.report._draw", lambda run, folder: ([], "not drawn"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return browsed_run(tmp_path_factory.mktemp("made"))


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """A copy of the run and of its data, which tests may change."""
    shutil.copytree(made.parent, tmp_path, dirs_exist_ok=True)
    config = tmp_path / made.name / "config.yaml"
    config.write_text(config.read_text().replace(str(made.parent), str(tmp_path)))
    return config.parent


def called(file: Path) -> tuple[str, Any]:
    """Name and data of a data file, which is one call."""
    name, content = re.fullmatch(r'hideLlavaSamples\("(\w+)",(.*)\);\n', file.read_text(encoding="ascii")).groups()
    return name, json.loads(content)


def read(samples: Path) -> tuple[dict[str, Any], list[list[Any]]]:
    """Index and the details of all questions, as the page reads them."""
    name, index = called(samples / "index.js")
    assert name == "index"
    shards = [called(samples / f"{name}.js") for name in index["shards"]]
    assert [name for name, _ in shards] == index["shards"] and all(len(rows) <= index["size"] for _, rows in shards)
    details = [row for _, rows in shards for row in rows]
    counted = sum(task["count"] for task in index["tasks"])
    assert len(details) == counted == len(index["ids"]) == len(index["state"]) == len(index["flags"])
    return index, details


def test_every_question_with_all_its_answers(run: Path) -> None:
    samples = report(run)
    index, details = read(samples)
    assert [(task["id"], task["count"], task["learned"]) for task in index["tasks"]] == [
        ("imagenet-r", 20, 0), ("arxivqa", 20, 1), ("vizwiz", 20, 2)]  # fmt: skip
    assert index["stages"][:3] == ["ImageNet-R", "ArxivQA", "VizWiz"] and index["ids"][:3] == ["0", "1", "2"]
    assert index["experts"][:3] == ["ImageNet-R", "ArxivQA", "VizWiz"] and index["tasks"][1]["own"] == [1]
    assert index["state"][:6] == "nlnlnk" and index["lost"][:6] == [-1, 1, -1, 2, -1, -1]
    assert index["score"][:6] == [0, 0, 0, 0, 0, 1]
    # Bits: 1 misrouted, 2 wrong format. An empty answer and a sentence have a wrong form, "pear" for "gold 0" does not.
    assert index["flags"][:6] == "020201"
    prompt, expected, pictures, answers = details[1]
    assert prompt.startswith("What is shown in picture 1? <b>&") and expected == "gold 1"
    assert [name for _, name in pictures] == ["1.png", "1 & two.jpg"]
    assert [answer and answer[:3] for answer in answers] == [["gold 1", 1, None], ["", 0, 0], ["", 0, 0], None, None, None]
    assert answers[0][3][0] > 0.5 and sum(answers[0][3]) == pytest.approx(1, abs=0.01)
    assert [answer is None for answer in details[20][3]] == [True, False, False, True, True, True]
    assert (samples / "browser.js").read_bytes() == (TEMPLATES / "browser.js").read_bytes()


def test_questions_that_were_moved(run: Path, tmp_path: Path) -> None:
    """Answers and verdicts stay; references are gone, pictures that were copied before stay where they are."""
    samples = report(run)
    before = sorted(samples.glob("pictures/*/*.jpg"))
    shutil.move(tmp_path / "data", tmp_path / "elsewhere")
    index, details = read(report(run))
    assert [task["known"] for task in index["tasks"]] == [False, False, False] and index["state"][:6] == "nlnlnk"
    assert all(detail[1] == "" and detail[2] is None for detail in details)
    assert sorted(samples.glob("pictures/*/*.jpg")) == before and len(before) == 30
    shutil.move(tmp_path / "elsewhere", tmp_path / "data")
    score = run / "eval" / "02-arxivqa" / "imagenet-r" / "score.json"
    write(score, {**json.loads(score.read_text()), "questions_sha256": "of other questions"})
    assert [task["known"] for task in read(report(run))[0]["tasks"]] == [False, True, False]


def test_data_beside_the_runs_are_found_from_anywhere(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative place of the data is looked for from above the run, too."""
    config = run / "config.yaml"
    config.write_text(config.read_text().replace(str(tmp_path / "data"), "data"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    index, details = read(report(run))
    assert index["tasks"][0]["known"] and details[1][1] == "gold 1" and len(details[1][2][0][0]) == 32


def test_writing_again_changes_nothing(run: Path) -> None:
    samples = report(run)
    (samples / "mine.js").write_text("a file of the reader")
    before = {file: file.stat().st_mtime_ns for file in samples.rglob("*") if file.is_file()}
    report(run)
    assert {file: file.stat().st_mtime_ns for file in samples.rglob("*") if file.is_file()} == before
    cell = run / "eval" / "03-vizwiz" / "imagenet-r"
    rows = [json.loads(line) for line in (cell / "predictions.jsonl").read_text().splitlines()]
    store(cell, [{**row, "text": "other"} for row in rows], json.loads((cell / "score.json").read_text()))
    old = called(samples / "index.js")[1]["shards"]
    index, details = read(report(run))
    assert details[0][3][2][0] == "other" and index["shards"] != old
    assert not (samples / f"{old[0]}.js").exists() and (samples / "mine.js").exists()


def test_a_killed_report_leaves_the_old_page(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Old index and old shards, though new shards were written."""
    samples = report(run)
    before = read(samples)
    manifest = json.loads((run / "manifest.json").read_text())
    score = run / "eval" / "03-vizwiz" / "imagenet-r" / "score.json"
    write(score, {**json.loads(score.read_text()), "verdicts": {}})
    monkeypatch.setattr(browser, "_index", lambda *given: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        report(run)
    assert read(samples) == before and manifest["name"] in (samples.parent / "report.html").read_text()


def test_a_run_without_verdicts_routing_or_answers(tmp_path: Path) -> None:
    run = sequential_run(tmp_path, done=2)
    for file in run.glob("eval/*/imagenet-r/score.json"):
        write(file, {**json.loads(file.read_text()), "verdicts": None})
    for file in run.glob("eval/*/*/predictions.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        write(file, "".join(json.dumps({**row, "routing": {}}) + "\n" for row in rows))
    (run / "eval" / "02-arxivqa" / "arxivqa" / "predictions.jsonl").write_text('{"question_id": 3, "te')
    index, details = read(report(run))
    assert not index["routed"] and index["state"] == "u" * 20 + "nk" * 10 and index["score"][0] is None
    assert index["tasks"][0]["learned"] == 0 and details[0][3][1][1] is None and details[0][3][1][3] is None
    assert all(answer is None for answer in details[20][3])  # the file is damaged, verdicts are known
    for cell in run.glob("eval/*/*"):
        shutil.rmtree(cell)
    page = write_report(run).read_text()
    assert "<script" not in page and "default-src 'none'; img-src data:; style-src" in page


@pytest.mark.parametrize("weights, own, astray", [
    ({"a": 0.7, "b": 0.3}, {"a"}, False), ({"a": 0.3, "b": 0.7}, {"a"}, True), ({"b": 1.0}, {"a"}, None), ({}, {"a"}, None),
    ({"b": 0.5, "a": 0.5}, {"a"}, False), ({"a": 1.0}, set(), None), ({"a": 0.1, "b": 0.5, "c": 0.4}, {"a", "b"}, False),
])  # fmt: skip
def test_misrouted(weights: dict[str, float], own: set[str], astray: bool | None) -> None:
    assert misrouted(weights, own) is astray


# -------------------------------------------------------------------------------------------------------- pictures


def test_pictures_are_small_copies(run: Path, tmp_path: Path) -> None:
    """One for each picture, made again only when the picture is another; what cannot be shown says why."""
    samples = report(run)
    _, details = read(samples)
    copies = [samples / "pictures" / key[:2] / f"{key}.jpg" for detail in details[:20] for key, _ in detail[2]]
    assert len(set(copies)) == len(copies) == 30 and all(copy.stat().st_size < 4000 for copy in copies)
    assert Image.open(copies[0]).size == (160, 100)
    images = Run.at(run).tasks[0].question_images
    Image.new("RGB", (100, 300), "red").save(images / "a" / "0.png")
    os.utime(images / "a" / "0.png", (1, 1))
    before = (images / "a" / "2.png").stat().st_mtime_ns
    (images / "a" / "2.png").write_bytes(b"no picture")
    os.utime(images / "a" / "2.png", ns=(before, before + 1))  # replaced in the second in which it was made
    (images / "a" / "4.png").unlink()
    (images / "a" / "6.png").unlink()
    sixth = details[6][2][0][0]
    (samples / "pictures" / sixth[:2] / f"{sixth}.jpg").unlink()
    _, details = read(report(run))
    assert Image.open(copies[0]).size == (53, 160)
    assert details[2][2] == [["cannot be read", "2.png"]] and details[6][2] == [["not found", "6.png"]]
    assert re.fullmatch("[0-9a-f]{32}", details[4][2][0][0])  # its picture is gone, the copy is not
    os.utime(copies[0], (1, 1))  # a file system that keeps whole seconds
    os.utime(images / "a" / "0.png", ns=(1, 10**9 + 5))
    kept = copies[0].stat().st_ino
    report(run)
    assert copies[0].stat().st_ino == kept


def test_as_many_pictures_as_asked_for(run: Path) -> None:
    """Those of lost questions first; none leaves none behind."""
    samples = report(run)
    index, details = read(report(run, most=4))
    for task in index["tasks"][:2]:
        assert task["known"]
    whole = {index["ids"][k] for k in range(20) if all(len(key) == 32 for key, _ in details[k][2])}
    assert whole == {"1", "3"} and details[0][2] == [["left out", "0.png"]]
    assert len(list(samples.glob("pictures/*/*.jpg"))) == 30  # VizWiz's questions are unknown: nobody knows what is theirs
    for cell in run.glob("eval/*/vizwiz"):
        shutil.rmtree(cell)
    report(run, most=4)
    assert len(list(samples.glob("pictures/*/*.jpg"))) == 4
    report(run, most=0)
    assert not list(samples.glob("pictures/*"))


def test_a_question_without_a_picture(run: Path) -> None:
    task = Run.at(run).tasks[0]
    asked = json.loads(task.question_files[0].read_text())
    write(task.question_files[0], [{key: value for key, value in row.items() if key != "image"} for row in asked])
    assert read(report(run))[1][0][2] == []


# -------------------------------------------------------------------------------------------------------- harmless


class Resources(HTMLParser):
    """Everything that a page names: scripts, and what attributes load."""

    LOADING = ("src", "srcset", "href", "action", "data", "poster", "formaction", "background")

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.named, self.inline, self.handlers = [], [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.named += [value for name, value in attrs if name in self.LOADING]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data):
        self.inline += data if self.tags and self.tags[-1] == "script" and self.rawdata else ""


REMOTE = re.compile(r"https?:|//[\w.-]+\.\w|\burl\(|@import|\bfetch\(|XMLHttpRequest|WebSocket|EventSource|sendBeacon")
MARKUP = re.compile(r"\b(?:innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function|srcdoc|setTimeout\(['\"])")


def test_nothing_is_loaded_from_elsewhere(tmp_path: Path) -> None:
    """Neither by the page, nor by its code, and its policy would not allow it; data become text, never markup."""
    text = write_report(hostile_run(tmp_path)).read_text()
    page = Resources(text)
    assert {name for name in page.named if not name.startswith("data:image/png;base64,")} == {"samples/browser.js"}
    assert page.tags.count("script") == 1 and page.handlers == [] and "<script>window" not in text
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules == {"default-src": "'none'", "img-src": "data: 'self' file:", "script-src": "'self' file:",
                     "style-src": "'unsafe-inline'"}  # fmt: skip
    for name in ("browser.js", "browser.css", "browser.html", "style.css", "report.html"):
        source = (TEMPLATES / name).read_text()
        assert not REMOTE.search(re.sub(r"^\s*//.*$", "", source, flags=re.MULTILINE)), name
        assert not MARKUP.search(source), name


def test_the_rules_see_what_they_forbid() -> None:
    for line in ("a.src = 'https://x.org/a.js'", "background:url(x)", "fetch(x)", "src='//cdn.org/a'"):
        assert REMOTE.search(line), line
    assert MARKUP.search("a.innerHTML = b") and MARKUP.search("document.write(x)")


def test_hostile_content_is_data(tmp_path: Path) -> None:
    """Whatever ids, answers and names say, files have hashes as names, and scripts neither end early nor hold another's code."""
    run = hostile_run(tmp_path)
    before = {file for file in tmp_path.rglob("*")}
    samples = report(run)
    made = {file for file in tmp_path.rglob("*") if file.is_file()} - before
    assert all(file.is_relative_to(run / "results") for file in made)
    allowed = r"[0-9a-f]{20}\.js|(?:index|browser)\.js|pictures(?:/[0-9a-f]{2}(?:/[0-9a-f]{32}\.jpg)?)?"
    assert all(re.fullmatch(allowed, str(file.relative_to(samples))) for file in samples.rglob("*"))
    for file in samples.glob("*.js"):
        if file.name != "browser.js":
            assert "<" not in file.read_text(encoding="ascii") and file.read_text().count("\n") == 1
    index, details = read(samples)
    assert set(index["ids"][:6]) == {"../../../outside", "__proto__", "/" + "etc/passwd", HOSTILE, "constructor", ".."}
    assert details[0][0] == HOSTILE and details[0][3][0][0].startswith(HOSTILE) and index["state"][:6] == "llllll"
    assert HOSTILE in index["experts"] and len(details[0][2][0][0]) == 32


@pytest.mark.parametrize("name", ["../../../secret.png", "/" + "etc/secret.png", "a/../../../secret.png"])
def test_a_question_cannot_name_a_picture_outside(run: Path, tmp_path: Path, name: str) -> None:
    """Not one is copied: the whole file is refused, as it is when a run asks it."""
    Image.new("RGB", (8, 8), "blue").save(tmp_path / "secret.png")
    task = Run.at(run).tasks[0]
    asked = json.loads(task.question_files[0].read_text())
    write(task.question_files[0], [{**asked[0], "image": name}, *asked[1:]])
    index, details = read(report(run))
    assert not index["tasks"][0]["known"] and details[0][2] is None


@pytest.mark.parametrize("name", ["../../outside", "a/b", "/" + "tmp", "..", "", 3])
@pytest.mark.parametrize("key", ["tasks", "stages"])
def test_a_manifest_cannot_lead_out_of_the_run(tmp_path: Path, key: str, name: object) -> None:
    run = sequential_run(tmp_path, done=0)
    manifest = json.loads((run / "manifest.json").read_text())
    manifest[key][0]["id" if key == "tasks" else "name"] = name
    write(run / "manifest.json", manifest)
    with pytest.raises(UserError, match="is not the name of a folder of this run"):
        read_run(run)


def test_numbers_that_javascript_cannot_read(run: Path) -> None:
    cell = run / "eval" / "03-vizwiz" / "imagenet-r"
    score = json.loads((cell / "score.json").read_text())
    rows = [json.loads(line) for line in (cell / "predictions.jsonl").read_text().splitlines()]
    rows[2]["routing"] = {"imagenet-r": "much", "vizwiz": None, "arxivqa": float("nan")}
    store(cell, rows, {**score, "verdicts": {**score["verdicts"], "2": float("nan")}})
    index, details = read(report(run))
    assert index["score"][2] is None and details[2][3][2][1] is None and details[2][3][2][3] is None
    assert thumbnails.SIDE == 160
