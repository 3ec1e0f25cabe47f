"""MMBench, SEED-Bench, MMStar and MMMU: what each published script gives, and the clean rule beside it."""

from __future__ import annotations

import random

import pytest

from hide_llava.errors import UserError
from hide_llava.metrics import score
from hide_llava.metrics.exact_matching import matched_letter
from hide_llava.metrics.mmmu import chosen_letter, readings

CHOICES = ["red", "blue", "dark green"]
FIRST = {"question_id": 5, "choices": CHOICES, "answer": "B", "circle": 5, "category": "color", "l2_category": "perception"}


def one(metric: str, text: str, **fields) -> tuple[float, float]:
    """(legacy, clean) of one answer, as fractions."""
    question = {"question_id": 1, "choices": CHOICES, "category": "a", "l2_category": "b", **fields}
    result = score(metric, [{"question_id": 1, "text": text}], [question])
    return result["legacy"]["score"] / 100, result["clean"]["score"] / 100


# ------------------------------------------------------------------------------------------------------------- MMBench


@pytest.mark.parametrize(
    "text, letter",
    [
        ("B", "B"),
        ("(B).", "B"),
        ("b", None),  # no letter in lower case, and no option's text
        ("The answer is B", "B"),
        ("B because the sky is not red", "A"),  # the letter stands too far from the end, and "red" is an option
        ("B or C", None),
        ("It is dark green", "C"),
        ("red, not blue", None),
        ("predestined", "A"),  # "red" is part of it
        ("A" * 40, None),
        ("Z", "Z"),
        ("Cannot determine the answer", "Z"),
        ("The correct answer is **B**, and here is why it could not be anything else at all", "B"),
        ("Failed to obtain answer via API: B", None),
        ("", None),
    ],
)
def test_what_exact_matching_reads(text: str, letter: str | None) -> None:
    assert matched_letter(text, dict(zip("ABC", CHOICES))) == letter


def circle(k: int) -> dict:
    """Rotation k of the question, as MMBench numbers it."""
    turned = CHOICES[k:] + CHOICES[:k]
    return {**FIRST, "question_id": 5 + k * 1_000_000, "choices": turned, "answer": "ABC"[turned.index("blue")]}


def test_a_question_counts_when_every_rotation_is_right() -> None:
    other = {**FIRST, "question_id": 9, "choices": ["yes", "no"], "answer": "A", "circle": 9, "category": "scene"}
    questions = [*map(circle, range(3)), other, {**other, "question_id": 1_000_009, "choices": ["no", "yes"], "answer": "B"}]
    texts = {5: "B", 1_000_005: "A", 2_000_005: "blue", 9: "A", 1_000_009: "A"}  # the last one always says A

    def of(answers: dict, **options) -> dict:
        return score("mmbench", [{"question_id": i, "text": t} for i, t in answers.items()], questions, options=options)

    found = of(texts)
    for form in ("legacy", "clean"):
        assert found[form]["score"] == 50 and found[form]["n"] == 2
        assert (found[form]["first_rotation"], found[form]["all_rotations"]) == (100, 80)
        parts = ("l2_category:perception", "category:color", "category:scene")
        assert [found[form][part] for part in parts] == [50, 100, 0]
    assert found["verdicts"] == {"5": 1, "9": 0} and "error_profile" not in found
    assert of({**texts, 2_000_005: "not sure"})["score"] == 0
    part = of({i: t for i, t in texts.items() if i != 2_000_005}, allow_partial=True)
    assert (part["legacy"]["score"], part["clean"]["score"]) == (50, 0)  # published: of the rotations that are there
    with pytest.raises(UserError, match="lacks the first rotation, whose question_id is 5"):
        score("mmbench", [{"question_id": 1_000_005, "text": "A"}], [circle(1)])


# ------------------------------------------------------------------------------------------------- SEED-Bench and MMStar


@pytest.mark.parametrize(
    "text, gold, seed, mmstar, clean",
    [
        ("A", "A", 1, 1, 1),
        ("A.", "A", 0, 1, 1),
        ("a", "A", 0, 1, 1),
        ("(B) blue", "B", 0, 1, 1),
        ("Option C", "C", 0, 1, 1),
        ("The answer is C", "C", 0, 1, 1),
        ("Answer: C", "C", 0, 0, 1),
        ("a falling price", "A", 0, 1, 0),
        ("blue", "B", 0, 1, 1),  # its first letter
        ("dark green", "C", 0, 0, 1),
        ("", "A", 0, 0, 0),
        ("(", "A", 0, 0, 0),
    ],
)
def test_letters_of_seed_bench_and_mmstar(text: str, gold: str, seed: int, mmstar: int, clean: int) -> None:
    assert one("seed_bench", text, answer=gold) == (seed, clean)
    assert one("mmstar", text, answer=gold) == (mmstar, clean)


def test_scores_by_category() -> None:
    questions = [
        {"question_id": i, "choices": CHOICES, "answer": "A", "category": "math" if i < 3 else "logic",
         "l2_category": "geometry" if i == 0 else "numbers"} for i in range(4)
    ]  # fmt: skip
    rows = [{"question_id": i, "text": "A" if i in (0, 1) else "B"} for i in range(4)]
    for metric in ("seed_bench", "mmstar"):
        found = score(metric, rows, questions)
        for form in ("legacy", "clean"):
            assert found[form]["score"] == 50 and found[form]["math"] == pytest.approx(200 / 3) and found[form]["logic"] == 0
    assert found["legacy"]["math / geometry"] == 100 and found["clean"]["math / numbers"] == 50


# ----------------------------------------------------------------------------------------------------------------- MMMU


@pytest.mark.parametrize(
    "text, letter",
    [
        ("B", "B"),
        ("B.", "B"),
        ("(A) or (B)", "B"),  # the last one
        ("A, so it is not (B)", "B"),  # brackets come before plain letters
        ("A B", "B"),
        ("b", None),
        ("it is blue", None),  # too short to be searched for texts
        ("I would say that it is blue", "B"),
        ("I would say that it is blue and not red", "A"),
        ("", None),
    ],
)
def test_the_option_that_mmmus_parser_takes(text: str, letter: str | None) -> None:
    assert chosen_letter(text, dict(zip("ABC", CHOICES))) == letter


@pytest.mark.parametrize(
    "text, gold, legacy, clean",
    [
        ("4", "4", 1, 1),
        ("The answer is 4.", "4.0", 1, 1),
        ("x = 1,200", "1200", 1, 1),
        ("x = 3.14159", "3.14", 1, 1),
        ("1.2e3", "1200", 1, 1),
        ("between 3 and 4", "4", 1, 1),
        ("yesterday", "yes", 1, 0),
        ("it is C", "C", 1, 1),
        ("Tampa", ["Tampa", "Florida"], 1, 1),
        ("it is in Florida", ["Tampa", "Florida"], 1, 1),
        ("4 because 5 is too much", "4", 0, 0),  # only what stands behind "is" counts
        ("", "4", 0, 0),
    ],
)
def test_short_answers_of_mmmu(text: str, gold: str | list[str], legacy: int, clean: int) -> None:
    assert one("mmmu", text, question_type="open", answer=gold, category="Math") == (legacy, clean)


def test_readings_of_several_lines() -> None:
    assert readings("So x is 2\nthus y = 3") == {2.0, 3.0}


def test_mmmu_draws_as_published_and_the_clean_form_does_not() -> None:
    """Python's generator with seed 42, over the questions whose answer names no option, in the order of the file."""
    questions = [
        {"question_id": i, "question_type": "multiple-choice", "choices": CHOICES, "answer": "A",
         "category": "Art" if i < 10 else "Physics"} for i in range(20)
    ]  # fmt: skip
    rows = [{"question_id": i, "text": "A" if i == 3 else "no idea"} for i in range(20)]
    draw = random.Random(42)
    drawn = {i: draw.choice(["A", "B", "C"]) for i in range(20) if i != 3}
    hits = {**{i: letter == "A" for i, letter in drawn.items()}, 3: True}
    found = score("mmmu", rows, questions)
    assert found["legacy"]["score"] == pytest.approx(5 * sum(hits.values())) and found["legacy"]["drawn"] == 19
    assert found["legacy"]["subject:Art"] == found["legacy"]["domain:Art and Design"] == 10 * sum(hits[i] for i in range(10))
    assert found["clean"]["score"] == 5 and found["clean"]["domain:Science"] == 0
    assert score("mmmu", rows, questions)["legacy"] == found["legacy"]
    with pytest.raises(UserError, match="question_type is 'essay'; MMMU has multiple-choice and open"):
        score("mmmu", rows, [{**questions[0], "question_type": "essay"}])
    with pytest.raises(UserError, match="answer is 'D', expected the letter of one of its choices"):
        score("mmmu", rows, [{**questions[0], "answer": "D"}])
