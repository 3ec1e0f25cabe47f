"""ANLS: normalised edit distance of documents' answers (spec benchmarks.md §4.4)."""

from __future__ import annotations

from pathlib import Path

from hide_llava.metrics.base import Metric, per_question, per_row
from hide_llava.metrics.rows import annotation_rows, text_list

THRESHOLD = 0.5


def list_records(questions: list[dict], references: Path | None, options: dict) -> list[dict]:
    """Records with "answers": the strings of `answer` or `answers`, at least one."""
    return [{**row, "answers": text_list(row)} for row in annotation_rows(questions, references, options)]


def levenshtein(a: str, b: str) -> int:
    """Least number of insertions, deletions and substitutions that turn a into b."""
    before = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        row = [i]
        for j, y in enumerate(b, 1):
            row.append(min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (x != y)))
        before = row
    return before[-1]


def similarity(a: str, b: str) -> float:
    """1 − levenshtein / longer length; two empty strings are alike (1), one empty string is not (0)."""
    longest = max(len(a), len(b))
    return 1 - levenshtein(a, b) / longest if longest else 1.0


def no_threshold(text: str, record: dict, options: dict) -> float:
    """Prism: best similarity over the references, both sides stripped and lower-cased, nothing zeroed."""
    return max(similarity(text.strip().lower(), g.strip().lower()) for g in record["answers"])


def thresholded(text: str, record: dict, options: dict) -> float:
    """ANLS (Biten et al., ICCV 2019): below 0.5 counts 0. Blanks are collapsed, as the challenge's script has it."""
    p = " ".join(text.lower().split())
    best = max(similarity(p, " ".join(g.lower().split())) for g in record["answers"])
    return best if best >= THRESHOLD else 0.0


def answered(rule):
    """`rule`, but an empty answer to a question that has one is wrong, also when a reference is empty."""
    return lambda text, record, options: rule(text, record, options) if text.strip() else 0.0


ANLS_PRISM = Metric(
    name="anls_prism",
    summary="normalised Levenshtein similarity without the 0.5 threshold",
    source="spec benchmarks.md §4.4: TriGap DocVQA and InfographicVQA (eval_ucit)",
    records=list_records,
    legacy=per_row(no_threshold),
    clean=per_question(answered(no_threshold)),
)

ANLS = Metric(
    name="anls",
    summary="normalised Levenshtein similarity, 0 below 0.5",
    source="Biten et al. 2019 (arXiv 1907.00490); spec benchmarks.md §4.4",
    records=list_records,
    legacy=per_row(thresholded),
    clean=per_question(answered(thresholded)),
    headline="clean",  # the challenge's script counts every question, answered or not
)
