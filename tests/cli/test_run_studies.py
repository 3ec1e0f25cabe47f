"""The studies of a run, called as docs/STUDIES.md prints them, on a run that was really trained."""

import csv
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from hide_llava.metrics.rows import read_jsonl
from tests.cli.call import Called, call, refused

PAGE = Path(__file__).parents[2] / "docs" / "STUDIES.md"


def printed() -> list[str]:
    block = re.search(r"^```\n(hide-llava .*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)[1]
    return [re.split(r"\s+#", line)[0].strip() for line in block.splitlines()]


@pytest.fixture(scope="module")
def studied(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Called]]:
    """A copy of the finished run as runs/A, and what each of the page's lines said."""
    home = tmp_path_factory.mktemp("studied")
    run = Path(shutil.copytree(finished, home / "runs" / "A"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        said = {line: call(*shlex.split(line)[1:]) for line in printed()}
    return run, said


def table(file: Path) -> list[dict[str, str]]:
    with open(file, newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def test_every_line_of_the_page_runs(studied: tuple[Path, dict[str, Called]]) -> None:
    _, said = studied
    assert [line.split()[1:3] for line in said] == [
        ["eval", "runs/A"], ["analyze", "router"], ["analyze", "forgetting"], ["analyze", "weights"], ["analyze", "cka"],
        ["report", "runs/A"],
    ]  # fmt: skip
    for line, called in said.items():
        assert called.code == 0, f"{line}: {called.err}"
        if line.split()[1] == "analyze":
            assert "written: runs/A/results/" in called.out and len(called.out) < 2500


def test_each_study_has_a_section_of_the_page(studied: tuple[Path, dict[str, Called]]) -> None:
    run, _ = studied
    page = (run / "results" / "report.html").read_text()
    for title in ("The router of hide after Task 2", "What hide forgot", "Weight changes of hide", "Similarity of the layers"):
        assert title in page
    assert page.count("data:image/png") >= 2 * 14 and "cannot be shown" not in page


def test_the_router_counts_what_the_answers_say(studied: tuple[Path, dict[str, Called]]) -> None:
    run, _ = studied
    found = json.loads((run / "results" / "router" / "router.json").read_text())
    right = {}
    for k in range(3):
        rows = read_jsonl(run / "eval" / "03-task2" / f"task{k}" / "predictions.jsonl")
        right[f"task{k}"] = sum(max(row["routing"], key=row["routing"].get) == f"expert-0{k + 1}" for row in rows) / len(rows)
        assert sum(found["confusion"]["counts"][k]) == len(rows) == found["agreement"][f"task{k}"]["questions"]
    assert {task: one["routed"] for task, one in found["agreement"].items()} == pytest.approx(right)
    wrong = table(run / "results" / "router" / "misrouted.csv")
    assert len(wrong) == found["overall"]["routed_wrong"] == round(sum(6 * (1 - share) for share in right.values()))
    assert all(row["routed_to"] != f"expert-0{int(row['task'][-1]) + 1}" and row["prompt"] for row in wrong)
    oracle = {row["task"]: row for row in found["oracle"]["rows"]}
    for task, row in oracle.items():
        ours, theirs = (json.loads((home / "eval" / "03-task2" / task / "score.json").read_text())["score"]
                        for home in (run, run / "variants" / "router=oracle"))  # fmt: skip
        assert (row["score"], row["oracle"]) == (ours, theirs) and row["gap"] == pytest.approx(theirs - ours)
    assert len(oracle) == 3 and set(found["anchors"]) == {"image", "text"}
    assert [len(row) for row in found["anchors"]["image"][1]] == [3, 3, 3]


def test_anchors_of_all_records_are_the_stored_ones(studied: tuple[Path, dict[str, Called]]) -> None:
    """With every record that trained, they route as the answers say that the run did."""
    run, _ = studied
    found = json.loads((run / "results" / "router" / "router.json").read_text())
    curve = found["curve"]
    routed = [one["routed"] for one in found["agreement"].values()]
    assert curve["counts"] == [1, 4, 8] and len(curve["accuracy"]) == 3
    assert curve["stored"] == pytest.approx(sum(routed) / 3) and curve["accuracy"][-1] == pytest.approx(curve["stored"])
    assert curve["deviation"][-1] == 0


def test_the_tiny_tasks_are_told_by_their_wording(studied: tuple[Path, dict[str, Called]]) -> None:
    """Each has one question of its own; all draw their picture sizes alike, and a question without a picture is seldom."""
    run, _ = studied
    found = json.loads((run / "results" / "router" / "router.json").read_text())["fingerprint"]
    assert set(found["accuracy"]["text"].values()) == {1.0}
    assert found["accuracy"]["size"] == pytest.approx(dict.fromkeys(("task0", "task1", "task2"), 1 / 3))
    assert found["train"] == dict.fromkeys(("task0", "task1", "task2"), 8) and found["chance"] == pytest.approx(1 / 3)


def test_a_lost_answer_is_followed(run: Path) -> None:
    """Verdicts and answers of one task written by hand: lost by format, by content, regained, gained, never right."""
    verdicts = {"0": (1, 1, 0), "1": (1, 0, 0), "2": (1, 0, 1), "3": (0, 0, 1), "4": (0, 0, 0), "5": (1, 1, 1)}
    texts = {"0": "3", "1": "star"}  # a number for `circle`; a word for `square`
    for stage in range(3):
        cell = run / "eval" / f"0{stage + 1}-task{stage}" / "task0"
        rows = read_jsonl(cell / "predictions.jsonl")
        for row in rows:
            row["text"] = texts.get(str(row["question_id"]), row["text"])
        (cell / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        score = json.loads((cell / "score.json").read_text())
        score["verdicts"] = {question: values[stage] for question, values in verdicts.items()}
        (cell / "score.json").write_text(json.dumps(score))
    called = call("analyze", "forgetting", run)
    assert called.code == 0, called.err
    lost = {row["question_id"]: row for row in table(run / "results" / "forgetting" / "lost.csv") if row["task"] == "task0"}
    assert {q: (row["lost_after"], row["lost_by"], row["mistake"], row["expected"]) for q, row in lost.items()} == {
        "0": ("Task 2", "format", "wrong_format", "circle"), "1": ("Task 1", "content", "other", "square")}  # fmt: skip
    assert lost["0"]["form_like"] == "Task 1" and lost["0"]["pictures"] == "task0/test0.png"  # its answers are numbers
    counts = [row for row in table(run / "results" / "forgetting" / "counts.csv") if row["task"] == "task0"]
    names = ("kept", "format", "content", "gained", "never", "newly_lost", "regained")
    told = [{name: int(row[name]) for name in names} for row in counts]
    assert told[0] == {"kept": 4, "format": 0, "content": 0, "gained": 0, "never": 2, "newly_lost": 0, "regained": 0}
    assert told[1]["kept"] == 2 and told[1]["newly_lost"] == 2 and told[1]["format"] + told[1]["content"] == 2
    assert told[2] == {"kept": 2, "format": 1, "content": 1, "gained": 1, "never": 1, "newly_lost": 1, "regained": 1}


def test_bad_usage(finished: Path, tmp_path: Path) -> None:
    refused("analyze", "router", finished, "--stage", 4, says=("--stage 4", "stages 1 to 3"))
    for study in ("router", "forgetting", "weights"):
        refused("analyze", study, tmp_path, says=("not a run folder",))
