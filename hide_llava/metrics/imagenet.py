"""Substring in either direction: CoIN's ImageNet task (spec hide.md §4.3, defect 50)."""

from __future__ import annotations

from hide_llava.errors import UserError
from hide_llava.metrics.base import Metric, per_position, per_question
from hide_llava.metrics.exact_match import answer_records


def contains(text: str, record: dict, options: dict) -> int:
    """1 iff g ⊂ p or p ⊂ g as substrings. The empty string is part of everything, so an empty answer is "right".

    options["case"]: "sensitive" (CoIN, HiDe; default) or "insensitive" (CVIT, spec benchmarks.md §1.6).
    """
    gold = record["answer"]
    _check_case(options)
    if options.get("case") == "insensitive":
        text, gold = text.lower(), gold.lower()
    return int(gold in text or text in gold)


def _check_case(options: dict) -> None:
    if options.get("case", "sensitive") not in ("sensitive", "insensitive"):
        raise UserError(f'Option case is {options["case"]!r}; it may be "sensitive" or "insensitive".')


def contains_something(text: str, record: dict, options: dict) -> int:
    """As `contains`, but both strings must hold something besides blanks."""
    return contains(text, record, options) if text.strip() and record["answer"].strip() else 0


SUBSTRING_BIDIR = Metric(
    name="substring_bidir",
    summary="g in p or p in g; legacy pairs lines by position, clean joins by id and needs a non-empty answer",
    source="spec hide.md §4.3: CoIN ImageNet",
    records=answer_records,
    legacy=per_position(contains),
    clean=per_question(contains_something),
    positional=True,
    options=("case",),
    check=_check_case,
)
