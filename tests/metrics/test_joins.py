"""Ids that repeat with different texts: told apart by (id, prompt), as the published scorers of such files do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hide_llava.errors import UserError
from hide_llava.metrics import ALL_EMPTY, score, score_files

SUFFIX = "\nReference OCR token: STOP, NOW\nAnswer the question using a single word or phrase."
ASKED = [
    {"question_id": "img_a", "text": f"What word is on it?{SUFFIX}"},
    {"question_id": "img_a", "text": f"Which color is it?{SUFFIX}"},
    {"question_id": "img_b", "text": f"What word is on it?{SUFFIX}"},
]
WORDS = ["stop", "red", "go"]


def lines(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def answers(order: tuple[int, ...] = (0, 1, 2), own_ids: bool = False) -> list[dict]:
    """Right answers to questions 0 and 1, a wrong one to 2; with the file's ids, or with those that this project writes."""
    ids = ["img_a", "img_a#2", "img_b"] if own_ids else [q["question_id"] for q in ASKED]
    texts = [WORDS[0], WORDS[1], "no"]
    return [{"question_id": ids[i], "prompt": ASKED[i]["text"], "text": texts[i]} for i in order]


@pytest.mark.parametrize("own_ids", [False, True])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_questions_with_answers(order: tuple[int, ...], own_ids: bool, tmp_path: Path) -> None:
    references = lines(tmp_path / "q.jsonl", [{**q, "answer": w} for q, w in zip(ASKED, WORDS)])
    predictions = lines(tmp_path / "p.jsonl", answers(order, own_ids))
    for questions in (None, references):
        result = score_files("exact_upper", predictions, references, questions)
        assert result["verdicts"] == {"img_a": 1, "img_a#2": 1, "img_b": 0}
        assert result["legacy"]["score"] == pytest.approx(200 / 3)


def test_a_reference_file_in_another_order_is_joined_by_the_text(tmp_path: Path) -> None:
    questions = lines(tmp_path / "q.jsonl", ASKED)
    references = lines(tmp_path / "r.jsonl", [{**ASKED[i], "answer": WORDS[i]} for i in (1, 2, 0)])
    result = score_files("exact_upper", lines(tmp_path / "p.jsonl", answers()), references, questions)
    assert result["verdicts"] == {"img_a": 1, "img_a#2": 1, "img_b": 0}


def test_llavas_textvqa_questions_meet_textvqas_own_annotations(tmp_path: Path) -> None:
    """The questions' ids are pictures; the annotations have ids of their own, and the picture and the question beside."""
    data = [
        {"question_id": 34602 + i, "image_id": q["question_id"], "question": q["text"].split("\n")[0].lower(),
         "answers": [w] * 10}
        for i, (q, w) in enumerate(zip(ASKED, WORDS))
    ]  # fmt: skip
    (tmp_path / "val.json").write_text(json.dumps({"data": data[::-1]}))
    questions, predictions = lines(tmp_path / "q.jsonl", ASKED), lines(tmp_path / "p.jsonl", answers((1, 2, 0)))
    result = score_files("vqa_soft10", predictions, tmp_path / "val.json", questions)
    assert result["verdicts"] == {"img_a": 1, "img_a#2": 1, "img_b": 0}
    data[1]["question"] = "another question"
    (tmp_path / "val.json").write_text(json.dumps({"data": data}))
    with pytest.raises(UserError, match="img_a of the question file has no entry"):
        score_files("vqa_soft10", predictions, tmp_path / "val.json", questions)


def test_what_cannot_be_told_apart_is_refused() -> None:
    questions = [{**q, "answer": w} for q, w in zip(ASKED, WORDS)]
    with pytest.raises(UserError, match="img_a occurs more than once in the reference file"):
        score("exact_upper", answers(), [*questions, questions[0]])
    bare = [{k: v for k, v in row.items() if k != "prompt"} for row in answers()]
    with pytest.raises(UserError, match="img_a occurs more than once in predictions"):
        score("exact_upper", bare, questions)


def test_answers_that_are_all_empty_are_labelled() -> None:
    questions = [{"question_id": i, "text": "What?", "answer": "yes"} for i in range(2)]
    for texts, labels in ((["", " \n"], [ALL_EMPTY]), (["", "yes"], [])):
        rows = [{"question_id": i, "text": text} for i, text in enumerate(texts)]
        assert score("exact_upper", rows, questions)["labels"] == labels
    rows = [{"question_id": i, "text": ""} for i in range(2)]
    assert score("yes_no", rows, questions)["score"] == 100  # the published rule takes nothing for a yes: hence the label


def test_pope_as_published(tmp_path: Path) -> None:
    """JSON lines in a .json, key `label`. By hand: TP 2, FP 1, TN 1, FN 0."""
    rows = [{"question_id": i, "image": f"x_{i}.jpg", "text": "Is there a dog?", "label": ("yes", "no")[i % 2]} for i in range(4)]
    file = lines(tmp_path / "coco_pope_random.json", rows)
    predictions = lines(tmp_path / "p.jsonl", [{"question_id": i, "text": "Yes" if i < 3 else "No"} for i in range(4)])
    result = score_files("yes_no", predictions, file)
    for form in ("legacy", "clean"):
        found = result[form]
        assert (found["score"], found["recall"], found["F1"]) == (75, 100, pytest.approx(80))
        assert found["precision"] == pytest.approx(200 / 3) and "mean_F1" not in found
    with pytest.raises(UserError, match=r"coco_pope_random\.json, record 2 \(question_id 1\): answer is 'maybe'"):
        lines(file, [rows[0], {**rows[1], "label": "maybe"}, *rows[2:]])
        score_files("yes_no", predictions, file)


def test_pope_by_category_as_llavas_question_file_has_it() -> None:
    """Three categories whose F1 are 80, 0 and 100: their mean is POPE's number, and not the F1 of all."""
    gold, said = ["yes", "no", "yes", "no"], {"a": "yes yes yes no", "b": "no no no no", "c": "yes no yes no"}
    questions = [{"question_id": f"{c}{i}", "category": c, "text": "Is it?", "label": gold[i]} for c in said for i in range(4)]
    rows = [{"question_id": f"{c}{i}", "text": t} for c in said for i, t in enumerate(said[c].split())]
    clean = score("yes_no", rows, questions)["clean"]
    assert [round(clean[f"F1:{c}"], 6) for c in said] == [80, 0, 100] and clean["mean_F1"] == pytest.approx(60)
    assert [clean[f"accuracy:{c}"] for c in said] == [75, 50, 100] and clean["mean_accuracy"] == 75 == clean["score"]
    assert clean["F1"] == pytest.approx(2 * 4 / (2 * 4 + 1 + 2) * 100)
