"""MLLM-DCL's finance task: a letter or yes/no after squeezing (spec benchmarks.md §2.5)."""

from __future__ import annotations

import re
from pathlib import Path

from hide_llava.metrics.answers import option_letter, yes_no
from hide_llava.metrics.base import Metric, per_question, per_row
from hide_llava.metrics.exact_match import answer_records
from hide_llava.metrics.letters import check_options, option_letters, option_texts
from hide_llava.metrics.substring import UNANSWERABLE, squeeze


def equal_squeezed(text: str, record: dict, options: dict) -> int:
    """As published: p in lower case without spaces and periods == lower(g), which is NOT squeezed: "A) up" is not A."""
    if UNANSWERABLE in text:
        return 0
    return int(text.lower().replace(" ", "").replace(".", "") == record["answer"].lower())


def equal_parsed(text: str, record: dict, options: dict) -> int:
    """Clean: p is read as what g is: a letter ("A) up"), yes or no ("Yes, it does"), else both sides squeezed."""
    gold = record["answer"].strip()
    if re.fullmatch("[A-Za-z]", gold):
        return int(option_letter(text, option_letters(record), option_texts(record)) == gold.upper())
    if gold.lower() in ("yes", "no"):
        return int(yes_no(text) == gold.lower())
    return int(bool(squeeze(text)) and squeeze(text) == squeeze(gold))


def fin_records(questions: list[dict], references: Path | None, options: dict) -> list[dict]:
    """Records {question_id, answer}, perhaps with options; UserError where those are no list of texts."""
    rows = answer_records(questions, references, options)
    for row in rows:
        check_options(row)
    return rows


EXACT_SQUEEZED = Metric(
    name="exact_squeezed",
    summary="p without spaces and periods == g; clean: the letter or yes/no that p says",
    source="spec benchmarks.md §2.5: MLLM-DCL Fin (eval_finvis)",
    records=fin_records,
    legacy=per_row(equal_squeezed),
    clean=per_question(equal_parsed),
)
