"""The standard VQA accuracy over ten answers: VQAv2's and VizWiz's own rule (Antol et al. 2015, arXiv 1505.00468)."""

from __future__ import annotations

from hide_llava.metrics.base import Metric, per_question, per_row
from hide_llava.metrics.vqa import process_punctuation, process_words, soft_accuracy, textvqa_records


def leave_one_out(text: str, answers: list[str]) -> float:
    """Mean over i of min(1, #{j ≠ i : answer_j == text} / 3)."""
    hits = [answer == text for answer in answers]
    return sum(min(1.0, (sum(hits) - hit) / 3) for hit in hits) / len(hits)


def standard(text: str, record: dict, options: dict) -> float:
    """As published: the prediction is always normalised, the answers only when they differ, and then only partly.

    Punctuation goes from differing answers; case, articles, number words and contractions stay as they are. So "Two"
    meets an answer "2" but never an answer "two".
    """

    def plain(t: str) -> str:
        return t.replace("\n", " ").replace("\t", " ").strip()

    answers = [plain(answer) for answer in record["answers"]]
    answers = [process_punctuation(a) for a in answers] if len(set(answers)) > 1 else answers
    return leave_one_out(process_words(process_punctuation(plain(text))), answers)


VQA_STANDARD = Metric(
    name="vqa_standard",
    summary="VQA accuracy over ten answers; clean: both sides fully normalised",
    source="Antol et al. 2015 (VQAv2, VizWiz evaluation); spec benchmarks.md §1.6",
    gold=textvqa_records,
    legacy=per_row(standard),
    clean=per_question(soft_accuracy),
)
