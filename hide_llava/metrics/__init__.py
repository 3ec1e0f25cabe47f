"""Scores of answer files: each by the published rule and by a clean one beside it.

    score("exact_upper", predictions, questions)            rows in memory
    score_files("exact_upper", "merge.jsonl", "test.json")  files

`rules.py` is the table of the metrics that are one rule for one answer; those that are more have files of their own.
Metrics know strings, never models.
"""

from __future__ import annotations

import difflib
from pathlib import Path

from hide_llava.errors import UserError
from hide_llava.metrics import (  # noqa: F401
    answer_format,
    caption,
    cider,
    ctbench,
    gqa,
    grounding,
    mathvista,
    mmbench,
    mmmu,
    ocrbench,
    rules,
    seed_mmstar,
    vqa,
    yes_no,
)
from hide_llava.metrics.base import METRICS, OPTIONS, SWITCHES, Job, Metric, check_join
from hide_llava.metrics.error_profile import error_profile, gold_answers
from hide_llava.metrics.ptb import java_available, java_version
from hide_llava.metrics.rows import by_prompt, check_predictions, question_rows, read_jsonl, read_table

__all__ = [
    "ALL_EMPTY",
    "METRICS",
    "Metric",
    "get",
    "java_available",
    "java_version",
    "names",
    "parse_options",
    "score",
    "score_files",
]

ALL_EMPTY = "all answers are empty"
"""The label of a score whose answers hold nothing at all: what a diverged or an untrained model leaves behind."""

def names() -> list[str]:
    """The names of all metrics, sorted."""
    return sorted(METRICS)


def get(name: str) -> Metric:
    """The metric of that name; UserError with the nearest known name otherwise."""
    if name in METRICS:
        return METRICS[name]
    near = difflib.get_close_matches(str(name), METRICS, n=1, cutoff=0.3)
    hint = f"did you mean {near[0]}? " if near else ""
    raise UserError(f"There is no metric {name!r}; {hint}Known metrics: {', '.join(names())}.")


def score(
    metric: str,
    predictions: list[dict],
    questions: list[dict],
    references: Path | None = None,
    options: dict | None = None,
) -> dict:
    """Score answers; a JSON-able dict.

    predictions: rows {question_id, text, prompt?…} in question order. questions: the test file's rows {question_id,
    text, answer, …}. references: the extra annotation file or folder some metrics need (`Metric.needs`).
    options: allow_partial, allow_duplicates, headline ("legacy" or "clean"; default: the metric's own), and those of the metric
    (docs/METRICS.md): tokenizer, spice, case, split, judge_url …

    Returns {"metric", "score" (headline, percent), "headline", "legacy": {"score", "n", …} (absent when the published
    script would have stopped), "clean": {…} (absent when ids cannot be joined), "n_expected", "n_scored", "labels",
    "verdicts": {question_id: 0…1}, "error_profile": {kind: wrong answers} where gold answers are short texts}.
    UserError on an unknown metric or option, bad rows, ids that do not belong together, duplicates or missing answers
    (unless allowed).
    """
    rule = get(metric)
    options = _known_options(rule, options or {})
    gold = rule.gold(questions or [], Path(references) if references else None, options)
    rows = by_prompt(check_predictions(predictions), gold)
    job = Job(rows, gold, options)
    labels = check_join(job)
    if not any(row["text"].strip() for row in rows):
        labels.append(ALL_EMPTY)
    if rule.positional and job.joinable and not job.in_order:
        labels.append("answers not in question order: the positional legacy score is not meaningful")
    labels += rule.labels(options)
    legacy, clean = rule.legacy(job), rule.clean(job)
    headline = _headline(legacy, clean, options.get("headline", rule.headline))
    result = {
        "metric": rule.name,
        "score": (legacy if headline == "legacy" else clean[0])["score"],
        "headline": headline,
        "n_expected": job.n_expected,
        "n_scored": job.n_scored,
        "labels": labels,
    }
    if legacy is not None:
        result["legacy"] = legacy
    if clean is not None:
        result["clean"], result["verdicts"] = clean
        apart = job.joinable and result["verdicts"].keys() == job.by_id.keys()  # a verdict may also be on several questions
        if apart and all(gold_answers(record) and "captions" not in record for record in job.gold):
            result["error_profile"] = error_profile(rows, list(job.by_id.values()), result["verdicts"])
    return result


def check_options(metric: str, options: dict) -> None:
    """Raises UserError for options that the metric does not read: to be asked before anything is answered."""
    rule = get(metric)
    _known_options(rule, options)
    _known_headline(options.get("headline", rule.headline))


def _known_headline(wanted: object) -> None:
    if wanted not in ("legacy", "clean"):
        raise UserError(f'Option headline is {wanted!r}; it may be "legacy" or "clean".')


def _known_options(rule: Metric, options: dict) -> dict:
    """A copy; UserError on an option the metric does not read: a misspelt one would silently change nothing."""
    known = (*OPTIONS, *rule.options)
    for name in options:
        if name not in known:
            raise UserError(f"Metric {rule.name} has no option {name!r}; it reads {', '.join(known)}.")
        if name in SWITCHES and not isinstance(options[name], bool):
            raise UserError(f"Option {name} is {options[name]!r}; it may be true or false.")
    return dict(options)


def parse_options(words: list[str]) -> dict:
    """KEY=VALUE words as options: true and false become booleans. UserError on a word without "="."""
    for word in words:
        if "=" not in word:
            raise UserError(f"Option {word!r} is not of the form KEY=VALUE, for example case=insensitive.")
    pairs = dict(word.split("=", 1) for word in words)
    return {key: {"true": True, "false": False}.get(value, value) for key, value in pairs.items()}


def _headline(legacy: dict | None, clean: tuple | None, wanted: str) -> str:
    _known_headline(wanted)
    if legacy is None and clean is None:
        raise UserError(
            "Neither the legacy nor the clean rule can score these answers: the file is incomplete and there is no "
            "question file to join it by id; finish the evaluation or give the question file."
        )
    available = {"legacy": legacy, "clean": clean}
    return wanted if available[wanted] is not None else ("clean" if wanted == "legacy" else "legacy")


def score_files(
    metric: str,
    predictions: Path,
    references: Path | None,
    questions: Path | None = None,
    options: dict | None = None,
) -> dict:
    """`score` on files. references: what the published evaluation script took.

    That is the annotation JSON (a list of records with answers), a COCO-type file (captions), GQA's question file,
    TextVQA's {"data"} file, or the folder with problems.json and pid_splits.json. questions: the test file, which the
    clean caption score needs for its join by id; optional elsewhere. UserError names the file and the line.
    """
    rule = get(metric)
    rows = read_jsonl(Path(predictions), "answer file")
    apart = not (options or {}).get("allow_duplicates")
    asked = question_rows(read_table(Path(questions), "question file"), str(questions), apart) if questions else []
    if references is None and not asked:
        raise UserError(f"Metric {rule.name} needs references (kind: {rule.needs}); give --references FILE.")
    if rule.needs == "questions" and not asked:
        table = read_table(Path(references), "annotation file")
        if isinstance(table, list):  # records with answers are questions; anything else is for the rule to read
            return score(metric, rows, question_rows(table, str(references), apart), None, options)
    return score(metric, rows, asked, Path(references) if references else None, options)
