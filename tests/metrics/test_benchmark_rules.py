"""Rules of MLLM-DCL, MLLM-ACL, TriGap and general benchmarks, row by row."""

from __future__ import annotations

import random

import pytest

from hide_llava.errors import UserError
from hide_llava.metrics import METRICS, score
from hide_llava.metrics.filters import has_words, levenshtein, numbers, yes_no


def one(metric: str, said: str, gold: object, **fields) -> tuple[float, float]:
    """(legacy, clean) of one answer, as fractions."""
    result = score(metric, [{"question_id": 1, "text": said}], [{"question_id": 1, "answer": gold, **fields}])
    return round(result["legacy"]["score"] / 100, 6), round(result["clean"]["score"] / 100, 6)


@pytest.mark.parametrize(
    "metric, text, gold, legacy, clean",
    [
        # MLLM-DCL: what eval_ai2d.py of MLLM-CL gave when it was run
        ("substring_wordish", "10", "1", 1, 0),
        ("substring_wordish", "there are 10 cars", "1", 1, 0),
        ("substring_wordish", "no", "No.", 1, 1),
        ("substring_wordish", "the answer is b", "A", 1, 0),
        ("substring_wordish", "Not a problem", "A", 1, 1),
        ("substring_wordish", "0", "10", 0, 0),
        # and the other quirks of its four scripts, and of MLLM-ACL's
        ("substring_wordish", "10m2", "0m2", 1, 0),
        ("substring_wordish", "16", "1", 1, 0),
        ("substring_wordish", "pineapple", "app", 1, 0),
        ("substring_wordish", "one pineapple", "app", 0, 0),
        ("substring_wordish", "anything", "", 1, 0),
        ("substring_wordish", "", "", 1, 0),
        ("substring_wordish", "", "yes", 0, 0),
        ("substring_wordish", "Unanswerable", "unanswerable", 0, 1),
        ("substring_wordish", "turn left now", "turn left", 1, 1),
        ("substring_wordish", "return leftovers", "turn left", 1, 0),
        ("substring_wordish", "Yes.", "yes", 1, 1),
        ("substring_lower", "In the Left lung", "left lung", 1, 1),
        ("substring_lower", "abnormal", "normal", 1, 0),
        ("substring_lower", "lung", "left lung", 0, 0),
        ("substring_lower", "Unanswerable, but lung", "lung", 0, 1),
        ("exact_squeezed", "Y e s.", "yes", 1, 0),
        ("exact_squeezed", "Yes.", "Yes", 1, 1),
        ("exact_squeezed", "A) up", "A", 0, 1),
        ("exact_squeezed", "A", "A.", 0, 1),
        ("exact_squeezed", "goes up", "goes up", 0, 1),
        ("exact_squeezed", "Yes, it will rise", "Yes", 0, 1),
        ("exact_squeezed", "Unanswerable", "unanswerable", 0, 1),
        ("substring_squeezed", "12", "2", 1, 0),
        ("substring_squeezed", "There are 2.", "2", 1, 1),
        ("substring_squeezed", "1 2", "12", 1, 0),
        ("substring_squeezed", "", "", 1, 0),
        ("option_exact_local", " b ", "B", 1, 1),
        ("option_exact_local", "B. a button", "B", 0, 1),
        ("option_exact_local", "The answer is (C).", "C", 0, 1),
        ("option_exact_local", "Z", "B", 0, 0),
        ("option_exact_local", "a button", "A", 0, 0),
        # TriGap, and the standard rules beside its own
        ("anls_prism", "Hello", " hello", 1, 1),
        ("anls_prism", "hexxx", "hello", 0.4, 0.4),
        ("anls", "hexxx", "hello", 0, 0),
        ("anls", "helxx", "hello", 0.6, 0.6),
        ("anls", "abxx", "abcd", 0.5, 0.5),  # the challenge's script zeroes what is BELOW 0.5
        ("anls_prism", "", "", 1, 0),
        ("anls_prism", "", "x", 0, 0),
        ("anls_prism", "b", ["a", "b"], 1, 1),
        ("anls", "new  york", "New York", 1, 1),
        ("anls_prism", "new  york", "New York", 8 / 9, 8 / 9),
        ("relaxed_chart", "95", "100", 1, 1),
        ("relaxed_chart", "94.9", "100", 0, 0),
        ("relaxed_chart", "5%", "5", 0, 1),
        ("relaxed_chart", "0.0", "0", 0, 1),
        ("relaxed_chart", "0.01", "0", 0, 0),
        ("relaxed_chart", "1,200", "1200", 0, 1),
        ("relaxed_chart", "Brazil.", "brazil", 0, 1),
        ("relaxed_chart", "brazil", "Brazil", 1, 1),
        ("relaxed_chart", "-95", "-100", 1, 1),
        ("relaxed_chart", "", "", 1, 0),
    ],
)
def test_answer_table(metric, text, gold, legacy, clean) -> None:
    assert one(metric, text, gold) == (pytest.approx(legacy, abs=1e-6), pytest.approx(clean, abs=1e-6))


@pytest.mark.parametrize(
    "image, question, text, gold, legacy, clean",
    [
        ("images/AI2D_1.png", "", "Leaf", "leaf", 1, 1),
        ("images/AI2D_1.png", "", "leaf ", "leaf", 0, 1),
        ("images/TQA_1.png", "", "a leaf", "leaf", 0, 0),
        ("images/SciVerse_9.png", "", "leaf", "leaf", 1, 1),
        ("images/SciVerse_9.png", "", "a leaf", "leaf", 0, 0),
        ("images/VQA_9.png", "", "a leaf", "leaf", 0, 0),
        ("images/map_1.png", "Which states are red?", "Ohio,Utah", "Ohio,Utah", 1, 1),
        ("images/map_1.png", "Which states are red?", "Ohio, Utah", "Ohio,Utah", 0.5, 1),
        ("images/map_1.png", "Which states are red?", "Ohio,Utah,Iowa,Texas", "Ohio,Utah", 1, 0.5),
        ("images/map_1.png", "Which states are red?", "Ohio", "Ohio,Ohio,Utah", 2 / 3, 0.5),
        ("images/map_1.png", "Is it red?", "It is Ohio", "ohio", 1, 1),
        ("images/map_1.png", "Is it red?", "unknown", "no", 1, 0),
        ("images/new_1.png", "Is it red?", "unknown", "no", 1, 0),  # an unknown prefix is MapQA
        ("images/VQA_1.png", "", "Unanswerable", "unanswerable", 0, 1),
    ],
)
def test_science_goes_by_file_name(image, question, text, gold, legacy, clean) -> None:
    got = one("sci_mixed", text, gold, image=image, text=question)
    assert got == (pytest.approx(legacy, abs=1e-6), pytest.approx(clean, abs=1e-6))


def test_science_reads_the_stored_prompt_in_legacy_only() -> None:
    questions = [{"question_id": 1, "answer": "Ohio,Utah", "image": "m.png", "text": "Which states?"}]
    rows = [{"question_id": 1, "text": "Utah", "prompt": "shortened"}]
    result = score("sci_mixed", rows, questions)
    assert (result["legacy"]["score"], result["clean"]["score"]) == (0, 50)
    assert result["clean"]["source:MapQA"] == 50
    with pytest.raises(UserError, match="image"):
        score("sci_mixed", rows, [{"question_id": 1, "answer": "x"}])


def test_strict_equality_stands_beside_the_substring_score() -> None:
    questions = [{"question_id": i, "answer": "no", "task": "Count"} for i in range(4)]
    rows = [{"question_id": i, "text": t} for i, t in enumerate(["No.", "no, it is not", "yes", "nothing"])]
    for metric, legacy in (("substring_wordish", 75), ("substring_lower", 75), ("substring_squeezed", 75)):
        result = score(metric, rows, questions)
        assert (result["legacy"]["score"], result["clean"]["score"], result["clean"]["strict"]) == (legacy, 50, 25)
    assert result["legacy"]["count"] == 75
    assert score("substring_squeezed", rows, [{**q, "task": "Depth"} for q in questions])["legacy"]["count"] is None


FORMULA = "Handwritten Mathematical Expression Recognition"


@pytest.mark.parametrize(
    "kind, text, gold, hit",
    [
        ("Doc-oriented VQA", "It is STOP here", ["stop"], 1),
        ("Doc-oriented VQA", "st\nop", ["stop"], 1),
        ("Doc-oriented VQA", "s top", ["stop"], 0),
        ("Digit String Recognition", "5", ["6", "5"], 1),
        (FORMULA, "x ^ 2", ["x^2"], 1),
        (FORMULA, "X^2", ["x^2"], 0),
        ("Doc-oriented VQA", "x", "x", 1),
        ("Doc-oriented VQA", "anything", [" "], 2),  # 2: legacy yes, clean no
    ],
)
def test_ocrbench(kind, text, gold, hit) -> None:
    result = score("ocrbench", [{"question_id": 1, "text": text}], [
        {"question_id": 1, "answer": gold, "answer_type": kind}])  # fmt: skip
    assert result["legacy"]["score"] == pytest.approx(0.1 * bool(hit))  # hits / 10, not percent of one row
    assert result["clean"]["score"] == (100 if hit == 1 else 0)


def test_ocrbench_groups_and_unknown_kinds() -> None:
    kinds = ["Regular Text Recognition", "Irregular Text Recognition", FORMULA]
    questions = [{"question_id": i, "answer": "a", "answer_type": k} for i, k in enumerate(kinds)]
    rows = [{"question_id": i, "text": t} for i, t in enumerate(["a", "b", "a"])]
    result = score("ocrbench", rows, questions)
    assert result["legacy"]["hits:text recognition"] == 1 and result["legacy"]["hits:formula"] == 1
    assert result["clean"]["text recognition"] == 50 and result["clean"]["formula"] == 100
    with pytest.raises(UserError, match="answer_type is 'Poem'"):
        score("ocrbench", rows[:1], [{"question_id": 0, "answer": "a", "answer_type": "Poem"}])


def test_app_counts_unanswered_questions_and_says_it_is_local() -> None:
    questions = [{"question_id": f"ALL_{i}", "answer": "A"} for i in range(4)]
    result = score(
        "option_exact_local", [{"question_id": "ALL_0", "text": "A"}], questions, options={"allow_partial": True}
    )
    assert result["legacy"] == {"score": 25, "n": 4} and any("APP-local" in label for label in result["labels"])
    with pytest.raises(UserError, match="one option letter"):
        score("option_exact_local", [{"question_id": 1, "text": "A"}], [{"question_id": 1, "answer": "AB"}])


def test_levenshtein_against_the_definition() -> None:
    def naive(a: str, b: str) -> int:
        if not a or not b:
            return len(a) + len(b)
        return min(naive(a[1:], b) + 1, naive(a, b[1:]) + 1, naive(a[1:], b[1:]) + (a[0] != b[0]))

    draw = random.Random(0)
    for _ in range(40):
        a, b = ("".join(draw.choices("abc", k=draw.randint(0, 5))) for _ in range(2))
        assert levenshtein(a, b) == naive(a, b)


# ------------------------------------------------------------------------------------------------ VQA, boxes, GQA


@pytest.mark.parametrize(
    "text, answers, legacy, clean",
    [
        ("cat", ["cat"] * 3 + ["dog"] * 7, 0.9, 0.9),
        # all ten alike: today's script normalises neither side, the older one always the prediction
        ("Two", ["2"] * 10, 1, 0),
        ("two", ["two"] * 10, 0, 1),
        ("cat", ["Cat"] * 10, 0, 0),
        ("Cat", ["Cat"] * 10, 0, 1),
        ("cat", ["cat."] * 10, 0, 0),
        ("the cat", ["cat"] * 10, 1, 0),
        ("The dog", ["The dog"] * 10, 0, 1),
        ("a", ["a"] * 10, 0, 1),
        ("Black.", ["black"] * 10, 1, 0),
        (" cat\n", ["cat"] * 10, 1, 1),
        # they differ: today's script normalises both sides, the older one of the answers only the punctuation
        ("Two", ["2"] * 9 + ["dog"], 1, 1),
        ("cat", ["cat."] * 9 + ["dog"], 1, 1),
        ("Cat", ["Cat"] * 9 + ["dog"], 0, 1),
        ("Seven", ["Seven"] * 9 + ["7"], 0.3, 1),
        ("two", ["two"] * 9 + ["2"], 0.3, 1),
        ("none", ["none"] + ["nothing"] * 9, 0, 0.3),
        ("dont know", ["don't know"] * 9 + ["dog"], 1, 1),
        ("dog", ["a dog"] * 3 + ["The Dog"] * 3 + ["cat"] * 4, 0, 1),
        ("red, blue", ["red blue"] * 5 + ["red"] * 5, 1, 1),
        ("1,000", ["1000"] * 3 + ["ten"] * 7, 0.9, 0.9),
        ("no", ["yes"] * 8 + ["no"] * 2, 0.6, 0.6),
        ("cat", ["cat"] + ["dog"] * 9, 0.3, 0.3),
        ("", ["cat"] * 10, 0, 0),
    ],
)
def test_standard_vqa_accuracy(text, answers, legacy, clean) -> None:
    result = score("vqa_standard", [{"question_id": 1, "text": text}], [{"question_id": 1, "answers": answers}])
    got = (result["legacy"]["score"] / 100, result["clean"]["score"] / 100)
    assert got == (pytest.approx(legacy), pytest.approx(clean))
    assert (result["headline"], result["score"]) == ("clean", result["clean"]["score"])  # today's official script
    dicts = [{"question_id": 1, "answers": [{"answer": a, "answer_id": i} for i, a in enumerate(answers)]}]
    assert score("vqa_standard", [{"question_id": 1, "text": text}], dicts)["legacy"] == result["legacy"]


def test_mean_iou_and_gqa_types_in_both_variants() -> None:
    questions = [{"question_id": i, "answer_bbox": "[0.0, 0.0, 1.0, 1.0]"} for i in range(2)]
    rows = [{"question_id": 0, "text": "[0.00,0.00,1.00,1.00]"}, {"question_id": 1, "text": "[0.0, 0.0, 0.5, 1.0]"}]
    result = score("iou50", rows, questions)
    assert (result["clean"]["score"], result["clean"]["mean_iou"]) == (50, 75)
    assert result["legacy"]["mean_iou"] == pytest.approx(100 * (1.0 + 0.5) / 2)  # "1.00" → "1.0" and "1.0" → "1."
    kinds = [("query", "rel", "red"), ("verify", "obj", "yes"), ("verify", "obj", "no")]
    questions = [{"question_id": i, "answer": a, "types": {"structural": s, "semantic": m}}
                 for i, (s, m, a) in enumerate(kinds)]  # fmt: skip
    rows = [{"question_id": i, "text": t} for i, t in enumerate(["red", "yes", "yes"])]
    result = score("gqa_exact", rows, questions)
    for variant in ("legacy", "clean"):
        assert result[variant]["answer:open"] == 100 and result[variant]["answer:binary"] == 50
        assert result[variant]["structural:verify"] == 50 and result[variant]["semantic:rel"] == 100


# -------------------------------------------------------------------------------------------------------- yes / no


def test_pope_numbers_by_hand() -> None:
    """Gold y y n n; said yes, no, yes, unreadable. TP 1, predicted yes 2, gold yes 2."""
    questions = [{"question_id": i, "answer": a} for i, a in enumerate(["yes", "yes", "no", "no"])]
    rows = [{"question_id": i, "text": t} for i, t in enumerate(["Yes, there is.", "No.", "yes", "maybe"])]
    result = score("yes_no", rows, questions)
    clean, legacy = result["clean"], result["legacy"]
    assert (clean["score"], clean["precision"], clean["recall"], clean["F1"]) == (25, 50, 50, 50)
    assert (clean["yes_ratio"], clean["unreadable"]) == (50, 1)
    assert (legacy["score"], legacy["yes_ratio"]) == (25, 75)  # "maybe" is a yes
    assert legacy["precision"] == pytest.approx(100 / 3) and legacy["F1"] == pytest.approx(40)
    with pytest.raises(UserError, match="yes or no"):
        score("yes_no", rows[:1], [{"question_id": 0, "answer": "maybe"}])


@pytest.mark.parametrize(
    "text, pope, mme, clean",
    [
        ("No.", "no", "no", "no"),
        ("There is not a dog", "no", None, None),
        ("NO", "yes", "no", "no"),
        ("Yes. There is no dog", "yes", "yes", "yes"),
        ("not sure", "no", "no", None),
        ("", "yes", None, None),
        ("The answer is yes", "yes", None, "yes"),
        ("yes and no", "no", "yes", "yes"),
        ("I know", "yes", None, None),
    ],
)
def test_three_readings_of_yes_and_no(text, pope, mme, clean) -> None:
    from hide_llava.metrics.yes_no import parse_mme, parse_pope

    assert (parse_pope(text), parse_mme(text), yes_no(text)) == (pope, mme, clean)


def test_mme_pairs_by_hand() -> None:
    """Two images of one category: one pair right, one half right: accuracy 75, accuracy+ 50, sum 125."""
    questions = [{"question_id": i, "answer": ("yes", "no")[i % 2], "image": f"{i // 2}.jpg", "category": "count"}
                 for i in range(4)]  # fmt: skip
    rows = [{"question_id": i, "text": t} for i, t in enumerate(["Yes", "No", "Yes", "Yes"])]
    for variant in ("legacy", "clean"):
        result = score("mme", rows, questions)[variant]
        assert (result["score"], result["accuracy_plus"], result["sum:count"]) == (75, 50, 125)
        assert "perception" not in result  # needs all its ten categories
    with pytest.raises(UserError, match="has 1 questions"):
        score("mme", rows[:3], questions[:3])
    four = ["commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning"]
    questions = [
        {"question_id": f"{c}{i}", "answer": "yes", "image": "a.jpg", "category": c} for c in four for i in (0, 1)
    ]
    rows = [{"question_id": q["question_id"], "text": "yes"} for q in questions]
    assert score("mme", rows, questions)["clean"]["cognition"] == 800


# -------------------------------------------------------------------------------------------------- shared readers


@pytest.mark.parametrize(
    "text, gold, found",
    [
        ("there is 1 car", "1", True),
        ("1.5", "1", False),
        ("0.1", "1", False),
        ("1,000", "1", False),
        ("1, 2", "1", True),
        ("up.", "up", True),
        ("C++ code", "c++", True),
        ("x", "", False),
    ],
)
def test_whole_words(text, gold, found) -> None:
    assert has_words(text, gold) is found


def test_numbers_of_a_text() -> None:
    assert numbers("from 1,200 to -3.5, then .5 and 7.") == [1200, -3.5, 0.5, 7]
    assert numbers("12, 13") == [12, 13] and numbers("none") == []


def test_answer_lists_are_checked() -> None:
    with pytest.raises(UserError, match="string or a list"):
        score("anls", [{"question_id": 1, "text": "a"}], [{"question_id": 1, "answer": [None]}])
    assert all(metric.name == name for name, metric in METRICS.items())


# ------------------------------------------------------------------------------------------------------- MLLM-CTBench


@pytest.mark.parametrize(
    "rule, text, gold, legacy, clean",
    [
        ("words", "<think>red? no</think><answer> A kite </answer>", "kite", 1, 1),
        ("words", "<answer>dog</answer> or <ANSWER>kite</ANSWER>", "kite", 1, 1),  # the last one counts
        ("words", "<think>a kite", "kite", 0, 0),  # it was cut off while it thought
        ("words", "it is a kite</answer>", "kite", 1, 1),
        ("words", "<answer>catalogue</answer>", "cat", 1, 0),
        ("words", "<answer>oil on canvas paint</answer>", "oil on canvas, painted", 1, 0),  # alike: 19 of 21 letters
        ("words", "<answer>watercolour</answer>", "oil on canvas", 0, 0),
        ("words", "<answer>x</answer>", "", 0, 0),
        ("words", "", "kite", 0, 0),
        ("words", "<answer>kite!</answer>", "Kite.", 1, 1),
        ("words", "<answer>B</answer>", "<think>so</think> B", 0, 1),
        ("choice", "<answer>(b) rises</answer>", "B", 1, 1),
        ("choice", "<answer>The answer is C.</answer>", "C", 1, 1),
        ("choice", "<answer>a dog</answer>", "A", 1, 0),
        ("choice", "<answer>D</answer>", "A", 0, 0),
        ("choice", "<answer>dovish</answer>", "dovish", 1, 1),
        ("choice", "<answer>rises</answer>", "B. rises", 0, 0),
        ("number", "<answer>about 1,200 or 12</answer>", "12", 1, 1),
        ("number", "<answer>12.0004</answer>", "12", 1, 1),
        ("number", "<answer>12.01</answer>", "12", 0, 0),
        ("number", "<answer>twelve</answer>", "12", 0, 0),
        ("result", "<answer>Yes, it is</answer>", "yes", 1, 1),
        ("result", "<answer>There may be no way: yes</answer>", "yes", 0, 0),
        ("result", "<answer>C) 4</answer>", "C", 1, 1),
        ("result", "<answer>x = 4</answer>", "4", 1, 1),
        ("result", "<answer>the triangle</answer>", "triangle", 1, 1),
    ],
)
def test_ctbench(rule: str, text: str, gold: str, legacy: float, clean: float) -> None:
    result = score("ctbench", [{"question_id": 1, "text": text}], [{"question_id": 1, "answer": gold}], options={"rule": rule})
    assert (result["legacy"]["score"], result["clean"]["score"]) == (100 * legacy, 100 * clean)


def test_ctbench_has_four_rules() -> None:
    with pytest.raises(UserError, match=r"Option rule is 'words2'; it may be .words. or .choice. or .number. or .result"):
        score("ctbench", [{"question_id": 1, "text": "x"}], [{"question_id": 1, "answer": "x"}], options={"rule": "words2"})
