"""Reading a run folder, its tables, figures and pages, on a synthetic run."""

from __future__ import annotations

import base64
import csv
import importlib.util
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from synthetic import TASKS, joint_run, sequential_run, write, write_cell

from hide_llava.config import compose
from hide_llava.errors import UserError
from hide_llava.results import figures
from hide_llava.results.asked import shown_answer
from hide_llava.results.comparison import write_comparison
from hide_llava.results.report import write_report
from hide_llava.results.run_reader import read_run
from hide_llava.results.sections import read_sections, write_section
from hide_llava.results.tables import format_matrix, latex, markdown, markdown_table
from hide_llava.storage import sha256
from hide_llava.training.run import Run as Resolved

matplotlib = pytest.importorskip("matplotlib")


class Page(HTMLParser):
    """Checks nesting and collects links, tags and text."""

    VOID = {"meta", "img", "source", "br", "input"}

    def __init__(self, text: str):
        super().__init__()
        self.stack, self.sources, self.tags, self.text = [], [], [], ""
        self.feed(text)
        assert not self.stack

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [v for k, v in attrs if k in ("src", "srcset", "href")]
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_a_whole_run(tmp_path: Path) -> None:
    path = write_report(sequential_run(tmp_path))
    folder = path.parent
    assert path == tmp_path / "ucit-hide" / "results" / "report.html"
    names = {p.name for p in folder.iterdir()}
    assert names == {
        "report.html", "matrix.json", "matrix.md", "matrix.csv", "matrix.tex",
        "matrix.png", "curves.png", "routing.png", "loss.png", "samples",
    }  # fmt: skip
    page = Page(path.read_text())
    assert page.tags.count("script") == 1 and "link" not in page.tags
    assert {source for source in page.sources if not source.startswith("data:image/png;base64,")} == {"samples/browser.js"}
    for shown in ("67.69", "70.11", "79.84", "74.01", "-7.58", "Avg (column mean)", "MAA (row mean)", "hide", "6 of 6"):
        assert shown in page.text
    assert "What is shown in picture 0? <b>&" in page.text and "# <script>" in page.text  # escaped, so it is text
    content = json.loads((folder / "matrix.json").read_text())
    assert content["cells"][0][1] is None and round(content["aggregates"]["avg"], 2) == 70.11
    rows = list(csv.reader((folder / "matrix.csv").open()))
    assert rows[2] == ["1. ImageNet-R", "91.87", "", "", "", "", "", "91.87"]
    before = (folder / "matrix.json").read_text()
    write_report(tmp_path / "ucit-hide")
    assert (folder / "matrix.json").read_text() == before and {p.name for p in folder.iterdir()} == names


def test_tables(tmp_path: Path) -> None:
    run = read_run(sequential_run(tmp_path, labels=["oracle: 100% of_it"]))
    text = format_matrix(run.matrix)
    assert re.search(r"^2\. ArxivQA +91\.30 +93\.27 +92\.28$", text, re.M)
    assert re.search(r"^Avg \(column mean\) +70\.11$", text, re.M)
    assert "| 2. ArxivQA | 91.30 | 93.27 |  |  |  |  | 92.28 |" in markdown(run)
    assert "- Method preset: hide" in markdown(run) and "oracle: 100% of_it" in markdown(run)
    tex = latex(run)
    assert r"oracle: 100\% of\_it" in tex and tex.count(r" \\") == 9 and r"\toprule" in tex


def test_an_unfinished_run(tmp_path: Path) -> None:
    path = sequential_run(tmp_path, done=3)
    run = read_run(path)
    assert run.evaluated_stages == 3 and run.matrix.cells[3] == [None] * 6
    text = markdown(run)
    assert "first 3 of 6 stages" in text and "Last = MFN = AP = ACC | 78.77" in text
    assert "Last" not in format_matrix(run.matrix).split("Last (per task)")[1]  # no aggregate of the whole matrix
    page = Page(write_report(path).read_text())
    assert "3 of 6" in page.text and "79.84" not in page.text


def test_partial_and_damaged_cells_are_not_scores(tmp_path: Path) -> None:
    path = sequential_run(tmp_path, done=4)
    cells = path / "eval"
    score = json.loads((cells / "01-imagenet-r/imagenet-r/score.json").read_text())
    write(cells / "01-imagenet-r/imagenet-r/score.json", {**score, "n_scored": 19})
    write(cells / "02-arxivqa/arxivqa/score.json", '{"score": 9')
    (cells / "03-vizwiz/vizwiz/score.json").unlink()
    answers = cells / "04-iconqa/iconqa/predictions.jsonl"
    answers.write_text(answers.read_text() + '{"question_id": 99, "te')
    run = read_run(path)
    assert run.matrix.cells[0][0] is None and run.matrix.cells[1][1] is None and run.matrix.cells[2][2] is None
    assert run.matrix.cells[3][3] == 81.67
    problems = "\n".join(run.problems)
    for part in ("only 19 of 20", "not valid JSON", "answers without a score", "changed after it was scored"):
        assert part in problems
    page = Page(write_report(path).read_text())
    assert "only 19 of 20" in page.text and "it was cut short" in page.text


def test_labels_and_mixed_settings(tmp_path: Path) -> None:
    path = sequential_run(tmp_path)
    cell = write_cell(path, "06-flickr30k", 5, 50.0, labels=("caption6-python, not comparable",))
    data = json.loads((cell / "score.json").read_text())
    write(cell / "score.json", {**data, "image_transform": "crop"})
    (first,) = path.glob("eval/06-flickr30k/imagenet-r/score.json")
    write(first, {**json.loads(first.read_text()), "headline": "clean"})  # scored before and after a rule's headline changed
    labels = read_run(path).labels()
    assert any(label.startswith("mixed headline of ImageNet-R (clean, legacy)") for label in labels)
    before, after = (dict(zip(("max_new_tokens", "prompt_suffix", "questions_sha256", "dtype"), values)) for values in (
        (128, "", "1" * 64, "float32"), (64, "\nBe brief.", "0" * 64, "bfloat16")))  # fmt: skip
    for file, answered in ((path / "eval/01-imagenet-r/imagenet-r/score.json", before), (first, after)):
        write(file, {**json.loads(file.read_text()), **answered})  # asked again, after the last stage alone
    mixed = "".join(label for label in read_run(path).labels() if label.startswith("mixed "))
    suffix = r"prompt_suffix of {} ('', '\nBe brief.')"
    for start in ("max_new_tokens of {} (128, 64)", suffix, "questions of {} (00000000, 11111111)"):
        assert "mixed " + start.format("ImageNet-R") in mixed
    assert "mixed dtype (bfloat16, float32)" in mixed
    assert "Flickr30k: caption6-python, not comparable" in labels
    assert any(label.startswith("mixed image_transform (crop, pad)") for label in labels)


def test_what_a_limited_run_says_once(tmp_path: Path) -> None:
    """Its own label covers those of its cells; protocol and rule of the score are told apart."""
    label = "partial: limit=20 training records and questions of each file"
    path = sequential_run(tmp_path, labels=[label])
    for folder in path.glob("eval/*/*"):
        data = json.loads((folder / "score.json").read_text())
        labels = ["partial: 20 of 100 questions (limit=20)", "partial"]
        write(folder / "score.json", {**data, "labels": labels, "limit": 20, "protocol": "clean"})
    run = read_run(path)
    assert run.labels() == [label]
    text = markdown(run)
    assert "- Protocol of the tasks: clean" in text and "- Metric rules of the headline scores: legacy" in text
    write(path / "manifest.json", {**run.manifest, "labels": []})
    assert read_run(path).labels() == labels  # nothing else says so


def test_joint_and_zero_shot_runs(tmp_path: Path) -> None:
    run = read_run(joint_run(tmp_path))
    assert run.matrix.joint and re.search(r"^Last +74\.78$", format_matrix(run.matrix), re.M)
    assert "Avg" not in format_matrix(run.matrix)
    page = Page(write_report(run.path).read_text())
    assert "74.78" in page.text and "MAA" not in page.text.split("Scores")[0]
    assert not (run.path / "results" / "curves.png").exists()
    assert read_run(joint_run(tmp_path, "z", "zero_shot")).matrix.joint


def test_columns_follow_the_order_of_learning(tmp_path: Path) -> None:
    path = sequential_run(tmp_path)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["tasks"].reverse()
    write(path / "manifest.json", manifest)
    run = read_run(path)
    assert run.matrix.sequential and run.matrix.task_titles[0] == "ImageNet-R"


def test_routing_means(tmp_path: Path) -> None:
    tasks, experts, values = figures.routing_means(read_run(sequential_run(tmp_path)))
    assert tasks[0] == "ImageNet-R" and len(experts) == 6
    assert all(sum(row) == pytest.approx(1, abs=1e-4) for row in values)
    assert all(max(range(6), key=row.__getitem__) == k for k, row in enumerate(values))


def test_without_matplotlib_the_report_says_so(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[report\]'"):
        figures.require_matplotlib()
    path = write_report(sequential_run(tmp_path, done=1))
    assert "matplotlib" in path.read_text() and "<img" not in path.read_text() and not (path.parent / "matrix.png").exists()


def test_intervals_of_a_run(tmp_path: Path) -> None:
    """Below every score that is a mean of verdicts; the others say why they have none."""
    run = sequential_run(tmp_path)
    cell = run / "eval" / "01-imagenet-r" / "imagenet-r"
    score = json.loads((cell / "score.json").read_text())
    verdicts = {str(q): float(q < 15) for q in range(20)}
    write(cell / "score.json", {**score, "score": 75.0, "legacy": {"score": 75.0, "n": 20}, "verdicts": verdicts})
    page = Page(write_report(run).read_text())
    found = json.loads((run / "results" / "matrix.json").read_text())["intervals"]
    low, high = found[0][0]
    assert 45 <= low < 75 < high <= 95 and f"[{low:.2f}, {high:.2f}]" in page.text
    assert found[1] == [None] * 6 and "the score is not the mean of per-question verdicts" in page.text


def test_what_is_outside_the_matrix(tmp_path: Path) -> None:
    """General and never trained tasks have tables of their own and change no aggregate."""
    run = sequential_run(tmp_path)
    before = json.loads((write_report(run).parent / "matrix.json").read_text())["aggregates"]
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["general"] = [{"id": "mme", "title": "MME perception", "metric": "mme"}]
    manifest["tasks"].append({"id": "places", "title": "Places365", "metric": "exact_upper"})
    manifest["stages"][-1]["eval_tasks"].append("places")
    write(run / "manifest.json", manifest)
    tasks = [{"id": t, "train": f"{t}.json"} for t, _, _ in TASKS] + [{"id": "places", "train": None}]
    write(run / "config.yaml", json.dumps({"seed": 42, "benchmark": {"tasks": tasks}}))
    source = run / "eval" / "06-flickr30k" / "imagenet-r"
    for stage, task, score in (("02-arxivqa", "mme", 61.25), ("06-flickr30k", "places", 33.5)):
        folder = Path(shutil.copytree(source, run / "eval" / stage / task))
        write(folder / "score.json", {**json.loads((folder / "score.json").read_text()), "score": score})
    read = read_run(run)
    assert read.unseen == ["places"] and read.evaluated_stages == 6 and read.matrix.sequential
    page = write_report(run).read_text()
    assert json.loads((run / "results" / "matrix.json").read_text())["aggregates"] == before
    general = page.split("<h2>General ability</h2>")[1].split("<h2>")[0]
    never = page.split("<h2>Tasks that are never trained</h2>")[1].split("<h2>")[0]
    assert "61.25" in general and "MME perception" in general and "ArxivQA" in general and "33.50" not in general
    assert "33.50" in never and "Places365" in never
    (run / "eval" / "06-flickr30k" / "places" / "score.json").unlink()
    assert read_run(run).evaluated_stages == 5


def test_mistakes_and_parts(tmp_path: Path) -> None:
    run = sequential_run(tmp_path)
    for stage, count in (("05-clevr-math", 7), ("06-flickr30k", 9)):
        cell = run / "eval" / stage / "clevr-math"
        score = json.loads((cell / "score.json").read_text())
        profile = {"empty": 0, "off_by_one": count, "other": 2}
        clean = {"score": 60.0, "n": 20, "counting": 55.5}
        write(cell / "score.json", {**score, "error_profile": profile, "clean": clean})
    page = Page(write_report(run).read_text()).text
    part = page.split("What kind of mistakes")[1].split("Samples")[0]
    assert "off by one" in part and "empty" not in part  # a kind that never occurs has no column
    assert re.search(r"Flickr30kCLEVR-Math92 *11 *20", re.sub(r"\s+", "", part)) and "All stages" in part
    assert "counting 55.50" in page


def test_experts_are_named_by_the_task_they_were_trained_on(tmp_path: Path) -> None:
    run = sequential_run(tmp_path)
    for k, (task, _, _) in enumerate(TASKS):
        stage = f"{k + 1:02d}-{task}"
        write(run / "stages" / stage / "method.json", {"adapters": [f"expert-{k + 1:02d}", "shared"]})
    titles = read_run(run).expert_titles
    assert titles == {f"expert-{k + 1:02d}": title for k, (_, title, _) in enumerate(TASKS)}


def question_file(run: Path, folder: Path) -> Path:
    """Give the run a whole configuration, and its first task two questions that are known."""
    config = compose(["benchmark=mini-ucit", "method=lora-mini", "model=mini", f"data_root={folder}"])
    write(run / "config.yaml", yaml.safe_dump(config.model_dump()))
    (task, *_) = Resolved.at(run).tasks
    gold = ("a <b>gold</b> fish", "owl")
    write(task.question_files[0], [{"question_id": k, "text": "What?" * (k + 1), "answer": a} for k, a in enumerate(gold)])
    return task.question_files[0]


def test_the_expected_answer_stands_beside_the_models(tmp_path: Path) -> None:
    """Where the questions that were asked can still be read; a run that was moved has none."""
    run = sequential_run(tmp_path, done=1)
    file = question_file(run, tmp_path / "data")
    text = write_report(run).read_text()
    page = Page(text)
    assert "a <b>gold</b> fish" in page.text and "owl" in page.text and "<b>gold" not in text
    assert page.text.index("Prompt") < page.text.index("Expected")
    score = run / "eval" / "01-imagenet-r" / "imagenet-r" / "score.json"
    content = json.loads(score.read_text())
    write(score, {**content, "questions_sha256": sha256(file)})
    assert "owl" in write_report(run).read_text()
    write(score, {**content, "questions_sha256": "of other questions"})
    assert "owl" not in write_report(run).read_text()
    write(score, content)
    for damage in ("{", "[]", "[1]"):
        write(file, damage)
        assert "What is shown in picture 0?" in write_report(run).read_text()
    file.unlink()
    assert "Expected" not in write_report(run).read_text()


@pytest.mark.parametrize("record, shown", [
    ({"answer": "red"}, "red"),
    ({"answers": ["dog", "cat", "cat"]}, "cat · dog"),
    ({"captions": ["A dog.", "One dog."]}, "A dog. · One dog."),
    ({"answer": [0.1, 0.1, 0.5, 0.5]}, "[0.1, 0.1, 0.5, 0.5]"),
    ({"answer": "x" * 1000}, "x" * 400 + " …"),
    ({}, ""),
])  # fmt: skip
def test_what_a_question_expects(record: dict, shown: str) -> None:
    assert shown_answer(record) == shown


def test_a_study_has_a_section_of_its_own(tmp_path: Path) -> None:
    """Title, text, table, both figures and a note, all escaped; a damaged one is named and the rest is shown."""
    run = sequential_run(tmp_path, done=1)
    folder = run / "results" / "made-up"
    for theme in ("light", "dark"):
        write(folder / f"drawn-{theme}.png", theme)
    rows = [["<i>first</i>", "0.125"], ["second", "0.250"]]
    assert write_section(folder, "Made <up>", "Two\nlines & more", ["Layer", "Value"], rows, "drawn", "a note") is not None
    assert write_section(run / "results" / "plain", "Only a text", "nothing else") is not None
    for theme in ("light", "dark"):
        write(run / "results" / "several" / f"one-{theme}.png", f"1 {theme}")
        write(run / "results" / "several" / f"two-{theme}.png", f"2 {theme}")
    write_section(run / "results" / "several", "Two figures", figure={"one": "The first", "two": "The <second>"})
    text = write_report(run).read_text()
    page = Page(text)
    wanted = ("Made <up>", "Two\nlines & more", "<i>first</i>", "0.250", "a note", "Only a text", "The first", "The <second>")
    assert [shown for shown in wanted if shown not in page.text] == []
    assert "<i>first" not in text
    for theme in (b"light", b"dark", b"1 light", b"2 dark"):
        assert "data:image/png;base64," + base64.b64encode(theme).decode() in page.sources
    assert write_section(tmp_path / "elsewhere", "No run") is None and not (tmp_path / "elsewhere").exists()
    assert read_run(run).problems == []


@pytest.mark.parametrize("content", [
    "{", "[]", {"text": "no title"}, {"title": "x", "figure": "../../secret"}, {"title": "x", "figure": "absent"},
    {"title": "x", "table": {"header": ["a"], "rows": [["1", "2"]]}}, {"title": "x", "table": [1]},
    {"title": "x", "figure": {"../secret": "y"}}, {"title": "x", "figure": [1]},
])  # fmt: skip
def test_a_damaged_section_is_named_and_left_out(
    tmp_path: Path, content: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hide_llava.results.report._draw", lambda run, folder: ([], "not drawn"))  # a second, and not asked for
    run = sequential_run(tmp_path, done=1)
    write(run / "results" / "bad" / "section.json", content if isinstance(content, str) else json.dumps(content))
    write_section(run / "results" / "good", "A good one")
    sections, (problem,) = read_sections(run)
    assert [section.title for section in sections] == ["A good one"] and problem.startswith("bad: ")
    assert "bad: section.json" in write_report(run).read_text()


HOSTILE = '"><script>alert(1)</script>,=1+1\n& \\input{x} %'


def test_hostile_names_are_text_everywhere(tmp_path: Path) -> None:
    run = sequential_run(tmp_path, done=2)
    manifest = json.loads((run / "manifest.json").read_text())
    manifest |= {"name": HOSTILE, "preset": HOSTILE, "model": HOSTILE}
    for entry in (*manifest["tasks"], *manifest["stages"]):
        entry["title"] = HOSTILE
    write(run / "manifest.json", manifest)
    folder = write_report(run).parent
    write_comparison([run], tmp_path / "out")
    for page in (folder / "report.html", tmp_path / "out" / "comparison.html"):
        parsed = Page(page.read_text())
        own = ["samples/browser.js"] if page.name == "report.html" else []
        assert parsed.tags.count("script") == len(own) and "<script>alert(1)" in parsed.text
        assert [source for source in parsed.sources if not source.startswith("data:image/png;base64,")] == own
        assert "default-src 'none'" in page.read_text()
    for table in (folder / "matrix.tex", tmp_path / "out" / "comparison.tex"):
        assert r"\input" not in table.read_text() and r"\textbackslash{}input\{x\} \%" in table.read_text()
    for table in (folder / "matrix.csv", tmp_path / "out" / "comparison.csv"):
        rows = list(csv.reader(table.open()))
        assert any(HOSTILE in row for row in rows)


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "not a run folder"),
        ("{", "not valid JSON"),
        ({"schema": 2}, "schema 2"),
        ({"schema": 1}, "must be a list"),
    ],
)
def test_no_run_folder(tmp_path: Path, content, message) -> None:
    if content is not None:
        write(tmp_path / "manifest.json", content)
    with pytest.raises(UserError, match=message):
        read_run(tmp_path)


def test_columns_of_words_are_on_the_left() -> None:
    rows = [["a", "12.0 ± 1", "b, c", "", "< 0.1"], ["d", "", "", "", "[-0.3, 0.2]"]]
    assert markdown_table(list("vwxyz"), rows)[1] == "|---|---:|---|---:|---:|"
    assert markdown_table(list("vw"), [])[1] == "|---|---:|" and markdown_table(list("vw"), rows, "rl")[1] == "|---:|---|"
