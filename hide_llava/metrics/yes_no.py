"""Yes/no benchmarks of general ability: POPE (arXiv 2305.10355) and MME (arXiv 2306.13394)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from hide_llava.errors import UserError
from hide_llava.metrics import filters
from hide_llava.metrics.base import Job, Metric, percent, register
from hide_llava.metrics.rows import annotation_rows, text_field, where

Parser = Callable[[str], str | None]
PERCEPTION = "existence count position color posters celebrity scene landmark artwork ocr"
COGNITION = "commonsense_reasoning numerical_calculation text_translation code_reasoning"
PARTS = {"perception": PERCEPTION.split(), "cognition": COGNITION.split()}


def yes_no_records(questions: list[dict], references: Path | None, options: dict) -> list[dict]:
    """Records whose answer is "yes" or "no", under `answer` or, as POPE's own files have it, under `label`."""
    records = []
    for row in annotation_rows(questions, references, options):
        given = [filters.trim(text_field(row, key)) for key in ("answer", "label") if row.get(key) is not None]
        if not given or given[0] not in ("yes", "no"):
            raise UserError(f"{where(row)}: answer is {row.get('answer', row.get('label'))!r}, expected yes or no.")
        if len(set(given)) > 1:
            raise UserError(f"{where(row)}: answer is {row['answer']!r} but label is {row['label']!r}; keep one of them.")
        records.append({**row, "answer": given[0]})
    return records


def mme_records(questions: list[dict], references: Path | None, options: dict) -> list[dict]:
    """Yes/no records with exactly two questions an image and category; UserError otherwise (unless allow_partial)."""
    rows = yes_no_records(questions, references, options)
    for row in rows:
        if not isinstance(row.get("image"), str):
            raise UserError(f"{where(row)}: MME pairs questions by image, but image is missing.")
    for (category, image), hits in _pairs({r["question_id"]: r for r in rows}, {}).items():
        if len(hits) != 2 and not options.get("allow_partial"):
            raise UserError(f"image {image} of category {category} has {len(hits)} questions; MME asks two of each.")
    return rows


def parse_pope(text: str) -> str:
    """POPE: the first sentence without commas; "no" if one of its words is No, not or no, else "yes", also if empty."""
    words = text.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "not", "no"} & set(words) else "yes"


def parse_mme(text: str) -> str | None:
    """MME: yes or no in the first four letters ("not sure" is no); None otherwise."""
    start = text.lower()[:4]
    return "yes" if "yes" in start else "no" if "no" in start else None


def _counts(parsed: dict[str, str | None], gold: dict[str, dict]) -> dict:
    """Accuracy, precision, recall and F1 of "yes", share of "yes", percent; unreadable = neither yes nor no."""
    n = len(parsed)
    yes = sum(p == "yes" for p in parsed.values())
    true = sum(p == "yes" and gold[i]["answer"] == "yes" for i, p in parsed.items())
    right = sum(p == gold[i]["answer"] for i, p in parsed.items())
    asked = sum(gold[i]["answer"] == "yes" for i in parsed)
    precision, recall = percent(true, yes), percent(true, asked)
    f1 = 2 * precision * recall / (precision + recall) if true else 0.0
    result = {"score": percent(right, n), "n": n, "precision": precision, "recall": recall, "F1": f1}
    return {**result, "yes_ratio": percent(yes, n), "unreadable": sum(p is None for p in parsed.values())}


def _pope(parsed: dict[str, str | None], job: Job) -> dict:
    """`_counts` of all questions; with several categories also of each, and the means over them.

    POPE has three (random, popular, adversarial), and the mean of their F1 is the number that papers print.
    """
    result, groups = _counts(parsed, job.by_id), {}
    for i, said in parsed.items():
        groups.setdefault(str(job.by_id[i].get("category", "")), {})[i] = said
    if len(groups) < 2:
        return result
    parts = {name: _counts(group, job.by_id) for name, group in sorted(groups.items())}
    for name, key in (("accuracy", "score"), ("F1", "F1"), ("yes_ratio", "yes_ratio")):
        result |= {f"{name}:{category}": part[key] for category, part in parts.items()}
        result[f"mean_{name}"] = sum(part[key] for part in parts.values()) / len(parts)
    return result


def _parsed(job: Job, parse: Parser, asked: bool) -> dict[str, str | None]:
    """{question id: yes, no or None}: of all questions, or of those with an answer (the last of two counts)."""
    if asked:
        return {i: parse(job.answers[i]["text"]) if i in job.answers else None for i in job.by_id}
    return {row["question_id"]: parse(row["text"]) for row in job.rows}


def _hits(parsed: dict, job: Job) -> dict[str, float]:
    return {i: float(p == job.by_id[i]["answer"]) for i, p in parsed.items()}


def _pairs(gold: dict[str, dict], hits: dict[str, float]) -> dict[tuple[str, str], list[float]]:
    pairs: dict[tuple[str, str], list[float]] = {}
    for i, record in gold.items():
        pairs.setdefault((str(record.get("category", "all")), record["image"]), []).append(hits.get(i, 0.0))
    return pairs


def _mme(parsed: dict, job: Job) -> dict:
    """Accuracy, accuracy+ (both questions of an image right) and MME's sums of the two over categories."""
    hits = _hits(parsed, job)
    by_category: dict[str, list[list[float]]] = {}
    for (category, _), pair in _pairs({i: job.by_id[i] for i in parsed}, hits).items():
        by_category.setdefault(category, []).append(pair)
    pairs = [pair for group in by_category.values() for pair in group]
    result = {"score": percent(sum(hits.values()), len(hits)), "n": len(hits)}
    result["accuracy_plus"] = percent(sum(map(all, pairs)), len(pairs))
    sums = {
        category: percent(sum(map(sum, group)), sum(map(len, group))) + percent(sum(map(all, group)), len(group))
        for category, group in by_category.items()
    }
    for part, known in PARTS.items():
        if all(category in sums for category in known):
            result[part] = sum(sums[category] for category in known)
    return result | {f"sum:{category}": value for category, value in sorted(sums.items())}


class YesNoMetric(Metric):
    """legacy: as `parse` reads the rows there are. clean: as `filters.yes_no` reads the answers to all questions."""

    parse: Parser
    count: Callable[[dict[str, str | None], Job], dict]

    def legacy(self, job: Job) -> dict:
        return self.count(_parsed(job, self.parse, asked=False), job)

    def clean(self, job: Job) -> tuple[dict, dict[str, float]]:
        parsed = _parsed(job, filters.yes_no, asked=True)
        return self.count(parsed, job), _hits(parsed, job)


@register
class Pope(YesNoMetric):
    name = "yes_no"
    summary = "yes/no accuracy with precision, recall, F1 and share of yes"
    source = "Li et al. 2023, POPE (arXiv 2305.10355)"
    records, parse, count = staticmethod(yes_no_records), staticmethod(parse_pope), staticmethod(_pope)


@register
class Mme(YesNoMetric):
    name = "mme"
    summary = "yes/no accuracy, and accuracy+ over image pairs"
    source = "Fu et al. 2023, MME (arXiv 2306.13394)"
    records, parse, count = staticmethod(mme_records), staticmethod(parse_mme), staticmethod(_mme)
