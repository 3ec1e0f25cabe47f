"""Every quirk of the scripts that score UCIT and CoIN, legacy and clean, as a row of a table; and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hide_llava.errors import UserError
from hide_llava.metrics import METRICS, get, names, score, score_files
from hide_llava.metrics.grounding import iou, parse_box, parse_box_legacy
from hide_llava.metrics.scienceqa import parse_coin, parse_hide
from hide_llava.metrics.vqa import CONTRACTIONS, leave_one_out, normalise


def one(metric: str, text: str, gold: dict, **options) -> tuple[float, float]:
    """(legacy, clean) of one answer, as fractions."""
    result = score(metric, [{"question_id": 1, "text": text}], [{"question_id": "1", **gold}], options=options)
    return result["legacy"]["score"] / 100, result["clean"]["score"] / 100


@pytest.mark.parametrize(
    "metric, text, answer, legacy, clean",
    [
        ("exact_upper", "a", "A", 1, 1),
        ("exact_upper", "A.", "A", 0, 0),
        ("exact_upper", "two", "2", 0, 0),
        ("exact_upper", " A", "A", 0, 0),
        ("exact_upper", "5", 5, 1, 1),
        ("exact_lower_unanswerable", "Cat", "cat", 1, 1),
        ("exact_lower_unanswerable", "unanswerable", "Unanswerable", 1, 1),
        ("exact_lower_unanswerable", "Unanswerable", "Unanswerable", 0, 1),
        ("substring_bidir", "a goldfish", "goldfish", 1, 1),
        ("substring_bidir", "gold", "goldfish", 1, 1),
        ("substring_bidir", "Goldfish", "goldfish", 0, 0),
        ("substring_bidir", "", "goldfish", 1, 0),
        ("substring_bidir", " ", "great white", 1, 0),
        ("substring_bidir", "cat", "", 1, 0),
        ("gqa_exact", "Yes.", "yes", 1, 1),
        ("gqa_exact", "No..", "no", 1, 1),
        ("gqa_exact", "Red ", "red", 0, 0),
        ("gqa_exact", "red", "Red", 0, 1),
        ("option_letter_hide", "A", "A", 1, 1),
        ("option_letter_hide", "a", "A", 0, 1),
        ("option_letter_hide", "A.", "A", 0, 1),
        ("option_letter_hide", "The answer is B.", "B", 1, 1),
        ("option_letter_coin", "a dog", "A", 1, 0),
        ("option_letter_coin", "it is b", "B", 1, 1),
    ],
)
def test_answer_table(metric, text, answer, legacy, clean) -> None:
    assert one(metric, text, {"answer": answer}) == (legacy, clean)


def test_case_option_of_the_substring_rule() -> None:
    assert one("substring_bidir", "Goldfish", {"answer": "goldfish"}, case="insensitive") == (1, 1)


@pytest.mark.parametrize(
    "text, hide, coin",
    [
        ("A", "A", "A"),
        ("A. foo", "A", "A"),
        ("A.foo", "FAILED", "A"),
        ("The answer is B", "FAILED", "B"),
        ("The answer is B! The answer is C!", "FAILED", "B"),
        ("F", "FAILED", "F"),
        ("", "FAILED", "FAILED"),
        ("AB", "FAILED", "FAILED"),
        ("3 dogs", "FAILED", "3"),
    ],
)
def test_letter_parsers(text, hide, coin) -> None:
    assert (parse_hide(text), parse_coin(text)) == (hide, coin)


def test_letter_must_be_an_option_of_the_question() -> None:
    gold = {"answer": 1, "choices": ["x", "y"]}
    assert one("option_letter_hide", "C", gold) == (0, 0) and one("option_letter_hide", "B", gold) == (1, 1)
    with pytest.raises(UserError, match="letter A–B"):
        one("option_letter_hide", "C", {**gold, "answer": 2})
    assert one("option_letter_hide", "C", {**gold, "answer": 2}, allow_unanswerable=True) == (0, 0)  # as published


def test_letter_denominators() -> None:
    questions = [{"question_id": i, "answer": "A"} for i in range(4)]
    rows = [{"question_id": 0, "text": "A"}, {"question_id": 1, "text": "B"}]
    hide = score("option_letter_hide", rows, questions, options={"allow_partial": True})
    coin = score("option_letter_coin", rows, questions, options={"allow_partial": True})
    assert (hide["legacy"]["score"], hide["clean"]["score"]) == (50, 25)
    assert (coin["legacy"]["score"], coin["clean"]["score"]) == (25, 25)


@pytest.mark.parametrize(
    "text, legacy, clean",
    [
        ("[0.12,0.20,0.50,0.68]", (0.12, 0.20, 0.50, 0.6), (0.12, 0.20, 0.50, 0.68)),
        ("[1.0,0.2,0.5,0.7]", (0.0, 0.2, 0.5, 0.0), (1.0, 0.2, 0.5, 0.7)),
        ("box: [0.1, 0.2, 0.5, 0.6] (4 numbers)", None, (0.1, 0.2, 0.5, 0.6)),
        ("0.1 0.2 0.5 0.6", None, (0.1, 0.2, 0.5, 0.6)),
        ("[0.1,0.2,0.5]", None, None),
        ("none", None, None),
        ("", None, None),
    ],
)
def test_box_parsers(text, legacy, clean) -> None:
    assert parse_box_legacy(text) == legacy
    assert parse_box(text) == clean


def test_iou_is_strictly_above_a_half() -> None:
    assert iou((0, 0, 1, 1), (0, 0, 1, 0.5)) == 0.5
    assert one("iou50", "[0.00,0.00,1.00,1.00]", {"answer_bbox": "[0, 0, 1, 0.5]"}) == (0, 0)
    assert iou((0, 0, 0, 0), (0, 0, 0, 0)) == 0
    assert one("iou50", "[0.5,0.6,0.1,0.2]", {"answer_bbox": "[0.1,0.2,0.5,0.6]"})[1] == 0  # inverted corners


def test_vqa_contractions_and_soft_scores() -> None:
    assert len(CONTRACTIONS) > 110 and CONTRACTIONS["couldntve".replace("ve", "'ve")] == "couldn't've"
    assert normalise("Im") == "im" and normalise("well, lets") == "well lets"  # not in the published table
    assert normalise("Dont, the 3.5 N/A?") == "don't 3.5 n"
    ten = ["cat"] * 3 + ["dog"] * 7
    assert [leave_one_out(text, ten) for text in ("cat", "dog", "cow")] == [pytest.approx(0.9), 1.0, 0.0]
    with pytest.raises(UserError, match="exactly ten"):
        score("vqa_soft10", [{"question_id": 1, "text": "x"}], [{"question_id": 1, "answers": ["x"]}])


def test_positional_legacy_is_labelled_when_the_order_differs() -> None:
    questions = [{"question_id": i, "answer": f"word{i}"} for i in range(3)]
    rows = [{"question_id": i, "text": f"word{i}"} for i in (2, 1, 0)]
    result = score("substring_bidir", rows, questions)
    assert result["clean"]["score"] == 100 and result["legacy"]["score"] == pytest.approx(100 / 3)
    assert any("order" in label for label in result["labels"])


# ---------------------------------------------------------------------------------------------- refusals


QUESTIONS = [{"question_id": 1, "answer": "a"}, {"question_id": 2, "answer": "b"}]
ROWS = [{"question_id": 1, "text": "a"}, {"question_id": "2", "text": "b"}]


@pytest.mark.parametrize(
    "rows, questions, message",
    [
        ([], QUESTIONS, "no predictions"),
        (ROWS[:1], QUESTIONS, "Only 1 of 2"),
        ([*ROWS, {"question_id": 3, "text": "c"}], QUESTIONS, "question_id 3"),
        ([*ROWS, ROWS[0]], QUESTIONS, "more than once in predictions"),
        (ROWS, [*QUESTIONS, QUESTIONS[0]], "more than once in the reference file"),
        ([{"question_id": 1, "text": None}], QUESTIONS, "text is None"),
        ([{"text": "a"}], QUESTIONS, "question_id is None"),
        (ROWS, [{"question_id": 1, "answer": ["a"]}], "expected a string"),
        (ROWS, [], "no questions"),
    ],
)
def test_bad_input_is_refused(rows, questions, message) -> None:
    with pytest.raises(UserError, match=message):
        score("exact_upper", rows, questions)


def test_unknown_metric_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean exact_upper"):
        get("exact_uper")
    assert names() == sorted(METRICS)


def test_partial_is_labelled_and_counts_missing_as_wrong_in_clean() -> None:
    result = score("exact_upper", ROWS[:1], QUESTIONS, options={"allow_partial": True})
    assert result["labels"] == ["partial"] and (result["n_scored"], result["n_expected"]) == (1, 2)
    assert (result["score"], result["legacy"]["score"], result["clean"]["score"]) == (100, 100, 50)
    assert result["verdicts"] == {"1": 1, "2": 0}
    json.dumps(result)


def test_a_cut_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "q.json").write_text(json.dumps(QUESTIONS))
    answers = tmp_path / "a.jsonl"
    answers.write_text(json.dumps(ROWS[0]) + '\n{"question_id": 2, "te')
    with pytest.raises(UserError, match=r"a\.jsonl: the last line \(2\).*delete that line and resume"):
        score_files("exact_upper", answers, tmp_path / "q.json")
    answers.write_text('{"question_id"\n' + json.dumps(ROWS[0]) + "\n")
    with pytest.raises(UserError, match=r"line 1 is not valid JSON"):
        score_files("exact_upper", answers, tmp_path / "q.json")
    (tmp_path / "q.json").write_text('[\n{"question_id": 1,')
    answers.write_text(json.dumps(ROWS[0]))
    with pytest.raises(UserError, match=r"q\.json is not valid JSON at line 2"):
        score_files("exact_upper", answers, tmp_path / "q.json")
    with pytest.raises(UserError, match="does not exist"):
        score_files("exact_upper", tmp_path / "none.jsonl", tmp_path / "q.json")


# ---------------------------------------------------------------------------------------------- captions


def caption_files(tmp_path: Path, names: list[str] | None = None) -> tuple[list[dict], Path]:
    texts = ["a man rides a brown horse", "two dogs play in the grass", "a bowl of fruit on a table"]
    coco = {
        "images": [{"id": i + 1, **({"file_name": names[i]} if names else {})} for i in range(3)],
        "annotations": [{"id": i, "image_id": i + 1, "caption": text} for i, text in enumerate(texts)],
    }
    path = tmp_path / "coco.json"
    path.write_text(json.dumps(coco))
    questions = [{"question_id": f"{i:08d}", "image": f"v/{i}.jpg", "text": "Describe."} for i in range(3)]
    rows = [{"question_id": q["question_id"], "text": t} for q, t in zip(questions, texts)]
    return [questions, rows], path


PYTHON = {"tokenizer": "python"}


def test_caption_clean_joins_by_id_and_legacy_by_line(tmp_path: Path) -> None:
    (questions, rows), coco = caption_files(tmp_path)
    straight = score("caption7", rows, questions, coco, PYTHON)
    turned = score("caption7", rows[::-1], questions, coco, PYTHON)
    assert turned["clean"] == straight["clean"]
    assert turned["legacy"]["score"] < straight["legacy"]["score"]
    assert straight["clean"]["BLEU-4"] == pytest.approx(100) and set(straight["verdicts"]) == {
        "00000000", "00000001", "00000002",
    }  # fmt: skip
    partial = score("caption7", rows[:2], questions, coco, {**PYTHON, "allow_partial": True})
    assert "legacy" not in partial and partial["headline"] == "clean" and "partial" in partial["labels"]
    assert partial["score"] < straight["score"]


def test_caption_mapping_is_checked(tmp_path: Path) -> None:
    (questions, rows), coco = caption_files(tmp_path, ["0.jpg", "2.jpg", "1.jpg"])
    with pytest.raises(UserError, match="not in the same order"):
        score("caption7", rows, questions, coco, PYTHON)
    (questions, rows), coco = caption_files(tmp_path)
    with pytest.raises(UserError, match="2 records but"):
        score("caption7", rows[:2], questions[:2], coco, PYTHON)
    first = score("caption7", rows[:2], questions[:2], coco, {**PYTHON, "allow_partial": True})
    assert first["labels"][0] == "partial" and first["legacy"]["BLEU-1"] == pytest.approx(100)
    with pytest.raises(UserError, match="COCO-type reference file"):
        score("caption7", rows, questions)


def test_a_picture_in_a_table_may_have_no_name(tmp_path: Path) -> None:
    """Then it is the place of its row alone, which the references cannot know."""
    (questions, rows), coco = caption_files(tmp_path, ["0.jpg", "1.jpg", "2.jpg"])
    straight = score("caption7", rows, questions, coco, PYTHON)
    for i, question in enumerate(questions):
        question["image"] = f"test.parquet/@{i}.0"
    assert score("caption7", rows, questions, coco, PYTHON) == straight
    questions[0]["image"] = "test.parquet/@0.0/1.jpg"
    with pytest.raises(UserError, match="not in the same order"):
        score("caption7", rows, questions, coco, PYTHON)


def test_caption_without_java_says_so(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("hide_llava.metrics.caption.java_available", lambda: False)
    (questions, rows), coco = caption_files(tmp_path)
    with pytest.raises(UserError, match="needs Java"):
        score("caption7", rows, questions, coco)
