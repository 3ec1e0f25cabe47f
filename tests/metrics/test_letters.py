"""The one reader of option letters: what it reads, what it must not read, and whose letters it knows."""

from __future__ import annotations

import pytest

from hide_llava.metrics import score
from hide_llava.metrics.filters import option_letter
from hide_llava.metrics.letters import option_letters, option_texts
from hide_llava.metrics.mathvista import infer_option
from hide_llava.metrics.scienceqa import parse_coin, parse_hide

CHOICES = ["a circle", "a triangle", "a square", "none of the options"]
READ = {
    # the letter itself, in the forms that models write it
    "B": "B", " b ": "B", "(b)": "B", "[B]": "B", "B.": "B", "b) dog": "B", "B: dog": "B", "A.foo": "A", "A: foo": "A",
    "B. rises": "B", "(B) rises": "B", "B - rises": "B", "**B**": "B", '"B"': "B", "'B'": "B", "\\boxed{B}": "B",
    "<answer>B</answer>": "B", "B\nThe price rises.": "B", "B, because it rises": "B", "B because it rises": "B",
    "A because it falls": "A",
    # said of the answer
    "Answer: C": "C", "answer:B": "B", "Answer (B)": "B", "Answer: **D**": "D", 'The answer is "B"': "B",
    "The answer is 'B'": "B", "The answer is (B).": "B", "The answer is: (C) flat": "C", "The answers are B": "B",
    "the answer is b": "B", "the answer is b.": "B", "Answer: I think it is C": "C", "Answer: A": "A",
    "The answer would most likely be C": "C", "The answer is B. Note that A is a distractor": "B",
    "The final answer is $\\boxed{\\text{D}}$.": "D", "A. up\nB. down\nThe answer is B": "B",
    "Option A is wrong. The answer is C.": "C", "Option A is wrong, option C is right": "C",
    # said of the option, or of the letter
    "The correct option is D.": "D", "option (c)": "C", "Option A": "A", "C is correct": "C", "A is correct": "A",
    "B is correct since A is wrong": "B", "I am sure that B is the right answer": "B", "I think it is C": "C",
    "It's C": "C", "it is b": "B", "It can't be A. It must be B.": "B", "I choose B": "B", "I'd go with C.": "C",
    "It rises. B": "B", "I can't process this file. B": "B",
    # words, pronouns, articles and abbreviations are no letters
    "": None, "Because": None, "a dog": None, "AB": None, "Yes": None, "A man would say so": None, "There is a cat": None,
    "The answer is a falling price": None, "Answer: A falling price": None, "The answer is apple": None,
    "The choice is a square.": None, "I do not know": None, "Answer: I do not know": None, "None of the choices": None,
    "U.S. exports": None, "Vitamin C is in it": None, "Let A be the set": None,
    # several, or one that is ruled out
    "A or B": None, "A, B": None, "A and B": None, "both A and B": None, "The answer is A or B": None,
    "The answer is B. The answer is C.": None, "A. up\nB. down\nC. flat": None, "The answer is not B": None,
    "C is not correct": None,
}  # fmt: skip


@pytest.mark.parametrize("text, letter", READ.items())
def test_what_is_read(text: str, letter: str | None) -> None:
    assert option_letter(text) == letter
    assert option_letter(text, "ABCD") == letter


@pytest.mark.parametrize(
    "text, letter",
    [
        ("The answer is a triangle.", "B"),
        ("The correct option is a square", "C"),
        ("The choice is a square.", "C"),
        ("a triangle", "B"),
        ("The answer is B.", "B"),
        ("None of the options", "D"),
        ("None of the choices", None),
        ("a circle or a square", None),
        ("F", None),
        ("The answer is E.", None),
    ],
)
def test_the_options_texts_are_read_and_other_letters_are_not(text: str, letter: str | None) -> None:
    assert option_letter(text, "ABCD", CHOICES) == letter


@pytest.mark.parametrize(
    "record, letters",
    [
        ({"choices": ["x", "y"]}, "AB"),
        ({"options": ["x", "y", "z"]}, "ABC"),
        ({"options": {"B": "y", "A": "x"}}, "AB"),
        ({"text": "Which?\nA. x\nB. y\nC. z\nD. w"}, "ABCD"),
        ({"text": "Which? (A) x (B) y"}, "AB"),
        ({"text": "Which?\nA. x\nB. y", "answer": "D"}, "ABCDEFGHIJKLMNOPQRSTUVWXYZ"),  # not the list of its options
        ({"text": "A. Einstein was who?"}, "ABCDEFGHIJKLMNOPQRSTUVWXYZ"),
    ],
)
def test_letters_of_a_question(record: dict, letters: str) -> None:
    assert option_letters(record) == letters


def test_texts_of_a_question_follow_its_letters() -> None:
    assert option_texts({"options": {"B": "y", "A": "x"}}) == ["x", "y"] and option_texts({"text": "A. x\nB. y"}) == []


def test_the_clean_forms_use_it_and_the_published_ones_stay() -> None:
    for text, letter in READ.items():
        rows = [{"question_id": 1, "text": text}]
        for metric in ("option_letter_hide", "option_letter_coin", "option_exact_local", "exact_squeezed"):
            for gold in "ABCD":
                question = [{"question_id": 1, "text": "Which?", "answer": gold, "choices": ["p1", "p2", "p3", "p4"]}]
                result = score(metric, rows, question)
                assert result["clean"]["score"] == 100 * (letter == gold), (metric, text, gold)
                published = {
                    "option_letter_hide": parse_hide(text) == gold,
                    "option_letter_coin": parse_coin(text) == gold,
                    "option_exact_local": text.strip().upper() == gold,
                    "exact_squeezed": text.lower().replace(" ", "").replace(".", "") == gold.lower(),
                }[metric]
                assert result["legacy"]["score"] == 100 * published, (metric, text, gold)


def test_mathvista_reads_choices_the_same_way() -> None:
    for text, gold, legacy, clean in (
        ("The answer is a triangle.", "a triangle", 100, 100),
        ("The answer is a triangle.", "a circle", 0, 0),
        ("The correct option is a square", "a square", 100, 100),
        ("None of the options", "none of the options", 100, 100),
        ("Answer: **D**", "none of the options", 100, 100),
    ):
        question = [{"question_id": 1, "text": "q", "answer": gold, "answer_type": "text", "choices": CHOICES}]
        result = score("mathvista", [{"question_id": 1, "text": text}], question)
        assert (result["legacy"]["score"], result["clean"]["score"]) == (legacy, clean), text
    assert infer_option("The answer is (B) a triangle", CHOICES) == "B"
