"""Reading answer files and annotation files, with errors that name the file and the line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hide_llava.errors import UserError


def read_text(path: Path, what: str) -> str:
    """The text of one input file; UserError when it is missing or is not UTF-8."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{what} {path} does not exist; check the path.")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{what} {path} is not UTF-8 text (byte {error.start}); give the original JSON file.") from None


def read_json(path: Path, what: str = "file") -> Any:
    """One JSON document; UserError with file, line and column when it cannot be parsed."""
    text = read_text(path, what)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{what} {path} is not valid JSON at line {error.lineno}, column {error.colno} ({error.msg}); "
            "it may have been cut short, fetch or write it again."
        ) from None


def read_jsonl(path: Path, what: str = "answer file") -> list[dict]:
    """One JSON object per line. Blank lines are skipped.

    A line that cannot be parsed raises UserError naming the line: a half-written last line is what a killed
    evaluation leaves behind, and scoring the rest as if it were everything would be wrong.
    """
    lines = read_text(path, what).split("\n")  # not splitlines(): U+2028 inside a JSON string is no line end
    last = max((i for i, line in enumerate(lines) if line.strip()), default=-1)
    rows = []
    for i, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            where = f"the last line ({i + 1})" if i == last else f"line {i + 1}"
            advice = (
                "it was cut short: delete that line and resume the evaluation"
                if i == last
                else "repair or delete that line and evaluate the missing question again"
            )
            raise UserError(f"{what} {path}: {where} is not valid JSON ({error.msg}); {advice}.") from None
        if not isinstance(row, dict):
            raise UserError(f"{what} {path}: line {i + 1} is a JSON {type(row).__name__}, expected an object.")
        rows.append(row)
    return rows


def question_id(row: dict, what: str, number: int) -> str:
    """The row's id as a string: files of the field mix 7 and "7" for the same question."""
    value = row.get("question_id") if isinstance(row, dict) else None
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise UserError(f"{what}, record {number}: question_id is {value!r}, expected a string or an integer.")
    return str(value)


def check_predictions(rows: list[dict]) -> list[dict]:
    """Predictions with string ids and string texts, in the order given; UserError on anything else."""
    if not rows:
        raise UserError("There are no predictions to score: the answer file is empty; run the evaluation first.")
    checked = []
    for number, row in enumerate(rows, 1):
        qid = question_id(row, "predictions", number)
        if not isinstance(row.get("text"), str):
            raise UserError(
                f"predictions, record {number} (question_id {qid}): text is {row.get('text')!r}, expected the "
                "model's answer as a string."
            )
        checked.append({**row, "question_id": qid})
    return checked


def text_field(row: dict, field: str, what: str = "questions") -> str:
    """A reference answer as text. Whole numbers are written as text ("5"); anything else is refused."""
    value = row.get(field)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise UserError(f"{what}, question_id {row.get('question_id')}: {field} is {value!r}, expected a string.")
    return value


def text_list(row: dict, what: str = "questions") -> list[str]:
    """The reference answers of a record, from `answer` or `answers`: a string, a whole number or a list of them.

    VQA's {"answer": …} entries are unpacked. UserError when there is none or one is no text.
    """
    value = row.get("answers", row.get("answer"))
    values = value if isinstance(value, list) else [value]
    values = [v.get("answer") if isinstance(v, dict) else v for v in values]
    texts = [str(v) if isinstance(v, int) and not isinstance(v, bool) else v for v in values]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise UserError(
            f"{what}, question_id {row.get('question_id')}: answer is {value!r}, expected a string or a list of strings."
        )
    return texts


def question_rows(questions: list[dict], what: str = "questions") -> list[dict]:
    """Question records with string ids; UserError when it is not a list of records."""
    if not isinstance(questions, list):
        raise UserError(f"{what}: expected a JSON list of records, found {type(questions).__name__}.")
    return [{**row, "question_id": question_id(row, what, i)} for i, row in enumerate(questions, 1)]


def select(gold: dict[str, dict], questions: list[dict], source: Path) -> list[dict]:
    """The reference records of the questions asked, in question order; all of them when no questions are given."""
    if not questions:
        return list(gold.values())
    rows = question_rows(questions)
    for row in rows:
        if row["question_id"] not in gold:
            raise UserError(
                f"question_id {row['question_id']} of the question file has no entry in {source}; the two files do "
                "not belong together (a known defect of released CoIN scripts): use the matching split."
            )
    return [gold[row["question_id"]] for row in rows]


def annotation_rows(questions: list[dict], references: Path | None) -> list[dict]:
    """Records with their answers: the question records themselves, or those of a separate annotation file.

    With both, only the questions asked count, each of which must be annotated.
    """
    if references is None:
        return question_rows(questions)
    rows = question_rows(read_json(references, "annotation file"), str(references))
    return select({row["question_id"]: row for row in rows}, questions, references) if questions else rows
