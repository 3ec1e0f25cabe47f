"""MLLM-CTBench's answers (arXiv 2508.08275): a chain of thought, then the answer between <answer> and </answer>.

The legacy form repeats the rules by which its code scores LLaVA (yueluoshuangtian/MLLM-CTBench:eval/accuracy/reeval_clmm.py);
those for Qwen2.5-VL are others. Option `rule`: which of them a task is scored by.
"""

from __future__ import annotations

import re
import string
from difflib import SequenceMatcher

from hide_llava.metrics import filters as f
from hide_llava.metrics.base import AnswerMetric, register
from hide_llava.metrics.filters import ByOption, Rule

ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
THOUGHT = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL | re.IGNORECASE)
MARKS = re.compile(r"</?answer>", re.IGNORECASE)
LETTERS = "ABCDEFGH"
FIRST_LETTER = re.compile(r"\(?\s*([A-H])\s*(?:[.):,]|$)", re.IGNORECASE)
ALONE = re.compile(r"\b([A-H])\b")
LAST_NUMBER = re.compile(r"-?\d+\.?\d*")
PUNCTUATION = str.maketrans(dict.fromkeys(string.punctuation, " "))
CLOSE, LONG, ALIKE = 1e-3, 8, 0.6  # between numbers; characters of a gold answer from which on a likeness counts, and which


def answer_of(text: str) -> str:
    """What the last answer marks hold; without them all that is no thought, of which the last may not be closed."""
    if found := ANSWER.findall(text):
        return found[-1].strip()
    return MARKS.sub(" ", THOUGHT.sub(" ", text)).strip()


def plain(text: str) -> str:
    """Lower case, a space for each mark of punctuation, and single spaces."""
    return f.single_spaces(text.lower().translate(PUNCTUATION))


def letter(text: str) -> str | None:
    """A to H at the beginning, or else the first that stands alone: an article counts."""
    text = text.strip()
    found = FIRST_LETTER.match(text) or ALONE.search(text.upper())
    return found[1].upper() if found else None


def number(text: str) -> float | None:
    """The last one of a text."""
    found = LAST_NUMBER.findall(text.replace(",", ""))
    return float(found[-1]) if found else None


def same_number(text: str, gold: str) -> bool:
    said, known = number(text), number(gold)
    return said is not None and known is not None and abs(said - known) < CLOSE


def same_words(text: str, gold: str) -> bool:
    """The gold answer is in the answer, also inside a word, or is long and much like it."""
    said, known = plain(text), plain(gold)
    if not known:
        return False
    return known in said or (len(known) > LONG and SequenceMatcher(None, known, said).ratio() >= ALIKE)


def same_choice(text: str, gold: str) -> bool:
    """The same letter, where both have one; else the same words."""
    said, known = letter(text), letter(gold)
    return said == known if said and known else same_words(text, gold)


def same_result(text: str, gold: str) -> bool:
    """By what the gold answer is: a letter, yes or no (within the first three words), a number, words."""
    known = gold.strip()
    if known.upper() in [*LETTERS]:
        return same_choice(text, gold)
    if known.lower() in ("yes", "no"):
        return known.lower() in plain(text).split()[:3]
    return same_number(text, gold) or same_words(text, gold)


def clean_number(text: str, record: dict, options: dict) -> float:
    """The last number that is said, as numbers are read everywhere else here."""
    said, known = f.numbers(answer_of(text)), f.numbers(answer_of(record["answer"]))
    return float(bool(said) and bool(known) and abs(said[-1] - known[-1]) < CLOSE)


def clean_words(text: str, record: dict, options: dict) -> float:
    """The gold answer as whole words."""
    return float(f.has_words(answer_of(text), answer_of(record["answer"])))


def clean_choice(text: str, record: dict, options: dict) -> float:
    """The option that the answer names, where the gold answer is a letter."""
    known = answer_of(record["answer"]).upper()
    if known not in [*LETTERS]:
        return clean_words(text, record, options)
    return float(f.named_option(answer_of(text), record) == known)


def clean_result(text: str, record: dict, options: dict) -> float:
    known = answer_of(record["answer"])
    if known.upper() in [*LETTERS]:
        return clean_choice(text, record, options)
    if known.lower() in ("yes", "no"):
        return float(f.yes_no(answer_of(text)) == known.lower())
    return max(clean_number(text, record, options), clean_words(text, record, options))


def published(match: f.Match) -> Rule:
    """The gold answer as the file has it, also where it holds a thought."""
    return lambda text, record, options: float(match(answer_of(text), record["answer"]))


register(AnswerMetric(
    name="ctbench",
    summary="what <answer> holds: the words, the letter, the number or either of g; option rule",
    source="yueluoshuangtian/MLLM-CTBench reeval_clmm.py (LLaVA's answers)",
    legacy_rule=ByOption("rule", {
        "words": published(same_words), "choice": published(same_choice), "number": published(same_number),
        "result": published(same_result),
    }),
    clean_rule=ByOption("rule", {
        "words": clean_words, "choice": clean_choice, "number": clean_number, "result": clean_result,
    }),
    options=("rule",),
))  # fmt: skip
