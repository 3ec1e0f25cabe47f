"""Reading answer files and annotation files, with errors that name the file and the line."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hide_llava.errors import UserError


def read_text(path: Path, what: str) -> str:
    """The text of one input file, without a byte order mark; UserError when it is missing or is not UTF-8."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{what} {path} does not exist; check the path.")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{what} {path} is not UTF-8 text (byte {error.start}); give the original JSON file.") from None


def read_json(path: Path, what: str = "file") -> Any:
    """One JSON document; UserError with file, line and column when it cannot be parsed."""
    return _parse(path, what, read_text(path, what))


def _parse(path: Path, what: str, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{what} {path} is not valid JSON at line {error.lineno}, column {error.colno} ({error.msg}); "
            "it may have been cut short, fetch or write it again."
        ) from None


def read_table(path: Path, what: str) -> Any:
    """A file of questions or references: one JSON document, or JSON lines as the list of their records.

    The content tells the two apart, not the name: POPE's JSON lines are called .json. UserError as `read_json` and
    `read_jsonl`.
    """
    text = read_text(path, what)
    head, _, rest = text.lstrip().partition("\n")
    if head.startswith("{") and rest.lstrip().startswith("{"):  # one document never goes on like this
        return read_jsonl(path, what, text)
    table = _parse(path, what, text)
    return [table] if isinstance(table, dict) and "question_id" in table else table  # JSON lines of one line


def read_jsonl(path: Path, what: str = "answer file", text: str | None = None) -> list[dict]:
    """One JSON object per line. Blank lines are skipped. text: the content, where it has been read already.

    A line that cannot be parsed raises UserError naming the line: a half-written last line is what a killed
    evaluation leaves behind, and scoring the rest as if it were everything would be wrong.
    """
    text = read_text(path, what) if text is None else text
    lines = text.split("\n")  # not splitlines(): U+2028 inside a JSON string is no line end
    last = max((i for i, line in enumerate(lines) if line.strip()), default=-1)
    rows = []
    for i, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            where = f"the last line ({i + 1})" if i == last else f"line {i + 1}"
            advice = "it may have been cut short, fetch or write it again"
            if what == "answer file":
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


def by_prompt(rows: list[dict], records: list[dict]) -> list[dict]:
    """The predictions with the ids that `tell_apart` gave the questions: joined by id and prompt, as published scorers do.

    Other code's answers to LLaVA's TextVQA file have the id of the picture and the question as prompt. A prediction
    without a prompt, or whose prompt is no question's, keeps its id.
    """
    if any(record.get("question_id") is None for record in records):
        return rows
    groups, joined = families(records), []
    for row in rows:
        group, prompt = groups.get(row["question_id"]), row.get("prompt")
        record = of_family(group, prompt) if group and isinstance(prompt, str) else None
        joined.append({**row, "question_id": record["question_id"]} if record else row)
    return joined


def where(row: dict) -> str:
    """How an error names a record: its file, its number from 1, its id."""
    what, number = row.get("_place", ("questions", None))
    name = f"question_id {row.get('question_id')}"
    return f"{what}, record {number} ({name})" if number else f"{what}, {name}"


def as_text(value: Any) -> str | None:
    """A string, or a whole number written as text ("5"); None for anything else."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value if isinstance(value, str) else None


def is_number(value: Any) -> bool:
    """Whether a JSON value is a number that a float holds; true and false are none."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def text_field(row: dict, field: str) -> str:
    """A reference answer as text. Whole numbers are written as text ("5"); anything else is refused."""
    text = as_text(row.get(field))
    if text is None:
        raise UserError(f"{where(row)}: {field} is {row.get(field)!r}, expected a string.")
    return text


def text_list(row: dict) -> list[str]:
    """The reference answers of a record, from `answer` or `answers`: a string, a whole number or a list of them.

    VQA's {"answer": …} entries are unpacked. UserError when there is none or one is no text.
    """
    value = row.get("answers", row.get("answer"))
    values = value if isinstance(value, list) else [value]
    texts = [as_text(v.get("answer") if isinstance(v, dict) else v) for v in values]
    if not texts or None in texts:
        raise UserError(f"{where(row)}: answer is {value!r}, expected a string or a list of strings.")
    return texts


def question_rows(questions: list[dict], what: str = "questions", apart: bool = True) -> list[dict]:
    """Question records with string ids, each of which knows its place for `where`.

    what: the file's name. apart: records that repeat an id with another text get an id of their own (`tell_apart`).
    UserError when it is not a list of records, or when two ids differ only in that one is a number and one a text:
    answers are joined by the id as text.
    """
    if not isinstance(questions, list):
        raise UserError(f"{what}: expected a JSON list of records, found {type(questions).__name__}.")
    rows: list[dict] = []
    written: dict[str, Any] = {}
    for number, row in enumerate(questions, 1):
        qid = question_id(row, what, number)
        first = written.setdefault(qid, row["question_id"])
        if type(first) is not type(row["question_id"]):
            raise UserError(
                f"{what}, record {number}: question_id is {row['question_id']!r}, and {first!r} stands before it; answers "
                "are joined by the id as text, so write ids as numbers or as texts, not as both."
            )
        rows.append({"_place": (what, number), **row, "question_id": qid})
    return tell_apart(rows) if apart else rows


def tell_apart(rows: list[dict]) -> list[dict]:
    """Records whose id stands for several questions get ids of their own: the k-th text of id X becomes X#k from 2 on.

    LLaVA's TextVQA file is of this kind: its ids are the images', and published scorers join by id and question. A
    record that repeats id and text is left as it is; whoever needs unique ids refuses it.
    """
    texts: dict[str, list[str]] = {}
    told = []
    for row in rows:
        text = row.get("text", row.get("question"))
        known = texts.setdefault(row["question_id"], [])
        if not known or (text is not None and text not in known):
            known.append(text)
        k = known.index(text) + 1 if text is not None else 1
        told.append({**row, "question_id": f"{row['question_id']}#{k}"} if k > 1 else row)
    return told


def families(records: Iterable[dict]) -> dict[str, list[dict]]:
    """{id: the records that `tell_apart` numbered under it, the first one included}, of ids with at least two."""
    found: dict[str, list[dict]] = {}
    for record in records:
        base, mark, number = record["question_id"].rpartition("#")
        found.setdefault(base if mark and number.isdecimal() else record["question_id"], []).append(record)
    return {base: group for base, group in found.items() if len(group) > 1}


def of_family(group: list[dict], text: str) -> dict | None:
    """The one record of a family that a text belongs to: it equals the record's text, or begins with it."""
    for fits in (lambda own: text == own, lambda own: bool(own) and text.startswith(own)):
        found = [r for r in group if fits(r.get("text", r.get("question", "")))]
        if len(found) == 1:
            return found[0]
    return None


def check_unique(rows: list[dict], what: str, options: dict) -> list[str]:
    """A label when ids repeat; UserError unless the option allow_duplicates counts them as the published scripts do."""
    twice = [qid for qid, n in Counter(row["question_id"] for row in rows).items() if n > 1]
    if not twice:
        return []
    if not options.get("allow_duplicates"):
        raise UserError(
            f"question_id {twice[0]} occurs more than once in {what} ({len(twice)} such ids); keep one record "
            "each, or set allow_duplicates to count them as the published scripts do."
        )
    return [f"duplicate ids in {what}"]


def select(gold: list[dict], questions: list[dict], source: Path, options: dict) -> list[dict]:
    """The reference records of the questions asked, in question order; all of them when no questions are given.

    A record takes the question's text and options where it has none itself. UserError when a question has no record,
    or when two records have one id (unless allow_duplicates, by which the last one counts).
    """
    if not questions:
        return gold
    check_unique(gold, str(source), options)
    by_id, groups = {record["question_id"]: record for record in gold}, families(gold)
    chosen = []
    for row in questions:
        record = by_id.get(row["question_id"])
        base = row["question_id"].rpartition("#")[0] or row["question_id"]
        if base in groups and isinstance(row.get("text"), str):  # the same questions, perhaps in another order
            record = of_family(groups[base], row["text"]) or record
        if record is None:
            raise UserError(
                f"question_id {row['question_id']} of the question file has no entry in {source}; the two files do "
                "not belong together (a known defect of released CoIN scripts): use the matching split."
            )
        own = {key: row[key] for key in ("text", "choices", "options") if key in row}
        chosen.append({**own, **record, "question_id": row["question_id"]})
    return chosen


def annotation_rows(questions: list[dict], references: Path | None, options: dict) -> list[dict]:
    """Records with their answers: the question records themselves, or those of a separate annotation file.

    With both, only the questions asked count, each of which must be annotated.
    """
    if references is None:
        return questions
    table = read_table(references, "annotation file")
    rows = question_rows(table, str(references), apart=not options.get("allow_duplicates"))
    return select(rows, questions, references, options)


def answer_records(questions: list[dict], references: Path | None, options: dict) -> list[dict]:
    """Records with "answer", one text, from the annotation file or from the questions themselves."""
    rows = annotation_rows(questions, references, options)
    return [{**row, "answer": text_field(row, "answer")} for row in rows]


def list_records(questions: list[dict], references: Path | None, options: dict) -> list[dict]:
    """Records with "answers", at least one text each, read from `answer` or `answers`; the raw `answer` is kept."""
    return [{**row, "answers": text_list(row)} for row in annotation_rows(questions, references, options)]
