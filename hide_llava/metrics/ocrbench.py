"""OCRBench (Liu et al. 2024, arXiv 2305.07895), MLLM-ACL's OCR task: answers by kind of question, hits in five groups."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from hide_llava.errors import UserError
from hide_llava.metrics.base import AnswerMetric, Job, register, with_parts
from hide_llava.metrics.filters import ByRecord, Chain, Rule, contains, filled, without_line_feeds, without_spaces
from hide_llava.metrics.rows import list_records, where

FORMULA = "Handwritten Mathematical Expression Recognition"
RECOGNITION = ("Regular Text", "Irregular Text", "Artistic Text", "Handwriting", "Digit String", "Non-Semantic Text")
CATEGORIES = {
    **{f"{kind} Recognition": "text recognition" for kind in RECOGNITION},
    "Scene Text-centric VQA": "scene VQA",
    "Doc-oriented VQA": "document VQA",
    "Key Information Extraction": "key information",
    FORMULA: "formula",
}


def ocr_records(questions: list[dict], references: Path | None, options: dict) -> list[dict]:
    """Records with "answers" (one or more strings) and a known answer_type; UserError otherwise."""
    rows = list_records(questions, references, options)
    for row in rows:
        if row.get("answer_type") not in [*CATEGORIES]:
            raise UserError(
                f"{where(row)}: answer_type is {row.get('answer_type')!r}, which OCRBench does not have; known: "
                f"{', '.join(CATEGORIES)}."
            )
    return rows


def kind(record: dict) -> str:
    """ "formula" or "text": a formula is compared without spaces and with case, all else in lower case."""
    return "formula" if record["answer_type"] == FORMULA else "text"


def per_thousand(rule: Rule) -> Callable[[Job], dict]:
    """Legacy join: hits / 10, whatever the number of rows: right for exactly 1,000. Hits of the five groups beside it."""

    def legacy(job: Job) -> dict:
        groups = dict.fromkeys(CATEGORIES.values(), 0)
        for row in job.rows:
            record = job.by_id[row["question_id"]]
            groups[CATEGORIES[record["answer_type"]]] += rule(row["text"], record, job.options)
        return {"score": sum(groups.values()) / 10, "n": len(job.rows), **{f"hits:{k}": v for k, v in groups.items()}}

    return legacy


register(
    AnswerMetric(  # legacy: an empty reference is part of every answer
        name="ocrbench",
        summary="any reference in p; legacy: hits / 10, clean: hits / questions",
        source="bjzhb666/MLLM-CL eval_ocr.py, a port of OCRBench's own (MLLM-ACL OCR)",
        legacy_rule=ByRecord(kind, {
            "formula": Chain(normalise=(without_line_feeds, without_spaces), match=contains, gold="answers"),
            "text": Chain(normalise=(without_line_feeds, str.lower), match=contains, gold="answers"),
        }),
        clean_rule=ByRecord(kind, {
            "formula": Chain(normalise=(without_line_feeds, without_spaces), match=filled(contains), gold="answers"),
            "text": Chain(normalise=(without_line_feeds, str.lower), match=filled(contains), gold="answers"),
        }),
        legacy_join=per_thousand,
        clean_join=with_parts(group=lambda record: CATEGORIES[record["answer_type"]]),
        read=ocr_records,
    )
)  # fmt: skip
