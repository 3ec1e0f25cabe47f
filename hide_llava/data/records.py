"""Annotation files → validated records.

Training files (a LLaVA JSON array, up to hundreds of MB) are streamed once into a memory-mapped Arrow table and cached
by content, so that any number of processes share the pages and a second start costs nothing. Test files are small and
stay plain lists.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import datasets
import ijson
from datasets.arrow_writer import ArrowWriter
from tqdm import tqdm

from hide_llava.errors import UserError
from hide_llava.storage import writing

# `id` is JSON text: 7 and "7" are different ids in the answer files, and a column has one type.
FEATURES = datasets.Features(
    {
        "id": datasets.Value("string"),
        "image": datasets.Value("string"),
        "conversations": [{"from": datasets.Value("string"), "value": datasets.Value("string")}],
    }
)
LAYOUT = "1"  # part of the cache key; raise it when FEATURES or the checks below change


def load_records(json_file: Path, image_root: Path, cache_dir: Path | None = None) -> datasets.Dataset:
    """The training records of `json_file` as a memory-mapped table with columns `FEATURES`.

    Cached under `cache_dir`, else $HIDE_CACHE, else ~/.cache/hide-llava, keyed by the content of the file. Several
    processes may build the same table at once. `image_root` is only named in errors: whether the images exist is for
    the dataset to check. Raises UserError for anything that is not a LLaVA JSON array.
    """
    json_file = Path(json_file)
    _check_is_array(json_file)
    table = _cache_folder(cache_dir) / f"records-{_digest(json_file)}.arrow"
    if not table.is_file():
        _build_table(json_file, Path(image_root), table)
    info = datasets.DatasetInfo(description=str(json_file), features=FEATURES)
    return datasets.Dataset.from_file(str(table), info=info)


def load_questions(file: Path, image_root: Path | None = None) -> list[dict[str, Any]]:
    """The questions of a flat test file: a JSON array (or .jsonl) of {question_id, text, image?, answer?, …}.

    Further fields are kept for the metrics. Raises UserError for a missing text or id and for a repeated id.
    """
    file = Path(file)
    questions: list[dict[str, Any]] = []
    seen: dict[str, int] = {}
    for index, question in enumerate(stream(file)):
        where = check_question(question, f"{file}: question {index}", image_root)
        key = json.dumps(question["question_id"])
        if key in seen:
            raise UserError(
                f"{where} repeats the id of question {seen[key]}; answers are joined by id, so every id must be unique."
            )
        seen[key] = index
        questions.append(dict(question))
    if not questions:
        raise UserError(f"{file} holds no questions.")
    return questions


# ------------------------------------------------------------------------------------------------------------ the table


def _build_table(json_file: Path, image_root: Path, table: Path) -> None:
    table.parent.mkdir(parents=True, exist_ok=True)
    # Written under a name of its own and renamed when complete: a crash or a second process leaves no half table.
    temporary = table.with_name(f"{table.name}.{uuid.uuid4().hex}.tmp")
    try:
        count = 0
        with writing(table), ArrowWriter(features=FEATURES, path=str(temporary)) as writer:
            records = tqdm(stream(json_file), desc=f"reading {json_file.name}", delay=5, disable=None)
            for index, record in enumerate(records):
                writer.write(check_record(record, f"{json_file}: record {index}", image_root))
                count = index + 1
            if count:
                writer.finalize()
        if not count:
            raise UserError(f"{json_file} holds no records (an empty list).")
        os.replace(temporary, table)
    finally:
        temporary.unlink(missing_ok=True)


def check_question(question: Any, where: str, image_root: Path | None) -> str:
    """`where` with the question's id, if it is a well-formed test question; UserError naming `where` if not."""
    if not isinstance(question, Mapping):
        raise UserError(f"{where} is a {type(question).__name__}, expected an object with question_id and text.")
    if not isinstance(question.get("question_id"), str | int):
        raise UserError(f"{where} has no question_id (a string or a whole number); add one that is unique.")
    where += f" (question_id {question['question_id']!r})"
    if not isinstance(question.get("text"), str) or not question["text"].strip():
        raise UserError(f"{where} has no text; every question needs a non-empty 'text' string.")
    _check_image(question.get("image"), where, image_root)
    return where


def check_record(record: Any, where: str, image_root: Path) -> dict[str, Any]:
    """A training record in the shape of FEATURES, if it is well-formed; UserError naming `where` if not."""
    if not isinstance(record, Mapping):
        raise UserError(f"{where} is a {type(record).__name__}, expected an object with 'conversations'.")
    identity = record.get("id", record.get("question_id"))
    if identity is not None:
        where += f" (id {identity!r})"
    _check_image(record.get("image"), where, image_root)
    turns = record.get("conversations")
    if not isinstance(turns, list) or not turns:
        raise UserError(f"{where} has no conversations; expected a non-empty list of {{from, value}} turns.")
    for number, turn in enumerate(turns, start=1):
        _check_turn(turn, f"{where}, turn {number}")
    # The reference skips one assistant turn at the start; after it, questions and answers must alternate.
    start = 1 if turns[0]["from"] == "gpt" else 0
    for number, turn in enumerate(turns[start:]):
        if turn["from"] != ("human", "gpt")[number % 2]:
            raise UserError(
                f"{where}, turn {number + start + 1} is from {turn['from']!r}, like the one before; "
                "human and gpt turns must alternate."
            )
    if start == len(turns):
        raise UserError(f"{where} has no human turn.")
    return {
        "id": json.dumps(identity),
        "image": record.get("image"),
        "conversations": [{"from": turn["from"], "value": turn["value"]} for turn in turns],
    }


def _check_turn(turn: Any, where: str) -> None:
    if not isinstance(turn, Mapping) or not isinstance(turn.get("value"), str):
        raise UserError(f"{where} must be an object with 'from' and a string 'value'.")
    if turn.get("from") not in ("human", "gpt"):
        raise UserError(f"{where} has the role {turn.get('from')!r}; the roles are 'human' and 'gpt'.")


def _check_image(image: Any, where: str, image_root: Path | None) -> None:
    """`image` is absent, or a relative path that stays inside the image root (a data file is not to be trusted)."""
    if image is None:
        return
    if not isinstance(image, str) or not image.strip():
        raise UserError(f"{where}: the image must be a path string, got {image!r}; leave the key out for text only.")
    path = PurePosixPath(image)
    depth = 0
    for part in path.parts:
        depth += -1 if part == ".." else 1
        if depth < 0 or path.is_absolute():
            raise UserError(
                f"{where}: the image path {image!r} leaves the image root {image_root or ''}; "
                "use a path relative to the root."
            )


# -------------------------------------------------------------------------------------------------------- reading files


def stream(file: Path) -> Iterator[Any]:
    """The elements of a JSON array (or the lines of a .jsonl), one at a time; UserError for broken JSON."""
    if file.suffix == ".jsonl":
        yield from _lines(file)
        return
    _check_is_array(file)
    try:
        with file.open("rb") as handle:
            yield from ijson.items(handle, "item", use_float=True)
    except (ijson.JSONError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is not valid JSON: {_position(file) or ' '.join(str(error).split())}") from error


def _lines(file: Path) -> Iterator[Any]:
    if not file.is_file():
        raise UserError(f"{file} does not exist; check the path.")
    with file.open(encoding="utf-8") as handle:
        for number, line in enumerate(handle, start=1):
            if not line.strip():
                continue
            try:
                yield json.loads(line)
            except ValueError as error:
                raise UserError(f"{file}, line {number} is not valid JSON: {error}") from error


def _check_is_array(file: Path) -> None:
    if not file.is_file():
        raise UserError(f"{file} does not exist; check the path.")
    with file.open("rb") as handle:
        head = handle.read(4096).lstrip()
    if not head:
        raise UserError(f"{file} is empty; expected a JSON list of records.")
    if not head.startswith(b"["):
        raise UserError(f"{file} is not a JSON list; expected [ {{…}}, {{…}} ].")


def _position(file: Path) -> str | None:
    """Line and column of the first syntax error; the streaming parser does not tell. Only on the way to an error,
    and not for a file too large to be held in memory."""
    if file.stat().st_size > 1 << 26:
        return None
    try:
        json.loads(file.read_bytes())
    except ValueError as error:
        return str(error)
    return None


def _digest(file: Path) -> str:
    digest = hashlib.sha256(LAYOUT.encode())
    with file.open("rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:32]


def _cache_folder(cache_dir: Path | None) -> Path:
    return Path(cache_dir or os.environ.get("HIDE_CACHE") or Path.home() / ".cache" / "hide-llava").expanduser()
