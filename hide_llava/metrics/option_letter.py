"""Answer letters of multiple-choice questions: ScienceQA, with HiDe's and with CoIN's parser in the legacy forms."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from hide_llava.errors import UserError
from hide_llava.metrics.answers import option_letter
from hide_llava.metrics.base import Job, Metric, per_question, percent
from hide_llava.metrics.letters import ALPHABET, check_options, option_letters, option_texts
from hide_llava.metrics.rows import annotation_rows, read_json, select, where

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


def named(text: str, record: dict, options: dict) -> int:
    """1 iff the option that the answer names, by its letter or by its text, is the right one."""
    letters = ALPHABET[: record["n_choices"]]
    return int(option_letter(text, letters, option_texts(record)) == record["answer"])


def letters_clean(job: Job) -> tuple[dict, dict[str, float]]:
    """Every problem counts, a missing answer is wrong; image_accuracy goes by the record's own image field."""
    result, verdicts = per_question(named)(job)
    images = [verdicts[qid] for qid, record in job.by_id.items() if record.get("image")]
    result["image_accuracy"] = percent(sum(images), len(images)) if images else None
    result["image_n"] = len(images)
    return result, verdicts


def _metric(name: str, summary: str, parse: Parser, divide_by_problems: bool) -> Metric:
    return Metric(
        name=name,
        summary=summary,
        source="spec hide.md §4.3: CoIN ScienceQA",
        records=scienceqa_records,
        legacy=_legacy(parse, divide_by_problems),
        clean=letters_clean,
        needs="scienceqa",
        options=("split", "allow_unanswerable"),
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
