"""SEED-Bench (Li et al. 2024, arXiv 2307.16125) and MMStar (Chen et al. 2024, arXiv 2403.20330): one option letter each.

SEED-Bench's own evaluation takes the option with the smallest loss and lets nothing be said; LLaVA's, which is the one for
models that answer, asks for the letter, and that is what is repeated here.
"""

from __future__ import annotations

from collections.abc import Callable

from hide_llava.metrics.base import AnswerMetric, Clean, Job, group_scores, last_answers, per_question, register
from hide_llava.metrics.filters import Chain, Rule, equal, named_option
from hide_llava.metrics.rules import letter_records

BEGINNINGS = ("", "(", "option ", "the answer is ")


def equals_letter(text: str, record: dict, options: dict) -> bool:
    """LLaVA's rule for SEED-Bench: the answer is the letter and nothing else."""
    return text == record["answer"]


def begins_with_letter(text: str, record: dict, options: dict) -> bool:
    """MMStar's rule: the letter is the first character, or the one behind "(", "option " or "the answer is ".

    Without regard to case, so that "a falling price" says A and "Both" says B.
    """
    said, gold = text.lower().strip().replace("\n", " "), record["answer"].lower()
    return any(said.startswith(begin + gold) for begin in BEGINNINGS)


def by_group(*keys: str) -> Callable[[Rule], Clean]:
    """The clean join with the score of every group beside the whole.

    keys: fields of a record that name its groups; the second one's lie within the first one's, and are named `first / second`.
    """

    def groups(record: dict) -> list[str]:
        names = [str(record[key]) for key in keys if record.get(key) is not None]
        return [" / ".join(names[:depth]) for depth in range(1, len(names) + 1)]

    def join(rule: Rule) -> Clean:
        def clean(job: Job) -> tuple[dict, dict[str, float]]:
            result, verdicts = per_question(rule)(job)
            hits = ((group, verdicts[qid]) for qid, record in job.by_id.items() for group in groups(record))
            return group_scores(hits) | result, verdicts

        return clean

    return join


def last_by_group(*keys: str) -> Callable[[Rule], Callable[[Job], dict]]:
    """The legacy join over all questions, of two answers the last, with the score of every group beside it."""
    return lambda rule: lambda job: by_group(*keys)(rule)(last_answers(job))[0]


register(
    AnswerMetric(
        name="seed_bench",
        summary="p is the option letter; by dimension beside it",
        source="haotian-liu/LLaVA scripts/convert_seed_for_submission.py (SEED-Bench, arXiv 2307.16125)",
        legacy_rule=equals_letter,
        clean_rule=Chain(extract=(named_option,), match=equal),
        legacy_join=last_by_group("category"),
        clean_join=by_group("category"),
        read=letter_records,
    )
)
register(
    AnswerMetric(  # the script divides by 250 and by 1,500, which all of MMStar has; a part is divided by what it has
        name="mmstar",
        summary="p begins with the option letter; by category beside it",
        source="MMStar-Benchmark/MMStar eval/vlmeval/evaluate/mmstar.py (arXiv 2403.20330)",
        legacy_rule=begins_with_letter,
        clean_rule=Chain(extract=(named_option,), match=equal),
        legacy_join=last_by_group("category", "l2_category"),
        clean_join=by_group("category", "l2_category"),
        read=letter_records,
    )
)
