"""What became of each question, on a synthetic run and on verdicts written by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from synthetic import TASKS, joint_run, sequential_run, write

from hide_llava.results.per_sample import History, histories
from hide_llava.results.run_reader import read_run


@pytest.mark.parametrize("verdicts, learned, lost, state, when_learned", [
    ((1, 1, 1), 0, None, "kept", True),
    ((1, 0, 0), 0, 1, "lost", True),
    ((1, 1, 0), 0, 2, "lost", True),
    ((1, 0, 1), 0, None, "kept", True),  # it came back
    ((1, 0, 1, 0), 0, 3, "lost", True),  # and was lost again: the last loss counts
    ((0, 0, 0), 0, None, "never", False),
    ((0, 1, 0), 0, 2, "lost", False),  # right later than learned is right at some stage
    ((None, 1, 0.25), 1, 2, "lost", True),
    ((None, 0.5, None), 1, None, "kept", True),  # half right is right; the last stage did not ask
    ((1, None, 0), 0, 2, "lost", True),  # the stage after which it was seen to be wrong
    ((1, 0), None, 1, "lost", None),
    ((None, None), 0, None, "unknown", None),
])  # fmt: skip
def test_a_history(verdicts, learned, lost, state, when_learned) -> None:
    history = History(verdicts, learned)
    assert (history.lost, history.state, history.right_when_learned) == (lost, state, when_learned)


def test_histories_of_a_run(tmp_path: Path) -> None:
    """Every question of every task, with the stage that learned it; joint training has none, and so have general tasks."""
    path = sequential_run(tmp_path)
    cell = path / "eval" / "06-flickr30k" / "arxivqa" / "score.json"
    score = json.loads(cell.read_text())
    write(cell, {**score, "verdicts": {**score["verdicts"], "3": 0, "99": 1}})
    without = path / "eval" / "06-flickr30k" / "flickr30k" / "score.json"
    write(without, {**json.loads(without.read_text()), "verdicts": None})
    manifest = json.loads((path / "manifest.json").read_text())
    write(path / "manifest.json", {**manifest, "general": [{"id": "pope", "title": "POPE", "metric": "pope"}]})
    (path / "eval" / "02-arxivqa" / "pope").symlink_to(path / "eval" / "02-arxivqa" / "arxivqa")
    found = histories(read_run(path))
    assert list(found) == [*(task for task, _, _ in TASKS), "pope"]
    assert found["arxivqa"]["3"] == History((None, 1, 1, 1, 1, 0), 1) and found["arxivqa"]["3"].lost == 5
    assert found["arxivqa"]["5"].state == "kept" and found["arxivqa"]["4"].state == "never"
    assert found["arxivqa"]["99"] == History((None, None, None, None, None, 1), 1)  # asked at the last stage alone
    assert found["flickr30k"] == {} and len(found["clevr-math"]) == 20
    assert found["pope"]["1"] == History((None, 1, None, None, None, None), None)
    assert histories(read_run(joint_run(tmp_path)))["vizwiz"]["1"] == History((1,), None)
