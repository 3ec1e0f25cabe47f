"""What kind of mistake each wrong answer is: a count that is off by one, for example, or a wrong format."""

from __future__ import annotations

import re

from hide_llava.metrics.filters import has_words
from hide_llava.metrics.vqa import ARTICLES, NUMBERS

KINDS = ("empty", "case", "punctuation", "article", "longer_answer", "off_by_one", "wrong_format", "other")
"""In order of precedence: the first kind that fits is counted."""

_MARKS = re.compile(r"[^\w\s]|_")
_WHOLE = re.compile(r"[-+]?\d+(?:\.0+)?")
_LETTER = re.compile(r"[A-Za-z]")


def error_profile(rows: list[dict], questions: list[dict], verdicts: dict[str, float]) -> dict[str, int]:
    """Counts of wrong answers by kind; every kind of `KINDS` is a key, and they add up to the wrong answers.

    rows: answers {question_id, text}; of two with one id the first counts. questions: {question_id, answer}, where
    answer is a string, a number or a list of them (or `answers`); a question without any cannot be classified beyond
    "empty" and "other". verdicts: {question_id: 0…1} of the clean score; a verdict of 0.5 or more is right, and a
    question without an answer row is "empty".
    """
    texts: dict[str, str] = {}
    for row in rows:
        texts.setdefault(str(row["question_id"]), str(row.get("text", "")))
    counts = dict.fromkeys(KINDS, 0)
    for question in questions:
        qid = str(question["question_id"])
        if verdicts.get(qid, 1.0) < 0.5:
            counts[kind_of(texts.get(qid, ""), gold_answers(question))] += 1
    return counts


def gold_answers(question: dict) -> list[str]:
    """The question's gold answers as strings; empty when it holds none (captions, boxes, separate files)."""
    value = question.get("answers", question.get("answer"))
    values = value if isinstance(value, list) else [value]
    return [str(v) for v in values if isinstance(v, (str, int, float)) and not isinstance(v, bool)]


def kind_of(text: str, gold: list[str]) -> str:
    """The first kind of `KINDS` that fits any of the gold answers; a wrong format has to be the form of none of them.

    An answer that is one of them and yet counts as wrong, as what one of ten people said does, is of no other kind.
    """
    if not text.strip():
        return "empty"
    if text in gold:
        return "other"
    tests = {
        "case": lambda g: text.lower() == g.lower(),
        "punctuation": lambda g: _bare(text) == _bare(g),
        "article": lambda g: _content(text) == _content(g),
        "longer_answer": lambda g: has_words(text, g),
        "off_by_one": lambda g: _off_by_one(text, g),
    }
    filled = [g for g in gold if _bare(g)]
    if found := next((kind for kind, test in tests.items() if any(map(test, filled))), None):
        return found
    return "wrong_format" if filled and form_of(text) not in map(form_of, filled) else "other"


def _bare(text: str) -> str:
    """Lower case, punctuation dropped, single spaces ("3.5" keeps its point)."""
    text = re.sub(r"(?<=\d)\.(?=\d)", "·", text.lower())
    return " ".join(_MARKS.sub(" ", text.replace("·", "\0")).replace("\0", ".").split())


def _content(text: str) -> list[str]:
    return [word for word in _bare(text).split() if word not in ARTICLES]


def _number(text: str) -> float | None:
    word = text.strip().rstrip(".").lower()
    word = NUMBERS.get(word, word)
    return float(word) if _WHOLE.fullmatch(word) else None


def _off_by_one(text: str, gold: str) -> bool:
    a, b = _number(text), _number(gold)
    return a is not None and b is not None and abs(a - b) == 1


def form_of(text: str) -> str:
    """What the answer looks like: "letter", "yes/no", "number", "short" (up to two words) or "sentence"."""
    bare = _bare(text)
    if _LETTER.fullmatch(bare):
        return "letter"
    if bare in ("yes", "no"):
        return "yes/no"
    if _number(text) is not None:
        return "number"
    return "short" if len(bare.split()) <= 2 else "sentence"
