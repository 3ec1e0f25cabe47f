"""Substring rules: MLLM-DCL's remote sensing, driving and medicine, MLLM-ACL's counting (spec benchmarks.md §2.5, §3.5).

The published rules find gold "1" in "10"; the clean ones look for whole words and report strict equality beside it.
"""

from __future__ import annotations

from hide_llava.metrics.answers import has_words, trim
from hide_llava.metrics.base import Job, Metric, per_question, per_row, percent, with_parts
from hide_llava.metrics.exact_match import answer_records

UNANSWERABLE = "Unanswerable"


def wordish(text: str, record: dict, options: dict) -> int:
    """RS and AD as published, both sides lower-cased.

    A gold with a space: g ⊂ p. Else without its periods: in a p with spaces, one of " g", "g ", "g.", "g," ⊂ p (so "a"
    is found before every word that starts with it), in a one-word p, g ⊂ p (so "1" is in "10"). Empty gold: right.
    """
    if UNANSWERABLE in text:
        return 0
    p, g = text.lower(), record["answer"].lower()
    if " " in g:
        return int(g in p)
    g = g.replace(".", "")
    if " " in p:
        return int(any(form in p for form in (f" {g}", f"{g} ", f"{g}.", f"{g},")))
    return int(g in p)


def lower(text: str, record: dict, options: dict) -> int:
    """Med as published: g ⊂ p, both lower-cased; "Unanswerable" anywhere in p is wrong."""
    return 0 if UNANSWERABLE in text else int(record["answer"].lower() in text.lower())


def squeeze(text: str) -> str:
    """Lower case without spaces, line feeds and periods, as VP and Fin have it."""
    return text.lower().strip().replace(" ", "").replace("\n", "").replace(".", "")


def squeezed(text: str, record: dict, options: dict) -> int:
    """VP as published: g ⊂ p after `squeeze` of both; gold "2" is in "12"."""
    return int(squeeze(record["answer"]) in squeeze(text))


def words(text: str, record: dict, options: dict) -> int:
    """Clean rule of all three: the gold answer stands in the answer as whole words."""
    return int(has_words(text, record["answer"]))


def strict(text: str, record: dict, options: dict) -> int:
    """Equality but for case, outer blanks and trailing periods."""
    return int(bool(trim(text)) and trim(text) == trim(record["answer"]))


def squeezed_legacy(job: Job) -> dict:
    """VP's accuracy over result rows, and "count" over those of task Count (None without any; published: a crash)."""
    hits = [
        (squeezed(row["text"], job.by_id[row["question_id"]], {}), job.by_id[row["question_id"]]) for row in job.rows
    ]
    counts = [hit for hit, record in hits if record.get("task") == "Count"]
    result = {"score": percent(sum(hit for hit, _ in hits), len(hits)), "n": len(hits)}
    return result | {"count": percent(sum(counts), len(counts)) if counts else None}


SUBSTRING_WORDISH = Metric(
    name="substring_wordish",
    summary="g in p with the published word-boundary hacks; clean: g as whole words of p",
    source="spec benchmarks.md §2.5: MLLM-DCL RS and AD (eval_ai2d)",
    records=answer_records,
    legacy=per_row(wordish),
    clean=with_parts(per_question(words), strict=strict),
)

SUBSTRING_LOWER = Metric(
    name="substring_lower",
    summary="lower(g) in lower(p); clean: g as whole words of p",
    source="spec benchmarks.md §2.5: MLLM-DCL Med (eval_pvqa)",
    records=answer_records,
    legacy=per_row(lower),
    clean=with_parts(per_question(words), strict=strict),
)

SUBSTRING_SQUEEZED = Metric(
    name="substring_squeezed",
    summary="g in p without spaces and periods; clean: g as whole words of p",
    source="spec benchmarks.md §3.5: MLLM-ACL VP (eval_sat)",
    records=answer_records,
    legacy=squeezed_legacy,
    clean=with_parts(per_question(words), strict=strict),
)
