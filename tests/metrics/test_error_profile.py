"""Every wrong answer gets exactly one kind."""

from __future__ import annotations

import pytest

from hide_llava.metrics import score
from hide_llava.metrics.error_profile import KINDS, error_profile, kind_of


@pytest.mark.parametrize(
    "text, gold, kind",
    [
        ("", "cat", "empty"),
        (" \n", "cat", "empty"),
        ("Cat", "cat", "case"),
        ("cat.", "cat", "punctuation"),
        ("Cat!", "cat", "punctuation"),
        ("t-shirt", "t shirt", "punctuation"),
        ("the cat", "cat", "article"),
        ("cat", "a cat", "article"),
        ("it is a cat here", "cat", "longer_answer"),
        ("The answer is B", "B", "longer_answer"),
        ("7", "8", "off_by_one"),
        ("seven", "8", "off_by_one"),
        ("-1", "0", "off_by_one"),
        ("6", "8", "other"),
        ("18", "8", "other"),  # not inside a longer number
        ("3.5", "3", "wrong_format"),
        ("dog", "B", "wrong_format"),
        ("yes", "8", "wrong_format"),
        ("B", "yes", "wrong_format"),
        ("dog", "cat", "other"),
        ("A", "B", "other"),
        ("no", "yes", "other"),
        ("concatenate", "cat", "other"),
    ],
)
def test_kinds(text, gold, kind) -> None:
    assert kind_of(text, [gold]) == kind


def test_any_reference_may_explain_it_and_without_one_it_is_other() -> None:
    assert kind_of("Cat", ["dog", "cat"]) == "case"
    assert kind_of("anything", []) == "other" and kind_of("anything", [""]) == "other"


@pytest.mark.parametrize("minority, kind", [("dark blue jeans", "other"), ("2", "other"), ("red", "other"), ("Red", "case")])
def test_what_one_of_ten_people_said_is_no_other_form(minority: str, kind: str) -> None:
    assert kind_of("red", [*["blue"] * 9, minority]) == kind
    assert kind_of("2", [*["blue"] * 9, "dark blue"]) == "wrong_format"


def test_counts_add_up_to_the_wrong_answers() -> None:
    questions = [{"question_id": i, "answer": a} for i, a in enumerate(["cat", "8", "B", "dog", ["red", "blue"]])]
    rows = [{"question_id": i, "text": t} for i, t in enumerate(["Cat.", "9", "B", "bird"])]
    verdicts = score("exact_upper", rows, [{**q, "answer": str(q["answer"])} for q in questions],
                     options={"allow_partial": True})["verdicts"]  # fmt: skip
    counts = error_profile(rows, questions, verdicts)
    assert set(counts) == set(KINDS) and sum(counts.values()) == 4
    assert counts == {**dict.fromkeys(KINDS, 0), "punctuation": 1, "off_by_one": 1, "other": 1, "empty": 1}
    assert sum(error_profile(rows, questions, dict.fromkeys(map(str, range(5)), 1.0)).values()) == 0


def test_a_score_carries_the_profile_of_short_answers_only() -> None:
    rows = [{"question_id": 1, "text": "a cat."}]
    assert score("exact_upper", rows, [{"question_id": 1, "answer": "cat"}])["error_profile"]["article"] == 1
    assert score("option_letter_hide", rows, [{"question_id": 1, "answer": 2}])["error_profile"]["wrong_format"] == 1
    assert "error_profile" not in score("iou50", rows, [{"question_id": 1, "answer_bbox": "[0, 0, 1, 1]"}])
    assert "error_profile" not in score("cider_d_ws", rows, [{"question_id": 1, "answer": ["a cat ."]}])
