"""GQA accuracy with its break-down (Hudson and Manning 2019, arXiv 1902.09506), which CoIN and CVIT run."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

from hide_llava.errors import UserError
from hide_llava.metrics.base import Job, Metric, group_scores, per_question, percent, register
from hide_llava.metrics.filters import Chain, equal
from hide_llava.metrics.rows import annotation_rows, read_table, select, text_field, where


def gqa_records(questions: list[dict], references: Path | None, options: dict) -> list[dict]:
    """Balanced questions only. References: GQA's {id: {answer, isBalanced, types, groups, …}}; else plain records.

    Records without isBalanced (CoIN's flat test file) count as balanced.
    """
    rows = questions
    if references is not None:
        table = read_table(references, "GQA question file")
        if isinstance(table, list):
            rows = annotation_rows(questions, references, options)
        elif isinstance(table, dict) and all(isinstance(entry, dict) for entry in table.values()):
            own = [{"_place": (str(references), n), **v, "question_id": k} for n, (k, v) in enumerate(table.items(), 1)]
            rows = select(own, questions, references, options)
        else:
            raise UserError(f"{references}: expected GQA's object {{question id: record}} or a list of records.")
    for row in rows:
        types, groups = row.get("types") or {}, row.get("groups") or {}
        tables = isinstance(types, dict) and isinstance(groups, dict)
        if not tables or not all(isinstance(v, str | None) for v in (*types.values(), groups.get("global"))):
            raise UserError(f"{where(row)}: types and groups are {types!r} and {groups!r}, expected names by kind.")
    return [{**row, "answer": text_field(row, "answer"), "balanced": row.get("isBalanced", True)} for row in rows]


def normalise(text: str) -> str:
    """Drop every trailing '.', then lower-case. No stripping: "Red " stays wrong, as published."""
    return text.rstrip(".").lower()


LEGACY = Chain(extract=(lambda text, record: normalise(text),), match=equal)  # GQA's gold answers are in lower case
CLEAN = Chain(normalise=(normalise,), match=equal)


def chi_square(gold: dict[str, Counter], predicted: dict[str, Counter]) -> float:
    """GQA's "Distribution" (lower is better): Σ_groups n_g·Σ_a (o_a − e_a)²/e_a ÷ (100·Σ_groups n_g).

    e and o are the numbers of gold and predicted answers a in the group; n_g is the group's number of questions.
    """
    total = sum(sum(counts.values()) for counts in gold.values())
    weighted = 0.0
    for group, expected in gold.items():
        score = sum((predicted[group][answer] - n) ** 2 / n for answer, n in expected.items())
        weighted += score * sum(expected.values())
    return weighted / total / 100 if total else 0.0


def breakdown(records: list[dict], hits: dict[str, float]) -> dict[str, float]:
    """Accuracy by GQA's types, percent: answer:open (structural "query") and answer:binary, structural:…, semantic:…."""
    return group_scores((kind, hits[record["question_id"]]) for record in records for kind in _kinds(record.get("types") or {}))


def _kinds(types: dict[str, str]) -> list[str]:
    kinds = [f"{name}:{types[name]}" for name in ("structural", "semantic") if name in types]
    if "structural" in types:
        kinds.append("answer:open" if types["structural"] == "query" else "answer:binary")
    return kinds


def distribution(records: list[dict], texts: dict[str, str]) -> dict[str, float]:
    """{"distribution": chi square over the records' answer groups}; empty when they have none."""
    gold, predicted = defaultdict(Counter), defaultdict(Counter)
    for record in records:
        group = (record.get("groups") or {}).get("global")
        if group is not None:
            gold[group][record["answer"]] += 1
            predicted[group][normalise(texts[record["question_id"]])] += 1
    return {"distribution": chi_square(gold, predicted)} if gold else {}


@register
class GqaExact(Metric):
    """Accuracy over balanced questions, with Binary, Open and per-type tables."""

    name = "gqa_exact"
    summary = "lower(p) without trailing periods == g, over balanced questions"
    source = "GQA's eval.py, as Ghy0501/HiDe-LLaVA (CoIN) and Minato-Zackie/SMoLoRA (CVIT) run it in eval_gqa.py"
    needs = "gqa"
    records = staticmethod(gqa_records)

    def legacy(self, job: Job) -> dict | None:
        """With Distribution beside it. None for an incomplete file: the published script stops at an unanswered question."""
        records = [record for record in job.gold if record["balanced"]]
        if any(record["question_id"] not in job.answers for record in records):
            return None
        # The published script builds a dict of the answers, so the last of two answers counts.
        texts = {row["question_id"]: row["text"] for row in job.rows}
        hits = {record["question_id"]: LEGACY(texts[record["question_id"]], record, job.options) for record in records}
        right = sum(hits[record["question_id"]] for record in records)
        result = {"score": percent(right, len(records)), "n": len(records)}
        return result | breakdown(records, hits) | distribution(records, texts)

    def clean(self, job: Job) -> tuple[dict, dict[str, float]]:
        """An unanswered question is wrong."""
        asked = Job(job.rows, [record for record in job.gold if record["balanced"]], job.options)
        result, verdicts = per_question(CLEAN)(asked)
        return result | breakdown(list(asked.by_id.values()), verdicts), verdicts
