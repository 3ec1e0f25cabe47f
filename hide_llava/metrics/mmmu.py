"""MMMU (Yue et al. 2024, arXiv 2311.16502): multiple choice and short answers, read by its own parser.

The published parser (`eval_utils.py` of MMMU-Benchmark/MMMU) takes an option at random where an answer names none.
The legacy form draws as it does, from Python's generator with seed 42 over the questions in their order, so that a file in
the order of the published subjects gets the published draws. The clean form draws nothing: such an answer is wrong.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path

from hide_llava.errors import UserError
from hide_llava.metrics.base import Job, Metric, group_scores, percent, register
from hide_llava.metrics.filters import has_words, named_option
from hide_llava.metrics.letters import check_options, option_letters, option_texts
from hide_llava.metrics.rows import annotation_rows, as_text, text_list, where

SEED = 42
KINDS = ("multiple-choice", "open")
DOMAINS = {
    "Art and Design": "Art, Art_Theory, Design, Music",
    "Business": "Accounting, Economics, Finance, Manage, Marketing",
    "Science": "Biology, Chemistry, Geography, Math, Physics",
    "Health and Medicine": "Basic_Medical_Science, Clinical_Medicine, Diagnostics_and_Laboratory_Medicine, Pharmacy, "
                           "Public_Health",
    "Humanities and Social Science": "History, Literature, Sociology, Psychology",
    "Tech and Engineering": "Agriculture, Architecture_and_Engineering, Computer_Science, Electronics, Energy_and_Power, "
                            "Materials, Mechanical_Engineering",
}  # fmt: skip
DOMAIN_OF = {subject: domain for domain, subjects in DOMAINS.items() for subject in subjects.split(", ")}
INTRODUCTIONS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
TRIVIAL = (":", ",", ".", "!", "?", ";", "'")
LONG = 5  # words; only a longer answer is searched for the texts of the options
NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),  # with thousands separators
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),
)


def mmmu_records(questions: list[dict], references: Path | None, options: dict) -> list[dict]:
    """Records with question_type, category (the subject), choices and a letter, or one or more short "answers".

    Raises:
        UserError: a kind of question or an answer that MMMU does not have.
    """
    rows = []
    for row in annotation_rows(questions, references, options):
        if row.get("question_type") not in KINDS:
            raise UserError(f"{where(row)}: question_type is {row.get('question_type')!r}; MMMU has {' and '.join(KINDS)}.")
        if row["question_type"] == "open":
            rows.append({**row, "answers": text_list(row)})
            continue
        check_options(row)
        letter = str(row.get("answer", "")).strip()
        if not option_texts(row) or letter not in [*option_letters(row)]:
            raise UserError(f"{where(row)}: answer is {row.get('answer')!r}, expected the letter of one of its choices.")
        rows.append({**row, "answer": letter})
    return rows


# ------------------------------------------------------------------------------------------------- the published parser


def chosen_letter(text: str, choices: dict[str, str]) -> str | None:
    """The option that an answer names, the last one of several; None where the published parser would draw one.

    First letters in brackets, else letters between spaces, else, in a long answer, the texts of the options.
    """
    for mark in (",", ".", "!", "?", ";", ":", "'"):
        text = text.strip(mark)
    text = f" {text} "
    for form in ("({})", " {} "):
        places = {letter: text.rfind(form.format(letter)) for letter in choices}
        if any(place >= 0 for place in places.values()):
            return max(places, key=places.__getitem__)
    if len(text.split()) > LONG:
        places = {letter: text.lower().rfind(choice.lower()) for letter, choice in choices.items()}
        if any(place >= 0 for place in places.values()):
            return max(places, key=places.__getitem__)
    return None


def readings(text: str) -> set[str | float]:
    """What a short answer may mean: the shortest end of each line behind "is", "so", …, else the whole, and their numbers."""
    text, ends = text.strip().strip(".").lower(), []
    lines = text.split("\n")
    for place, line in enumerate(lines):
        marks = (*INTRODUCTIONS, "=") if place == len(lines) - 1 else INTRODUCTIONS
        found = [line.split(mark)[-1].strip() for mark in marks if mark in line]
        end = _shortest(found)
        if end and end not in TRIVIAL:
            ends.append(end)
    ends = ends or [text]
    numbers = [number for end in ends for pattern in NUMBERS for number in pattern.findall(end)]
    return {value for found in (*ends, *numbers) for value in normalised(found)}


def _shortest(found: list[str]) -> str:
    """The first of the shortest; an empty one gives way to whatever is found after it, as published."""
    shortest = ""
    for text in found:
        if not shortest or len(text) < len(shortest):
            shortest = text
    return shortest


def normalised(text: str) -> list[str | float]:
    """A number with two decimals; else the text in lower case, a single character with a space before or behind it."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        text = text.lower()
    return [f" {text}", f"{text} "] if len(text) == 1 else [text]


def _meets(said: set[str | float], answers: list[str], match: Callable[[str, str], bool]) -> bool:
    """Whether a reading is one of the answers: numbers by equality, texts by `match`(reading, answer)."""
    gold = [value for answer in answers for value in normalised(answer)]
    texts = [value for value in gold if isinstance(value, str)]
    return any(value in gold if isinstance(value, float) else any(match(value, text) for text in texts) for value in said)


# ------------------------------------------------------------------------------------------------------------- scoring


def _scores(hits: dict[str, bool], job: Job) -> dict:
    """Accuracy of all, of each domain and of each subject, percent."""
    subjects = {key: as_text(job.by_id[key].get("category")) or "other" for key in hits}
    by_domain = group_scores((f"domain:{DOMAIN_OF.get(subjects[key], 'other')}", hit) for key, hit in hits.items())
    by_subject = group_scores((f"subject:{subjects[key]}", hit) for key, hit in hits.items())
    return {"score": percent(sum(hits.values()), len(hits)), "n": len(hits), **by_domain, **by_subject}


@register
class MMMU(Metric):
    """legacy: the published parser with its draws, of the answers there are. clean: without them, of all questions."""

    name = "mmmu"
    summary = "option by MMMU's parser, short answers by their readings; by domain and subject beside it"
    source = "MMMU-Benchmark/MMMU mmmu/utils/eval_utils.py (arXiv 2311.16502)"

    def records(self, questions: list[dict], references: Path | None, options: dict) -> list[dict]:
        return mmmu_records(questions, references, options)

    def legacy(self, job: Job) -> dict:
        texts, draw, hits, drawn = {row["question_id"]: row["text"] for row in job.rows}, random.Random(SEED), {}, 0
        for key, record in job.by_id.items():
            if key not in texts:
                continue
            if record["question_type"] == "open":
                hits[key] = _meets(readings(texts[key]), record["answers"], lambda said, gold: gold in said)
                continue
            letter = chosen_letter(texts[key], dict(zip(option_letters(record), option_texts(record))))
            drawn += letter is None
            hits[key] = (letter or draw.choice([*option_letters(record)])) == record["answer"]
        return {**_scores(hits, job), "drawn": drawn}

    def clean(self, job: Job) -> tuple[dict, dict[str, float]]:
        hits = {key: key in job.answers and self._right(job.answers[key]["text"], job.by_id[key]) for key in job.by_id}
        return _scores(hits, job), {key: float(hit) for key, hit in hits.items()}

    def _right(self, text: str, record: dict) -> bool:
        if record["question_type"] == "open":
            return _meets(readings(text), record["answers"], has_words)
        return named_option(text, record) == record["answer"]
