"""Relaxed accuracy of ChartQA: numbers may be off by 5 % (spec benchmarks.md §4.4)."""

from __future__ import annotations

from hide_llava.metrics.answers import NUMBER, trim
from hide_llava.metrics.base import Metric, per_question, per_row
from hide_llava.metrics.exact_match import answer_records

TOLERANCE = 0.05


def _float(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def relaxed_legacy(text: str, record: dict, options: dict) -> int:
    """The usual code (Masry et al. 2022): |p − g| / |g| ≤ 0.05 if both are numbers, else lower-case equality.

    "5%" is 0.05, so it is wrong for gold "5"; a gold of 0 is compared as text ("0.0" is wrong).
    """
    p, g = _float(text), _float(record["answer"])
    if p is not None and g:
        return int(abs(p - g) / abs(g) <= TOLERANCE)
    return int(text.lower() == record["answer"].lower())


def relaxed(text: str, record: dict, options: dict) -> int:
    """Clean: signs %, $ and thousands separators do not count, nor does a trailing period; gold 0 needs 0."""
    p, g = (trim(t).strip("%$€£ ") for t in (text, record["answer"]))
    if NUMBER.fullmatch(p) and NUMBER.fullmatch(g):
        value, gold = float(p.replace(",", "")), float(g.replace(",", ""))
        return int(abs(value - gold) <= TOLERANCE * abs(gold))
    return int(bool(trim(text)) and trim(text) == trim(record["answer"]))


RELAXED_CHART = Metric(
    name="relaxed_chart",
    summary="numbers within 5 %, texts equal",
    source="Masry et al. 2022 (arXiv 2203.10244); spec benchmarks.md §4.4",
    records=answer_records,
    legacy=per_row(relaxed_legacy),
    clean=per_question(relaxed),
)
