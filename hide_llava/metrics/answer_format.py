"""MIF: does an answer have the form that the instruction asks for? (CVIT, Wang et al. 2025, arXiv 2411.13949)

Right or wrong does not matter: the rules see how the answer looks. The published aggregate over data sets is not in any
code; `mif` is the plain mean over the tasks given.
"""

from __future__ import annotations

from collections.abc import Callable

from hide_llava.errors import UserError
from hide_llava.metrics.base import AnswerMetric, Job, last_per_question, per_distinct, register
from hide_llava.metrics.cider import caption_records
from hide_llava.metrics.filters import Rule
from hide_llava.metrics.letters import ALPHABET
from hide_llava.metrics.rows import list_records
from hide_llava.metrics.scienceqa import scienceqa_records

SHORT = 2
SENTENCE = 4


def mif(scores: dict[str, float]) -> float:
    """Mean format score over tasks, percent. scores: {task id: score of its format metric}. UserError when empty."""
    if not scores:
        raise UserError("MIF is the mean of the tasks' format scores; give the score of at least one task.")
    return sum(scores.values()) / len(scores)


def is_letter(text: str, record: dict, options: dict) -> int:
    """Exactly one letter A–Z of either case, blanks around it allowed; also one that is no option of the problem."""
    letter = text.strip().upper()
    return int(len(letter) == 1 and "A" <= letter <= "Z")


def letter_of_problem(text: str, record: dict, options: dict) -> int:
    """Clean: the letter must be an option of its problem."""
    return int(is_letter(text, record, options) and text.strip().upper() in ALPHABET[: record["n_choices"]])


def is_short(text: str, record: dict, options: dict) -> int:
    """At most two words, or the gold answer in any case. An empty answer passes, as published."""
    text = text.strip()
    return int(len(text.split()) <= SHORT or text.lower() in [answer.lower() for answer in record["answers"]])


def per_distinct_or_stop(rule: Rule) -> Callable[[Job], dict | None]:
    """`per_distinct`; None where the published script stops, at a long answer to a question whose gold is a list."""

    def legacy(job: Job) -> dict | None:
        texts = {row["question_id"]: row["text"] for row in job.rows}
        lists = [qid for qid in texts if not isinstance(job.by_id[qid].get("answer"), str | int)]
        return None if any(len(texts[qid].split()) > SHORT for qid in lists) else per_distinct(rule)(job)

    return legacy


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


register(
    AnswerMetric(
        name="format_letter",
        summary="MIF: the answer is exactly one letter; clean: one of the problem's options",
        source="Minato-Zackie/SMoLoRA eval_scienceqa_instruction.py (CVIT ScienceQA)",
        legacy_rule=is_letter,
        clean_rule=letter_of_problem,
        legacy_join=last_per_question,
        read=scienceqa_records,
        needs="scienceqa",
        options=("split", "allow_unanswerable"),
    )
)
register(
    AnswerMetric(
        name="format_short",
        summary="MIF: at most two words, or the gold answer; clean: not empty",
        source="Minato-Zackie/SMoLoRA eval_vqa_instruction.py (CVIT's data sets of short answers)",
        legacy_rule=is_short,
        clean_rule=is_short_answer,
        legacy_join=per_distinct_or_stop,
        read=list_records,
    )
)
register(
    AnswerMetric(
        name="format_sentence",
        summary="MIF: ends with a period and has five words, or is part of a reference",
        source="Minato-Zackie/SMoLoRA eval_caption_instruction.py (CVIT Flickr30k, TextCaps)",
        legacy_rule=is_sentence,
        clean_rule=is_caption,
        legacy_join=per_distinct,
        read=caption_records,
    )
)
