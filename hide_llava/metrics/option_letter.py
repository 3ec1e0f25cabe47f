"""Answer letters of multiple-choice questions: ScienceQA, with HiDe's and with CoIN's parser (spec hide.md §4.3)."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from hide_llava.errors import UserError
from hide_llava.metrics.base import Job, Metric, percent
from hide_llava.metrics.rows import question_rows, read_json, select

LETTERS = "ABCDE"
FAILED = "FAILED"
THE_ANSWER_IS = re.compile(r"The answer is ([A-Z]).")  # the last "." is any character, as published
LONE_CHARACTER = re.compile(r"\b(\w)\b")
IMAGE_TOKEN = "<image>"
Parser = Callable[[str], str]


def _leading_letter(text: str) -> str | None:
    """Rules (1) and (2), common to both: the text is one of A–E, or starts with one of them followed by ". "."""
    if len(text) == 1 and text in LETTERS:
        return text
    if len(text) >= 3 and text[0] in LETTERS and text[1:3] == ". ":
        return text[0]
    return None


def parse_hide(text: str) -> str:
    """HiDe: rule (3) is "The answer is X." matching exactly once. Case-sensitive; "FAILED" when nothing fits."""
    letter = _leading_letter(text)
    if letter:
        return letter
    found = THE_ANSWER_IS.findall(text)
    return found[0] if len(found) == 1 else FAILED


def parse_coin(text: str) -> str:
    """CoIN: rule (3) is the first one-character word anywhere, upper-cased; "a dog" gives A."""
    letter = _leading_letter(text)
    if letter:
        return letter
    found = LONE_CHARACTER.search(text)
    return found.group(1).upper() if found else FAILED


def choice_index(letter: str, n_choices: int) -> int:
    """A→0 … E→4; −1 when the letter is no option of this question."""
    index = LETTERS.find(letter) if len(letter) == 1 else -1
    return index if index < n_choices else -1


def scienceqa_records(questions: list[dict], references: Path | None, options: dict) -> list[dict]:
    """Records with "index" (the right choice, 0-based) and "n_choices".

    References: a folder with problems.json and pid_splits.json (options["split"], default "test"). Without it the
    question records must carry `answer` (a letter or an index) and may carry `choices`.
    """
    if references is None:
        return [_flat_record(row) for row in question_rows(questions)]
    folder = Path(references)
    if folder.is_file() and folder.name not in ("problems.json", "pid_splits.json"):
        return [_flat_record(row) for row in question_rows(read_json(folder, "annotation file"), str(folder))]
    folder = folder.parent if folder.is_file() else folder
    problems = read_json(folder / "problems.json", "ScienceQA problem file")
    split = options.get("split", "test")
    splits = read_json(folder / "pid_splits.json", "ScienceQA split file")
    if split not in splits:
        raise UserError(f"{folder / 'pid_splits.json'} has no split {split!r}; it has {', '.join(splits)}.")
    gold = {}
    for pid in map(str, splits[split]):
        problem = problems.get(pid)
        if not isinstance(problem, dict) or not isinstance(problem.get("answer"), int) or "choices" not in problem:
            raise UserError(f"{folder / 'problems.json'}: problem {pid} lacks an integer answer or its choices.")
        gold[pid] = {
            "question_id": pid,
            "index": problem["answer"],
            "answer": LETTERS[problem["answer"]] if problem["answer"] < len(LETTERS) else "",
            "n_choices": len(problem["choices"]),
            "image": problem.get("image"),
        }
    return select(gold, questions, folder / "problems.json")


def _flat_record(row: dict) -> dict:
    answer = row.get("answer")
    index = answer if isinstance(answer, int) and not isinstance(answer, bool) else -1
    if isinstance(answer, str):
        index = choice_index(answer.strip().upper(), len(LETTERS))
    if index < 0:
        raise UserError(f"question_id {row['question_id']}: answer is {answer!r}, expected a letter A–E or an index.")
    letter = LETTERS[index] if index < len(LETTERS) else ""
    return {**row, "index": index, "answer": letter, "n_choices": len(row.get("choices") or LETTERS)}


def _right(text: str, record: dict, parse: Parser) -> int:
    return int(choice_index(parse(text), record["n_choices"]) == record["index"])


def _legacy(parse: Parser, divide_by_problems: bool) -> Callable[[Job], dict]:
    """Correct over the problems ÷ number of predictions (HiDe) or number of problems (CoIN).

    image_accuracy: among problems whose stored prompt contains "<image>"; an unanswered one has no prompt.
    """

    def legacy(job: Job) -> dict:
        rows = {row["question_id"]: row for row in job.rows}  # a dict, so the last of two answers counts
        right, image_right, image_n = 0, 0, 0
        for qid, record in job.by_id.items():
            if qid not in rows:
                continue
            hit = _right(rows[qid]["text"], record, parse)
            right += hit
            if IMAGE_TOKEN in str(rows[qid].get("prompt", "")):
                image_right += hit
                image_n += 1
        n = len(job.by_id) if divide_by_problems else len(rows)
        image = percent(image_right, image_n) if image_n else None
        return {"score": percent(right, n), "n": n, "image_accuracy": image, "image_n": image_n}

    return legacy


def _clean(parse: Parser) -> Callable[[Job], tuple[dict, dict[str, float]]]:
    """Every problem counts, a missing answer is wrong; image_accuracy goes by the record's own image field."""

    def clean(job: Job) -> tuple[dict, dict[str, float]]:
        verdicts = {
            qid: _right(job.answers[qid]["text"], record, parse) if qid in job.answers else 0
            for qid, record in job.by_id.items()
        }
        images = [verdicts[qid] for qid, record in job.by_id.items() if record.get("image")]
        result = {"score": percent(sum(verdicts.values()), len(verdicts)), "n": len(verdicts)}
        result["image_accuracy"] = percent(sum(images), len(images)) if images else None
        result["image_n"] = len(images)
        return result, verdicts

    return clean


def _metric(name: str, summary: str, parse: Parser, divide_by_problems: bool) -> Metric:
    return Metric(
        name=name,
        summary=summary,
        source="spec hide.md §4.3: CoIN ScienceQA",
        gold=scienceqa_records,
        legacy=_legacy(parse, divide_by_problems),
        clean=_clean(parse),
        needs="scienceqa",
        options=("split",),
    )


OPTION_LETTER_HIDE = _metric(
    "option_letter_hide", 'answer letter: "A", "A. …" or one "The answer is A."', parse_hide, divide_by_problems=False
)
OPTION_LETTER_COIN = _metric(
    "option_letter_coin",
    'answer letter: "A", "A. …" or the first one-character word',
    parse_coin,
    divide_by_problems=True,
)
