"""The standard VQA accuracy over ten answers: VQAv2's own rule (Antol et al. 2015, arXiv 1505.00468).

The official script exists in two states. The one of today (since 2021) is the clean form and the headline; the one of
before, by which older papers were scored, is the legacy form. Both average min(1, matches / 3) over the ten subsets of
nine answers, and both compare texts as they are after the same steps; they differ in which side those steps are done to.
"""

from __future__ import annotations

from hide_llava.metrics.base import Metric, per_question, per_row
from hide_llava.metrics.vqa import process_punctuation, process_words, textvqa_records


def leave_one_out(text: str, answers: list[str]) -> float:
    """Mean over i of min(1, #{j ≠ i : answer_j == text} / 3)."""
    hits = [answer == text for answer in answers]
    return sum(min(1.0, (sum(hits) - hit) / 3) for hit in hits) / len(hits)


def _plain(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _processed(text: str) -> str:
    return process_words(process_punctuation(text))


def before_2021(text: str, record: dict, options: dict) -> float:
    """The older script: the prediction is always normalised, the answers only when they differ, and then only partly.

    Punctuation goes from differing answers; case, articles, number words and contractions stay as they are. So "Two"
    meets an answer "2" but never an answer "two".
    """
    answers = [_plain(answer) for answer in record["answers"]]
    answers = [process_punctuation(a) for a in answers] if len(set(answers)) > 1 else answers
    return leave_one_out(_processed(_plain(text)), answers)


def official(text: str, record: dict, options: dict) -> float:
    """Today's script: when the ten answers differ, they and the prediction are normalised; else neither is.

    So "Black." is wrong where all ten say "black", and right where nine do.
    """
    text, answers = _plain(text), [_plain(answer) for answer in record["answers"]]
    if len(set(answers)) > 1:
        text, answers = _processed(text), [_processed(answer) for answer in answers]
    return leave_one_out(text, answers)


VQA_STANDARD = Metric(
    name="vqa_standard",
    summary="VQA accuracy over ten answers by today's official script; legacy: by the one of before 2021",
    source="Antol et al. 2015 (arXiv 1505.00468), VQAv2's evaluation script",
    records=textvqa_records,
    legacy=per_row(before_2021),
    clean=per_question(official),
    headline="clean",
)
