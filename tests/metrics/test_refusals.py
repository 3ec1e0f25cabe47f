"""Broken references, every metric and every kind: refused in a sentence before anything is asked, and never later."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from hide_llava.errors import UserError
from hide_llava.metrics import METRICS, get, score, score_files
from tests.metrics.test_properties import PYTHON, coco, questions_and_rows

DATA = [(["red", "cat"], 0), (["blue", "dog"], 1), (["seven"], 2), (["green"], 4)]
BAD = [None, True, 3.5, math.nan, [], {}, [None], [{}], {"a": 1}, "maybe", "F", "", "1e999", [0.1, 0.1, 0.5], ["a"] * 9,
       [0.1, "x", 0.5, 0.6], [[1]], 10**400, -1]  # fmt: skip
FIELDS = ("question_id", "answer", "answers", "answer_bbox", "label", "size", "choices", "options", "answer_type", "image",
          "image_id", "category", "l2_category", "circle", "question_type", "types", "groups", "isBalanced", "text",
          "task")  # fmt: skip


def sound(metric: str, folder: Path) -> tuple[list[dict], list[dict], Path | None]:
    """Questions, right answers and references that the metric accepts."""
    questions, rows = questions_and_rows(metric, DATA)
    questions = [{"text": "What?", **question} for question in questions]
    return questions, rows, coco(questions, folder) if metric == "caption7" else None


def accepted(metric: str, questions: list[dict], references: Path | None) -> bool:
    """Whether gold() takes them; anything but acceptance and a sentence fails the test."""
    try:
        get(metric).gold(questions, references, dict(PYTHON))
    except UserError as error:
        assert len(str(error)) < 600 + 700 * ("e+" in str(error) or "0" * 50 in str(error)), str(error)
        return False
    return True


@pytest.mark.parametrize("metric", sorted(METRICS))
def test_a_broken_field_is_refused_or_scored_never_in_between(metric: str, tmp_path: Path) -> None:
    """Each field with each wrong value: what gold() accepts is scored without a complaint, whatever the answers."""
    questions, rows, references = sound(metric, tmp_path)
    assert accepted(metric, questions, references)
    for field in FIELDS:
        for value in BAD:
            changed = [{**questions[0], field: value}, *questions[1:]]
            if accepted(metric, changed, references):
                told = [{**row, "question_id": q["question_id"]} for row, q in zip(rows, changed)]
                for texts in (None, "", "7", "Which states are A, B?"):
                    answers = told if texts is None else [{**row, "text": texts} for row in told]
                    result = score(metric, answers, changed, references, PYTHON)
                    assert math.isfinite(result["score"]), (field, value)


@pytest.mark.parametrize(
    "metric, field, value, says",
    [
        *((metric, "answer", 3.5, "answer is 3.5") for metric in (
            "exact_upper", "exact_lower_unanswerable", "substring_bidir", "substring_wordish", "substring_lower",
            "substring_squeezed", "exact_squeezed", "option_exact_local", "sci_mixed", "relaxed_chart", "gqa_exact",
            "anls", "anls_prism", "ocrbench", "format_short", "format_sentence", "cider_d_ws", "yes_no", "mme",
            "option_letter_hide", "option_letter_coin", "format_letter", "mmbench", "seed_bench", "mmstar", "mmmu")),
        *((metric, "answer", "maybe", "expected yes or no") for metric in ("yes_no", "mme")),
        *((metric, "label", "no" , "answer is 'yes' but label is 'no'") for metric in ("yes_no", "mme")),
        *((metric, "answers", ["a"] * 9, "exactly ten") for metric in ("vqa_soft10", "vqa_standard")),
        *((metric, "answers", [*["a"] * 9, None], "expected a string") for metric in ("vqa_soft10", "vqa_standard")),
        ("iou50", "answer_bbox", [0.1, 0.1, 0.5], "expected four numbers"),
        ("iou50", "answer_bbox", [0.1, 0.1, 0.5, math.inf], "expected four numbers"),
        ("iou50", "answer_bbox", [0.1, "x", 0.5, 0.6], "expected four numbers"),
        ("iou50", "size", "large", "width and height"),
        *((metric, "answer", "F", "expected a letter A–E") for metric in ("option_letter_hide", "option_letter_coin")),
        ("option_exact_local", "answer", "up", "one option letter"),
        ("option_exact_local", "choices", [], None),
        ("gqa_exact", "types", ["query"], "names by kind"),
        ("ocrbench", "answer_type", ["Poem"], "answer_type is ['Poem']"),
        ("mathvista", "answer_type", None, "answer_type is None"),
        ("mathvista", "choices", "one", "expected a list of texts"),
        ("sci_mixed", "image", None, "image is None"),
        ("mme", "image", None, "image is missing"),
        ("mmbench", "circle", None, "needs a question's choices and its circle"),
        ("mmmu", "question_type", "essay", "question_type is 'essay'"),
    ],
)  # fmt: skip
def test_the_sentence_names_file_and_record(metric, field, value, says, tmp_path: Path) -> None:
    questions, _, references = sound(metric, tmp_path)
    changed = [questions[0], {**questions[1], field: value}, *questions[2:]]
    if metric in ("yes_no", "mme") and field == "label":
        changed[1]["answer"] = "yes"
    if metric == "mathvista" and field == "choices":
        changed[1] |= {"answer_type": "text", "answer": "one"}
    if says is None:
        assert accepted(metric, changed, references)
        return
    with pytest.raises(UserError) as error:
        get(metric).gold(changed, references, dict(PYTHON), "data/test.json")
    assert says in str(error.value) and "data/test.json, record 2 (question_id 1)" in str(error.value)


@pytest.mark.parametrize("metric", sorted(METRICS))
def test_ids_are_refused_before_the_answers(metric: str, tmp_path: Path) -> None:
    questions, _, references = sound(metric, tmp_path)
    gold = get(metric).gold
    with pytest.raises(UserError, match=r"data/test.json, record 2: question_id is '0', and 0 stands before it"):
        gold([questions[0], {**questions[1], "question_id": "0"}, *questions[2:]], references, dict(PYTHON), "data/test.json")
    with pytest.raises(UserError, match=r"occurs more than once|as question_id 0 does|MME asks two"):
        gold([questions[0], questions[0], *questions[2:]], references, dict(PYTHON))
    with pytest.raises(UserError, match="record 1: question_id is None"):
        gold([{"text": "What?"}, *questions[1:]], references, dict(PYTHON))
    with pytest.raises(UserError, match="record 2: question_id is None"):
        gold([questions[0], None, *questions[2:]], references, dict(PYTHON))


TABLES: list[Any] = [None, 5, "text", [], {}, [None], [5], [[]], {"data": None}, {"data": [None]}, {"annotations": None},
                     {"annotations": [None]}, {"annotations": [{}]}, {"annotations": [{"image_id": [1], "caption": "x"}]},
                     {"images": 5, "annotations": []}, {"images": [None], "annotations": []}, {"images": [], "annotations": []},
                     {"images": [{"id": 1, "file_name": 5}], "annotations": [{"image_id": 1, "caption": "x"}]},
                     {"images": [], "annotations": [{"image_id": 1, "caption": None}]},
                     {"images": [], "annotations": [{"image_id": 9, "caption": "x"}]},
                     {"0": None}, {"0": {"answer": None}}, {"0": {"pid": "x"}}, [{"question_id": 1.5}],
                     [{"question_id": 0, "answer": 3.5}], [{"question_id": 77, "answer": "A", "pid": 3}]]  # fmt: skip


@pytest.mark.parametrize("metric", sorted(METRICS))
def test_a_broken_reference_file_is_refused(metric: str, tmp_path: Path) -> None:
    questions, rows, _ = sound(metric, tmp_path)
    file, answers = tmp_path / "refs.json", tmp_path / "answers.jsonl"
    answers.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for table in TABLES:
        file.write_text(json.dumps(table))
        assert not accepted(metric, questions, file), table
        with pytest.raises(UserError):
            score_files(metric, answers, file, options=PYTHON)
    for content in (b"", b"[", b"\xff\xfe", b'{"question_id": 0}\n{"question'):
        file.write_bytes(content)
        assert not accepted(metric, questions, file), content
    assert not accepted(metric, questions, tmp_path / "nothing.json")


@pytest.mark.parametrize("change", [
    {"problems": []}, {"problems": {"0": None}}, {"problems": {"0": {"answer": 0}}},
    {"problems": {"0": {"answer": 5, "choices": ["x"]}}},
    {"problems": {"0": {"answer": "A", "choices": ["x"]}}}, {"problems": {"0": {"answer": 0, "choices": "x"}}},
    {"splits": []}, {"splits": {}}, {"splits": {"test": None}}, {"splits": {"test": ["9"]}}, {"splits": {"test": []}},
    {"splits": {"test": ["0", "0"]}},
])  # fmt: skip
@pytest.mark.parametrize("metric", [name for name, metric in METRICS.items() if metric.needs == "scienceqa"])
def test_scienceqas_own_files(metric: str, change: dict, tmp_path: Path) -> None:
    files = {"problems": {"0": {"answer": 0, "choices": ["x", "y"]}}, "splits": {"test": ["0"]}}
    for content, works in ((files, True), ({**files, **change}, False)):
        (tmp_path / "problems.json").write_text(json.dumps(content["problems"]))
        (tmp_path / "pid_splits.json").write_text(json.dumps(content["splits"]))
        assert accepted(metric, [], tmp_path) is works


def test_a_file_of_references_may_be_json_or_json_lines_whatever_its_name(tmp_path: Path) -> None:
    records = [{"question_id": 1, "text": "What?", "answer": "cat"}, {"question_id": 2, "text": "What?", "answer": "dog"}]
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (tmp_path / "p.jsonl").write_text('{"question_id":1,"text":"cat"}\n{"question_id":2,"text":"cow"}\n')
    for name in ("r.json", "r.jsonl"):
        for content in (json.dumps(records), json.dumps(records, indent=1), lines, "\n" + lines, "\ufeff" + lines,
                        "\ufeff" + json.dumps(records)):  # fmt: skip
            (tmp_path / name).write_text(content)
            for questions in (None, tmp_path / name):
                result = score_files("exact_upper", tmp_path / "p.jsonl", tmp_path / name, questions)
                assert result["score"] == 50 and result["verdicts"] == {"1": 1, "2": 0}
    (tmp_path / "one.jsonl").write_text(lines.split("\n")[0])
    (tmp_path / "p.jsonl").write_text('{"question_id":1,"text":"cat"}\n')
    assert score_files("exact_upper", tmp_path / "p.jsonl", tmp_path / "one.jsonl")["score"] == 100
