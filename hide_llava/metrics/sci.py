"""MLLM-DCL's science task: four sources by file name, three rules (spec benchmarks.md §2.5)."""

from __future__ import annotations

from pathlib import Path

from hide_llava.errors import UserError
from hide_llava.metrics.answers import has_words, trim
from hide_llava.metrics.base import Job, Metric, per_question, percent, with_parts
from hide_llava.metrics.exact_match import answer_records
from hide_llava.metrics.rows import where
from hide_llava.metrics.substring import UNANSWERABLE

EXACT_SOURCES = ("AI2D", "TQA", "VQA", "SciVerse")
MAP_LIST = "Which states"


def sci_records(questions: list[dict], references: Path | None, options: dict) -> list[dict]:
    """Records with answer and image, whose file name says the source. UserError without an image name."""
    rows = answer_records(questions, references, options)
    for row in rows:
        if not isinstance(row.get("image"), str):
            raise UserError(
                f"{where(row)}: metric sci_mixed takes the source from the image's file name, but "
                f"image is {row.get('image')!r}; give the benchmark's own test file."
            )
    return rows


def source(record: dict) -> str:
    """The first "_" part of the image's file name when it is one of the four; "MapQA" for every other."""
    prefix = record["image"].split("/")[-1].split("_")[0]
    return prefix if prefix in EXACT_SOURCES else "MapQA"


def mixed(text: str, prompt: str, record: dict) -> float:
    """As published. Items of lists are not stripped and a repeated gold item counts twice."""
    if UNANSWERABLE in text:
        return 0
    p, g = text.lower(), record["answer"].lower()
    if source(record) != "MapQA":
        return int(p == g)
    if MAP_LIST in prompt:
        items, said = g.split(","), p.split(",")
        return sum(item in said for item in items) / len(items)
    return int(g in p)


def sci_legacy(job: Job) -> dict:
    """Mean over result rows; the "Which states" test reads the row's stored prompt (the question's text without one)."""
    total = 0.0
    for row in job.rows:
        record = job.by_id[row["question_id"]]
        total += mixed(row["text"], str(row.get("prompt", record.get("text", ""))), record)
    return {"score": percent(total, len(job.rows)), "n": len(job.rows)}


def mixed_clean(text: str, record: dict, options: dict) -> float:
    """Clean: trimmed equality; for lists |gold ∩ said| / |gold ∪ said| of trimmed items; else whole words."""
    if source(record) != "MapQA":
        return int(bool(trim(text)) and trim(text) == trim(record["answer"]))
    if MAP_LIST in str(record.get("text", "")):
        gold, said = ({trim(item) for item in t.split(",")} - {""} for t in (record["answer"], text))
        return len(gold & said) / len(gold | said) if gold | said else 0
    return int(has_words(text, record["answer"]))


SCI_MIXED = Metric(
    name="sci_mixed",
    summary="equality, partial credit for lists, or substring, by the image's file name",
    source="spec benchmarks.md §2.5: MLLM-DCL Sci (eval_sci)",
    records=sci_records,
    legacy=sci_legacy,
    clean=with_parts(per_question(mixed_clean), group=lambda record: f"source:{source(record)}"),
)
