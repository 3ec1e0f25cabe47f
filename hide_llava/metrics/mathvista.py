"""MathVista (Lu et al. 2024, arXiv 2310.02255): MLLM-ACL's Math task, by VLMEvalKit's evaluation.

The published pipeline takes what it can parse itself ("prefetch") and asks an LLM for the rest. Without a judge the rest
is wrong, which is labelled Math-rule. Answers are joined to MathVista's own testmini file by id. The published code
filled a shipped sheet of another model's answers from several workers, each of which overwrote the others; the metric
knows no sheet, only the answers it is given.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

from hide_llava.errors import UserError
from hide_llava.metrics.base import Job, Metric, per_question, per_row, register
from hide_llava.metrics.filters import has_words, numbers, option_letter, trim
from hide_llava.metrics.judge import judge_from
from hide_llava.metrics.letters import ALPHABET, check_options
from hide_llava.metrics.rows import is_number, read_table, select, text_field, where

RULE_LABEL = "Math-rule: no judge, not comparable with judged scores"
MARKS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
REFUSALS = (  # answers that MathVista's evaluation (VLMEvalKit) takes as option Z
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
KINDS = ("integer", "float", "list", "text")
READ = {"integer": int, "float": float}


def mathvista_records(questions: list[dict], references: Path | None, options: dict) -> list[dict]:
    """Records with answer, answer_type, choices and the judge.

    references: MathVista's testmini, {pid: record} or a list of records with pid; question id testmini_<n> is
    pid n + 1. Without it the question records carry the fields themselves. UserError on missing or unusable fields.
    """
    judge, records = judge_from(options), []
    for row in questions if references is None else _testmini(questions, references, options):
        kind, answer, choices = row.get("answer_type"), row.get("answer"), row.get("choices") or []
        if kind not in KINDS:
            raise UserError(f"{where(row)}: answer_type is {kind!r}, expected one of {', '.join(KINDS)}; give MathVista's "
                            "testmini.json as references.")  # fmt: skip
        answer = str(answer) if is_number(answer) else text_field(row, "answer")
        check_options({**row, "options": None})
        if not isinstance(choices, list):
            raise UserError(f"{where(row)}: choices are {choices!r}, expected a list of texts.")
        choices = [str(choice) for choice in choices]
        if choices and answer not in choices:
            raise UserError(f"{where(row)}: answer {answer!r} is none of its choices.")
        if not choices and kind in READ and _read(kind, answer) is None:
            raise UserError(f"{where(row)}: answer is {answer!r}, expected a number ({kind}).")
        option = ALPHABET[choices.index(answer)] if choices else None
        answers = [answer, *([option] if option else [])]
        records.append({**row, "answer": answer, "choices": choices, "option": option, "answers": answers, "judge": judge})
    return records


def _testmini(questions: list[dict], path: Path, options: dict) -> list[dict]:
    table = read_table(path, "MathVista file")
    rows = list(table.values()) if isinstance(table, dict) else table
    if not isinstance(rows, list) or not all(isinstance(r, dict) and str(r.get("pid", "")).isdecimal() for r in rows):
        raise UserError(f"{path}: expected MathVista's testmini, {{pid: record}} or a list of records with a pid.")
    gold = [
        {**row, "question_id": f"testmini_{int(row['pid']) - 1}", "_place": (str(path), number)}
        for number, row in enumerate(rows, 1)
    ]
    asked = {row["question_id"]: row.get("text") for row in questions}
    return [{**r, "text": asked.get(r["question_id"]) or r.get("query", r.get("question", ""))}
            for r in select(gold, questions, path, options)]  # fmt: skip


def _read(kind: str, text: str) -> float | None:
    """The number that Python's int() or float() makes of the whole text; None when it is none."""
    try:
        value = READ[kind](text)
        return value if math.isfinite(value) else None
    except (ValueError, OverflowError):
        return None


def infer_option(text: str, choices: list[str]) -> str | None:
    """The published reading: one option letter among the words, a refusal or a lone Z as "Z", else one choice's text.

    "a" is no letter but "A" is, also as an article; a choice is found inside longer words ("3" in "13").
    """
    if any(refusal in text for refusal in REFUSALS):
        return "Z"
    words = set(text.translate(MARKS).split())
    letters = [letter for letter in _letters(choices) if letter in words]
    if len(letters) == 1:
        return letters[0]
    if not letters and "Z" in words:
        return "Z"
    found = [letter for letter, choice in zip(_letters(choices), choices) if choice.lower() in text.lower()]
    return found[0] if len(found) == 1 else None


def _letters(choices: list[str]) -> str:
    return ALPHABET[: len(choices)]


def equal_number(text: str, record: dict) -> bool:
    """Python's int() or float() of the whole text equals the gold value's; other types are never equal."""
    read = READ.get(record["answer_type"])
    try:
        return read is not None and read(text) == read(record["answer"])
    except (ValueError, OverflowError):
        return False


def is_prefetched(text: str, record: dict) -> bool:
    """Whether the published code takes the text as it is: an option, right or wrong, or the right number unless 0."""
    if record["option"]:
        return infer_option(text, record["choices"]) is not None
    return equal_number(text, record) and float(text) != 0


def extracted(text: str, record: dict) -> str | None:
    """The text itself if prefetched, else the judge's reading of it, None without a judge."""
    if is_prefetched(text, record):
        return text
    return record["judge"].extract(str(record.get("text", "")), text) if record["judge"] else None


def published(text: str, record: dict, options: dict) -> int:
    """VLMEvalKit's check. List and text answers can never be right (it compares with the word "None")."""
    answer = extracted(text, record)
    if answer is None:
        return 0
    if record["option"]:
        return int(infer_option(answer, record["choices"]) == record["option"])
    return int(equal_number(answer, record))


def sane(text: str, record: dict, options: dict) -> int:
    """Clean: judge or not, an answer counts when its option, last number, list or words are the right ones."""
    answer = extracted(text, record) or text
    if record["option"]:
        return int(read_option(answer, record["choices"]) == record["option"])
    found, kind = numbers(answer), record["answer_type"]
    if kind == "integer":
        return int(bool(found) and found[-1] == float(record["answer"]))
    if kind == "float":
        digits = len(record["answer"].partition(".")[2])
        return int(bool(found) and round(found[-1], digits) == round(float(record["answer"]), digits))
    if kind == "list":
        lists = re.findall(r"\[[^\[\]]*\]", answer) or [answer]
        gold = numbers(record["answer"])
        return int(numbers(lists[-1]) == gold if gold else trim(answer) == trim(record["answer"]))
    return int(has_words(answer, record["answer"]))


def read_option(text: str, choices: list[str]) -> str | None:
    """The letter that the answer says, else that of the one choice it equals or holds as whole words."""
    return option_letter(text, _letters(choices), choices)


@register
class MathVista(Metric):
    """Both forms name the judge; without one what the rule cannot read is wrong, and the score says so."""

    name = "mathvista"
    summary = "option letter or number, read by rule or by a judge"
    source = "bjzhb666/MLLM-CL eval_math.py, from VLMEvalKit's MathVista (MLLM-ACL Math)"
    options = ("judge_url", "judge_model", "judge_prompt", "judge_cache")
    records = staticmethod(mathvista_records)

    def legacy(self, job: Job) -> dict:
        return {**per_row(published)(job), "judge": self._judge(job.options)}

    def clean(self, job: Job) -> tuple[dict, dict[str, float]]:
        score, verdicts = per_question(sane)(job)
        return {**score, "judge": self._judge(job.options)}, verdicts

    @staticmethod
    def _judge(options: dict) -> str:
        judge = judge_from(options)
        return judge.model if judge else "none"

    def labels(self, options: dict) -> list[str]:
        judge = judge_from(options)
        return [judge.label if judge else RULE_LABEL]

    def check(self, options: dict) -> None:
        judge_from(options)
