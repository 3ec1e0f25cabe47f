"""MMBench (Liu et al. 2024, arXiv 2307.06281): a question is asked once for each rotation of its options.

CircularEval: it counts as right only if the answer to every rotation is. The legacy form repeats VLMEvalKit's
(`multiple_choice.py` of open-compass/VLMEvalKit) with its `exact_matching` policy, that is without a judge.
"""

from __future__ import annotations

from pathlib import Path

from hide_llava.errors import UserError
from hide_llava.metrics.base import Job, Metric, group_scores, percent, register
from hide_llava.metrics.exact_matching import matched_letter
from hide_llava.metrics.filters import named_option
from hide_llava.metrics.letters import option_letters, option_texts
from hide_llava.metrics.rows import as_text, where
from hide_llava.metrics.rules import letter_records

Hits = dict[str, bool]  # by question id, one of each rotation


def circular_records(questions: list[dict], references: Path | None, options: dict) -> list[dict]:
    """Records with choices, answer (a letter) and `circle`: the id of the first rotation of a question, in all of them.

    Raises:
        UserError: one of these is missing, or the first rotation of a circle.
    """
    rows = letter_records(questions, references, options)
    for row in rows:
        if not option_texts(row) or as_text(row.get("circle")) is None:
            raise UserError(f"{where(row)}: MMBench needs a question's choices and its circle, the id of its first rotation.")
    for name, group in _groups(rows).items() if not options.get("allow_partial") else ():
        if group[0]["question_id"] != name:
            raise UserError(f"{where(group[0])}: its circle {name} lacks the first rotation, whose question_id is {name}.")
    return [{**row, "circle": as_text(row["circle"])} for row in rows]


def _groups(records: list[dict]) -> dict[str, list[dict]]:
    """{circle: its records}, the first rotation first."""
    found: dict[str, list[dict]] = {}
    for record in records:
        found.setdefault(str(record["circle"]), []).append(record)
    return {name: sorted(group, key=lambda r: r["question_id"] != name) for name, group in found.items()}


def _scores(groups: dict[str, list[dict]], hits: Hits) -> dict:
    """Share of circles that are right in every rotation: of all, by l2_category, by category; and without the circle.

    first_rotation: of the questions as they were written. all_rotations: of all that were asked.
    """
    circles = {name: all(hits[r["question_id"]] for r in group) for name, group in groups.items()}
    first = [hits[group[0]["question_id"]] for group in groups.values()]
    result = {
        "score": percent(sum(circles.values()), len(circles)), "n": len(circles),
        "first_rotation": percent(sum(first), len(first)),
        "all_rotations": percent(sum(hits.values()), len(hits)),
    }  # fmt: skip
    for key in ("l2_category", "category"):
        result |= group_scores((f"{key}:{group[0][key]}", circles[name]) for name, group in groups.items()
                               if group[0].get(key) is not None)  # fmt: skip
    return result


@register
class MMBench(Metric):
    """legacy: of the rotations that were answered, where the first one was. clean: of all, read by `filters.named_option`."""

    name = "mmbench"
    summary = "right in every rotation of the options; by ability beside it"
    source = "open-compass/VLMEvalKit multiple_choice.py (MMBench, arXiv 2307.06281)"

    def records(self, questions: list[dict], references: Path | None, options: dict) -> list[dict]:
        return circular_records(questions, references, options)

    def legacy(self, job: Job) -> dict | None:
        texts = {row["question_id"]: row["text"] for row in job.rows}
        answered = _groups([record for record in job.by_id.values() if record["question_id"] in texts])
        whole = {name: group for name, group in answered.items() if group[0]["question_id"] == name}
        asked = [record for group in whole.values() for record in group]
        hits = {
            key: matched_letter(texts[key], dict(zip(option_letters(record), option_texts(record)))) == record["answer"]
            for key, record in ((record["question_id"], record) for record in asked)
        }
        return _scores(whole, hits) if whole else None

    def clean(self, job: Job) -> tuple[dict, dict[str, float]]:
        hits = {
            key: key in job.answers and named_option(job.answers[key]["text"], record) == record["answer"]
            for key, record in job.by_id.items()
        }
        groups = _groups([*job.by_id.values()])
        verdicts = {group[0]["question_id"]: float(all(hits[r["question_id"]] for r in group)) for group in groups.values()}
        return _scores(groups, hits), verdicts
