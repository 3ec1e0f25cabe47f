"""By what an answer was lost: by its form, or by what it says.

SMoLoRA (arXiv 2411.13949) tells two kinds of forgetting apart: a model that has learned other tasks may no longer follow the
instruction ("answer with the letter") or no longer know the content. Here an answer that is wrong now is lost by its *format* if
one of these holds, and by its *content* otherwise:

1. its references all have a form that one of MIF's rules (metrics/answer_format.py, clean) asks for (one letter; at most two
   words; a sentence with a period), and the answer does not have it;
2. its kind in metrics/error_profile.py is one that says nothing about content: empty, another case, punctuation or article, a
   longer answer that holds the right one, or a wrong form (a word where a number was asked for).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from hide_llava.metrics.answer_format import is_caption, is_letter, is_short_answer
from hide_llava.metrics.error_profile import form_of, kind_of

FORM, CONTENT, UNKNOWN = "format", "content", "unknown"
OF_FORM = frozenset({"empty", "case", "punctuation", "article", "longer_answer", "wrong_format"})
RULES = (is_letter, is_short_answer, is_caption)


def lost_by(text: str, expected: list[str]) -> tuple[str, str]:
    """(form, content or unknown; the kind of the mistake as `error_profile` calls it) of a wrong answer.

    expected: the answers that count, or the captions. Without any nothing is known.
    """
    if not expected:
        return UNKNOWN, ""
    kind = kind_of(text, expected)
    return (FORM if kind in OF_FORM or not has_form(text, expected) else CONTENT), kind


def has_form(text: str, expected: list[str]) -> bool:
    """Whether the answer passes the first rule of MIF that all references pass by themselves; True where there is none."""
    alone, beside = {"answers": [], "captions": []}, {"answers": expected, "captions": expected}
    for rule in RULES:
        if all(rule(reference, alone, {}) for reference in expected):
            return bool(rule(text, beside, {}))
    return True


def main_form(references: Iterable[list[str]]) -> str | None:
    """The most frequent form (`error_profile.form_of`) of a task's references; None without any."""
    counts = Counter(form_of(text) for texts in references for text in texts)
    return counts.most_common(1)[0][0] if counts else None
