"""By what an answer is lost, and what a run's page of forgetting says where little is known."""

import json
from pathlib import Path

import pytest

from hide_llava.results.drawing import LIGHT
from hide_llava.results.run_reader import read_run
from hide_llava.studies.forgetting.fates import anatomy
from hide_llava.studies.forgetting.kinds import has_form, lost_by, main_form
from hide_llava.studies.forgetting.report import findings
from tests.cli.call import refused
from tests.results.synthetic import joint_run, sequential_run

CAPTIONS = ["A brown dog runs over the grass.", "The dog is running in a field."]


@pytest.mark.parametrize("text, expected, by, kind", [
    ("", ["cat"], "format", "empty"),
    ("Cat", ["cat"], "format", "case"),
    ("cat.", ["cat"], "format", "punctuation"),
    ("a cat", ["cat"], "format", "article"),
    ("it is a cat", ["cat"], "format", "longer_answer"),
    ("3", ["cat"], "format", "wrong_format"),
    ("A", ["cat"], "format", "wrong_format"),
    ("dog", ["cat"], "content", "other"),
    ("B", ["C"], "content", "other"),
    ("cat", ["C"], "format", "wrong_format"),
    ("3", ["4"], "content", "off_by_one"),
    ("7", ["4"], "content", "other"),
    ("yes", ["no"], "content", "other"),
    ("goldfish", CAPTIONS, "format", "wrong_format"),
    ("A red car stands in the street", CAPTIONS, "format", "other"),  # no period: MIF's rule for sentences
    ("A red car stands in the street.", CAPTIONS, "content", "other"),
    ("anything", [], "unknown", ""),
])  # fmt: skip
def test_lost_by_format_or_by_content(text: str, expected: list[str], by: str, kind: str) -> None:
    assert lost_by(text, expected) == (by, kind)


def test_references_without_a_common_form_ask_for_none() -> None:
    assert has_form("one two three", ["yes", "a long answer here"]) and not has_form("one two three", ["yes", "no"])
    assert main_form([["a cat"], ["dog"], ["4"]]) == "short" and main_form([]) is None


def test_without_the_questions_the_kind_stays_open(tmp_path: Path) -> None:
    """Of the synthetic run every second question is right at every stage, so nothing is lost."""
    found = anatomy(read_run(sequential_run(tmp_path)))
    assert [course.stage for course in found.courses if course.task == "arxivqa"] == [1, 2, 3, 4, 5]
    last = found.last("arxivqa")
    assert last.counts["kept"] == last.counts["never"] == 10 and last.lost == 0 and not found.lost
    assert len(found.notes) == 6 and "cannot be told apart" in found.notes[0]
    assert findings(found).lines[0].startswith("60 questions were answered right when their task was learned; 0 of them")


def test_a_stage_whose_answers_have_no_verdicts_is_passed_over(tmp_path: Path) -> None:
    run = sequential_run(tmp_path)
    for file in run.glob("eval/06-*/arxivqa/score.json"):
        file.write_text(json.dumps({**json.loads(file.read_text()), "verdicts": {}}))
    found = anatomy(read_run(run))
    assert [course.stage for course in found.courses if course.task == "arxivqa"] == [1, 2, 3, 4]
    assert sum(found.last("arxivqa").counts.values()) == 20
    for _, draw in findings(found).figures.values():
        draw(LIGHT)


def test_joint_training_has_nothing_to_follow(tmp_path: Path) -> None:
    refused("analyze", "forgetting", joint_run(tmp_path), says=("no task was asked after a stage of its own",))
