"""MIF: does an answer have the form that the instruction asks for? (spec benchmarks.md §1.7)

Right or wrong does not matter: the rules see how the answer looks. The published aggregate over data sets is not in any
code; `mif` is the plain mean over the tasks given (§1.7, [DECISION]).
"""

from __future__ import annotations

from pathlib import Path

from hide_llava.errors import UserError
from hide_llava.metrics.base import Job, Metric, per_distinct, per_question, percent
from hide_llava.metrics.cider import caption_records
from hide_llava.metrics.letters import ALPHABET
from hide_llava.metrics.option_letter import scienceqa_records
from hide_llava.metrics.rows import annotation_rows, text_list

SHORT = 2
SENTENCE = 4


def mif(scores: dict[str, float]) -> float:
    """Mean format score over tasks, percent. scores: {task id: score of its format metric}. UserError when empty."""
    if not scores:
        raise UserError("MIF is the mean of the tasks' format scores; give the score of at least one task.")
    return sum(scores.values()) / len(scores)


def is_letter(text: str) -> bool:
    """Exactly one letter A–Z of either case, blanks around it allowed."""
    letter = text.strip().upper()
    return len(letter) == 1 and "A" <= letter <= "Z"


def letter_legacy(job: Job) -> dict:
    """Over all problems, an unanswered one fails; a letter that is no option of the problem passes."""
    texts = {row["question_id"]: row["text"] for row in job.rows}
    passed = sum(is_letter(texts.get(qid, "FAILED")) for qid in job.by_id)
    return {"score": percent(passed, len(job.by_id)), "n": len(job.by_id)}


def letter_of_problem(text: str, record: dict, options: dict) -> int:
    """Clean: the letter must be an option of its problem."""
    return int(is_letter(text) and text.strip().upper() in ALPHABET[: record["n_choices"]])


def short_records(questions: list[dict], references: Path | None, options: dict) -> list[dict]:
    """Records with "answers"; the raw `answer` is kept."""
    return [{**row, "answers": text_list(row)} for row in annotation_rows(questions, references, options)]


def is_short(text: str, record: dict, options: dict) -> int:
    """At most two words, or the gold answer in any case. An empty answer passes, as published."""
    text = text.strip()
    return int(len(text.split()) <= SHORT or text.lower() in [answer.lower() for answer in record["answers"]])


def short_legacy(job: Job) -> dict | None:
    """None where the published script stops: a long answer to a question whose gold is a list."""
    texts = {row["question_id"]: row["text"] for row in job.rows}
    if any(
        len(text.split()) > SHORT and not isinstance(job.by_id[i].get("answer"), str | int) for i, text in texts.items()
    ):
        return None
    return per_distinct(is_short)(job)


def is_short_answer(text: str, record: dict, options: dict) -> int:
    """Clean: as `is_short`, but an empty answer fails."""
    return is_short(text, record, options) if text.strip() else 0


def is_sentence(text: str, record: dict, options: dict) -> int:
    """Ends with a period and has more than four words, or is part of a reference in any case.

    As published, a gold that is one plain string is walked character by character, so short captions then fail.
    """
    text = text.strip()
    references = record["answer"] if isinstance(record.get("answer"), str) else record["captions"]
    long = len(text.split()) > SENTENCE
    return int(text.endswith(".") and (long or any(text.lower() in part.lower() for part in references)))


def is_caption(text: str, record: dict, options: dict) -> int:
    """Clean: the same with whole references, however many, and something besides the period."""
    return is_sentence(text, {"captions": record["captions"]}, options) if text.strip(" .") else 0


FORMAT_LETTER = Metric(
    name="format_letter",
    summary="MIF: the answer is exactly one letter; clean: one of the problem's options",
    source="spec benchmarks.md §1.7: CVIT ScienceQA (eval_scienceqa_instruction)",
    records=scienceqa_records,
    legacy=letter_legacy,
    clean=per_question(letter_of_problem),
    needs="scienceqa",
    options=("split", "allow_unanswerable"),
)

FORMAT_SHORT = Metric(
    name="format_short",
    summary="MIF: at most two words, or the gold answer; clean: not empty",
    source="spec benchmarks.md §1.7: CVIT short-answer data sets (eval_vqa_instruction)",
    records=short_records,
    legacy=short_legacy,
    clean=per_question(is_short_answer),
)

FORMAT_SENTENCE = Metric(
    name="format_sentence",
    summary="MIF: ends with a period and has five words, or is part of a reference",
    source="spec benchmarks.md §1.7: CVIT Flickr30k, TextCaps (eval_caption_instruction)",
    records=caption_records,
    legacy=per_distinct(is_sentence),
    clean=per_question(is_caption),
)
