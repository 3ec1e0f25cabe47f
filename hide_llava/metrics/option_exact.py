"""MLLM-ACL's GUI task, scored here: its server closed (spec benchmarks.md §3.5)."""

from __future__ import annotations

import re
from pathlib import Path

from hide_llava.errors import UserError
from hide_llava.metrics.answers import option_letter
from hide_llava.metrics.base import Job, Metric, per_question
from hide_llava.metrics.exact_match import answer_records
from hide_llava.metrics.letters import check_options, option_letters, option_texts
from hide_llava.metrics.rows import where

LABEL = "APP-local: scored here; published numbers come from a server that has closed"


def letter_records(questions: list[dict], references: Path | None, options: dict) -> list[dict]:
    """Records whose answer is the letter of one of their options; UserError otherwise."""
    rows = answer_records(questions, references, options)
    for row in rows:
        check_options(row)
        letters = option_letters(row)
        if not re.fullmatch(r"\s*[A-Za-z]\s*", row["answer"]) or row["answer"].strip().upper() not in letters:
            raise UserError(
                f"{where(row)}: answer is {row['answer']!r}, expected one option letter ({letters[0]}–{letters[-1]})."
            )
    return [{**row, "answer": row["answer"].strip().upper()} for row in rows]


def submitted(text: str, record: dict, options: dict) -> int:
    """What was submitted, strip and upper, is the letter. How the server read longer texts is not known."""
    return int(text.strip().upper() == record["answer"])


def said(text: str, record: dict, options: dict) -> int:
    """Clean: the option that the answer names ("B", "(b)", "B. …", "The answer is B") is the right one."""
    return int(option_letter(text, option_letters(record), option_texts(record)) == record["answer"])


def local_legacy(job: Job) -> dict:
    """Over all questions: a row without an answer was submitted as "Z"."""
    return per_question(submitted)(job)[0]


OPTION_EXACT_LOCAL = Metric(
    name="option_exact_local",
    summary="the submitted text is the option letter; clean: the parsed letter is",
    source="spec benchmarks.md §3.5: MLLM-ACL APP (convert_result_to_submission)",
    records=letter_records,
    legacy=local_legacy,
    clean=per_question(said),
    labels=lambda options: [LABEL],
)
