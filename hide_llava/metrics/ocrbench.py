"""OCRBench: MLLM-ACL's OCR task (spec benchmarks.md §3.5)."""

from __future__ import annotations

from pathlib import Path

from hide_llava.errors import UserError
from hide_llava.metrics.base import Job, Metric, per_question, with_parts
from hide_llava.metrics.rows import annotation_rows, text_list, where

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
    rows = annotation_rows(questions, references, options)
    for row in rows:
        if row.get("answer_type") not in [*CATEGORIES]:
            raise UserError(
                f"{where(row)}: answer_type is {row.get('answer_type')!r}, which OCRBench does not have; known: "
                f"{', '.join(CATEGORIES)}."
            )
    return [{**row, "answers": text_list(row)} for row in rows]


def found(text: str, record: dict, options: dict) -> int:
    """1 iff any reference ⊂ p: formulas without blanks and with case, the rest in lower case without line feeds."""

    def plain(t: str) -> str:
        t = t.strip().replace("\n", "")
        return t.replace(" ", "") if record["answer_type"] == FORMULA else t.lower()

    return int(any(plain(reference) in plain(text) for reference in record["answers"]))


def found_something(text: str, record: dict, options: dict) -> int:
    """As `found`, with empty references left out (they are part of every answer)."""
    return found(text, {**record, "answers": [r for r in record["answers"] if r.strip()]}, options)


def ocr_legacy(job: Job) -> dict:
    """Hits / 10, whatever the number of rows: right for exactly 1,000. Hits of the five groups beside it."""
    groups = dict.fromkeys(CATEGORIES.values(), 0)
    for row in job.rows:
        record = job.by_id[row["question_id"]]
        groups[CATEGORIES[record["answer_type"]]] += found(row["text"], record, job.options)
    return {"score": sum(groups.values()) / 10, "n": len(job.rows), **{f"hits:{k}": v for k, v in groups.items()}}


OCRBENCH = Metric(
    name="ocrbench",
    summary="any reference in p; legacy: hits / 10, clean: hits / questions",
    source="spec benchmarks.md §3.5: MLLM-ACL OCR (eval_ocr)",
    records=ocr_records,
    legacy=ocr_legacy,
    clean=with_parts(per_question(found_something), group=lambda record: CATEGORIES[record["answer_type"]]),
)
