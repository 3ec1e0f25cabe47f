"""Whole-answer equality: UCIT's four accuracy tasks and CoIN's VizWiz, VQAv2 and OCR-VQA (spec hide.md §4.3)."""

from __future__ import annotations

from pathlib import Path

from hide_llava.metrics.base import Metric, per_question, per_row
from hide_llava.metrics.rows import annotation_rows, text_field


def answer_records(questions: list[dict], references: Path | None, options: dict) -> list[dict]:
    """Records {question_id, answer} from the annotation file, or from the question file itself."""
    rows = annotation_rows(questions, references, options)
    return [{**row, "answer": text_field(row, "answer")} for row in rows]


def equal_upper(text: str, record: dict, options: dict) -> int:
    """1 iff upper(p) == upper(g). No stripping, no punctuation rule: "A." is not "A", "two" is not "2"."""
    return int(text.upper() == record["answer"].upper())


def equal_lower(text: str, record: dict, options: dict) -> int:
    """1 iff lower(p) == lower(g)."""
    return int(text.lower() == record["answer"].lower())


def equal_lower_answerable(text: str, record: dict, options: dict) -> int:
    """Reference OCR-VQA: an answer containing "Unanswerable" is wrong, even when it is the reference answer."""
    return 0 if "Unanswerable" in text else equal_lower(text, record, options)


EXACT_UPPER = Metric(
    name="exact_upper",
    summary="upper(p) == upper(g)",
    source="spec hide.md §4.3: UCIT ImageNet-R, ArxivQA, IconQA, CLEVR-Math; CoIN VizWiz, VQAv2",
    records=answer_records,
    legacy=per_row(equal_upper),
    clean=per_question(equal_upper),
)

EXACT_LOWER_UNANSWERABLE = Metric(
    name="exact_lower_unanswerable",
    summary='lower(p) == lower(g); legacy: wrong when p contains "Unanswerable"',
    source="spec hide.md §4.3: CoIN OCR-VQA",
    records=answer_records,
    legacy=per_row(equal_lower_answerable),
    clean=per_question(equal_lower),
)
