"""ScienceQA (Lu et al. 2022, arXiv 2209.09513): its files, the published parsers of answer letters, and its joins."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from hide_llava.errors import UserError
from hide_llava.metrics.base import Clean, Job, last_per_question, per_question, percent
from hide_llava.metrics.filters import Rule, option_letter
from hide_llava.metrics.letters import ALPHABET, check_options, option_letters, option_texts
from hide_llava.metrics.rows import annotation_rows, read_json, select, where

LETTERS = "ABCDE"
FAILED = "FAILED"
THE_ANSWER_IS = re.compile(r"The answer is ([A-Z]).")  # the last "." is any character, as published
LONE_CHARACTER = re.compile(r"\b(\w)\b")
IMAGE_TOKEN = "<image>"


def _leading_letter(text: str) -> str | None:
    """Rules (1) and (2), common to both: the text is one of A–E, or starts with one of them followed by ". "."""
    if len(text) == 1 and text in LETTERS:
        return text
    if len(text) >= 3 and text[0] in LETTERS and text[1:3] == ". ":
        return text[0]
    return None


def parse_hide(text: str, record: dict | None = None) -> str:
    """HiDe: rule (3) is "The answer is X." matching exactly once. Case-sensitive; "FAILED" when nothing fits."""
    letter = _leading_letter(text)
    if letter:
        return letter
    found = THE_ANSWER_IS.findall(text)
    return found[0] if len(found) == 1 else FAILED


def parse_coin(text: str, record: dict | None = None) -> str:
    """CoIN: rule (3) is the first one-character word anywhere, upper-cased; "a dog" gives A."""
    letter = _leading_letter(text)
    if letter:
        return letter
    found = LONE_CHARACTER.search(text)
    return found.group(1).upper() if found else FAILED


def scienceqa_records(questions: list[dict], references: Path | None, options: dict) -> list[dict]:
    """Records with "index" (the right choice, 0-based), "answer" (its letter) and "n_choices".

    References: a folder with problems.json and pid_splits.json (options["split"], default "test"). Without it the
    question records must carry `answer` (a letter or an index) and may carry `choices`. UserError where the answer is
    none of the choices, unless the option allow_unanswerable keeps such a question, which no answer then gets right.
    """
    if references is None:
        return [_flat_record(row, options) for row in questions]
    folder = Path(references)
    if folder.is_file() and folder.name not in ("problems.json", "pid_splits.json"):
        return [_flat_record(row, options) for row in annotation_rows(questions, references, options)]
    folder = folder.parent if folder.is_file() else folder
    file, split = folder / "problems.json", str(options.get("split", "test"))
    problems = read_json(file, "ScienceQA problem file")
    splits = read_json(folder / "pid_splits.json", "ScienceQA split file")
    if not isinstance(problems, dict) or not isinstance(splits, dict):
        raise UserError(f"{folder}: problems.json and pid_splits.json must be objects, {{id: problem}} and {{split: ids}}.")
    if not isinstance(splits.get(split), list):
        raise UserError(f"{folder / 'pid_splits.json'} has no split {split!r}; it has {', '.join(map(str, splits))}.")
    gold = []
    for pid in map(str, splits[split]):
        problem = problems.get(pid)
        if not isinstance(problem, dict):
            raise UserError(f"{file}: problem {pid} of split {split!r} is not there.")
        kept = {key: problem[key] for key in ("answer", "choices", "image") if key in problem}
        if not isinstance(problem.get("choices"), list) or not isinstance(problem.get("answer"), int):
            raise UserError(f"{file}: problem {pid} lacks an integer answer or its choices.")
        gold.append(_flat_record({"_place": (f"{file}: problem {pid}", None), **kept, "question_id": pid}, options))
    return select(gold, questions, file, options)


def _flat_record(row: dict, options: dict) -> dict:
    check_options(row)
    answer = row.get("answer")
    letters = option_letters(row) if row.get("choices") or row.get("options") else LETTERS
    index = answer if isinstance(answer, int) and not isinstance(answer, bool) else -1
    if isinstance(answer, str) and len(answer.strip()) == 1:
        index = ALPHABET.find(answer.strip().upper())
    if not 0 <= index < len(ALPHABET) or (index >= len(letters) and not options.get("allow_unanswerable")):
        raise UserError(f"{where(row)}: answer is {answer!r}, expected a letter {letters[0]}–{letters[-1]} or an index.")
    return {**row, "index": index, "answer": ALPHABET[index], "n_choices": len(letters)}


def offered(letter: str, record: dict) -> str | None:
    """The letter if it is one of A–E and of the problem's options, else None."""
    return letter if letter in [*LETTERS[: record["n_choices"]]] else None


def named_choice(text: str, record: dict) -> str | None:
    """The letter of the problem's choice that the answer names, by its letter or by its text."""
    return option_letter(text, ALPHABET[: record["n_choices"]], option_texts(record))


def per_prediction(rule: Rule) -> Callable[[Job], dict]:
    """HiDe's legacy join: right answers of the problems ÷ number of PREDICTIONS, of two answers the last counts.

    image_accuracy: of the answered problems whose stored prompt contains "<image>".
    """

    def legacy(job: Job) -> dict:
        rows = {row["question_id"]: row for row in job.rows}
        hits = {qid: rule(rows[qid]["text"], record, job.options) for qid, record in job.by_id.items() if qid in rows}
        images = [hit for qid, hit in hits.items() if IMAGE_TOKEN in str(rows[qid].get("prompt", ""))]
        return {"score": percent(sum(hits.values()), len(rows)), "n": len(rows), **_image_accuracy(images)}

    return legacy


def per_problem(rule: Rule) -> Callable[[Job], dict]:
    """CoIN's legacy join: as `per_prediction`, but ÷ number of PROBLEMS."""
    return lambda job: {**per_prediction(rule)(job), **last_per_question(rule)(job)}


def with_images(rule: Rule) -> Clean:
    """The clean join, and image_accuracy of the problems whose record has an image."""

    def clean(job: Job) -> tuple[dict, dict[str, float]]:
        result, verdicts = per_question(rule)(job)
        images = [verdicts[qid] for qid, record in job.by_id.items() if record.get("image")]
        return {**result, **_image_accuracy(images)}, verdicts

    return clean


def _image_accuracy(hits: list[float]) -> dict:
    return {"image_accuracy": percent(sum(hits), len(hits)) if hits else None, "image_n": len(hits)}
