"""Annotation files → validated records (docs/DATA.md says what is read and what is refused).

Training files (hundreds of MB) are streamed once into a memory-mapped Arrow table and cached by content, so that any
number of processes share the pages and a second start costs nothing. Test files are small and stay plain lists. Pictures that
are in an annotation file stay there: a record names their place (`embedded.py`).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from hide_llava.data.cache import cache_folder
from hide_llava.data.embedded import Embedded
from hide_llava.data.formats import Unreadable
from hide_llava.data.sources import content_sha256
from hide_llava.data.stream import stream
from hide_llava.errors import BadRecord, UserError
from hide_llava.progress import watched
from hide_llava.storage import writing

if TYPE_CHECKING:
    import datasets

LAYOUT = "4"  # part of the cache key; raise it when `features` or the checks below change
# A record that cannot be read keeps its place in the table, as one turn from "unusable: <kind>" that says why.
UNUSABLE = "unusable: "
# Keys under which other programs' records hold pictures, films or sound.
MEDIA = re.compile(
    r"(image|img|picture|pic|photo|frame|video|audio|media|sound|speech)s?[_-]?"
    r"(path|file|file_?name|file_?path|name|url|data|bytes|base64|b64|content|\d+)?s?", re.IGNORECASE
)  # fmt: skip


@cache
def features() -> datasets.Features:
    """The columns of a table. `datasets` is imported where records are read: it takes a second, and questions need none."""
    import datasets

    text = datasets.Value("string")
    # `id` is JSON text: 7 and "7" are different ids in a training file, and a column has one type.
    return datasets.Features({"id": text, "image": [text], "conversations": [{"from": text, "value": text}]})


def load_records(
    source: Path, image_root: Path, cache_dir: Path | None = None, on_bad: str = "error", several: bool = True
) -> datasets.Dataset:
    """The training records of `source`, a file or folder (`sources.py`), as a memory-mapped table with the columns of `features`.

    Cached under `cache_dir`, else $HIDE_CACHE, else ~/.cache/hide-llava, keyed by the content of the source, and where that
    holds the pictures itself also by its place beside `image_root`, which is what their names are relative to. Several
    processes may build the same table at once. Whether the images exist is for the dataset to check. on_bad="error" raises
    UserError that names the first records that cannot be read; "keep" leaves each at its place, for the dataset to skip and
    list, and for `readable` to drop. several: whether the model reads records with several pictures; if not, they count as
    bad. Raises UserError for a source of no known kind.
    """
    import datasets

    source = Path(source)
    table = _table_of(source, Path(image_root), cache_folder(cache_dir))
    info = datasets.DatasetInfo(description=str(source), features=features())
    records = datasets.Dataset.from_file(str(table), info=info)
    if on_bad == "error" and (bad := _unusable_rows(records, several)):
        first = [(index, records[index]) for index in bad[:5]]
        found = [(index, json.loads(row["id"]), str(unusable(row, several))) for index, row in first]
        raise UserError(complaint(str(source), found, len(bad), len(records), image_root))
    return records


def pictures(record: Mapping[str, Any]) -> list[str]:
    """The paths of the pictures of a table's record or of a question, relative to the image root; none, one or several."""
    image = record.get("image")
    return [] if image is None else [image] if isinstance(image, str) else list(image)


def unusable(record: Mapping[str, Any], several: bool = True) -> BadRecord | None:
    """Why a record of a table cannot be read, or None if it can. several: whether the model reads several pictures."""
    turns = record["conversations"]
    if turns and turns[0]["from"].startswith(UNUSABLE):
        return BadRecord(turns[0]["value"], turns[0]["from"].removeprefix(UNUSABLE))
    return None if several else too_many(record)


def too_many(record: Mapping[str, Any]) -> BadRecord | None:
    """What is wrong with a record or question of several pictures where the model takes one, or None if it has at most one."""
    named = pictures(record)
    if len(named) < 2:
        return None
    return BadRecord(
        f"names {len(named)} pictures ({named[:3]!r}); this model takes one a record, others take several "
        "(docs/BACKBONES.md)",
        "several pictures",
    )


def readable(records: datasets.Dataset, several: bool = True) -> datasets.Dataset:
    """The table without the records that cannot be read."""
    bad = set(_unusable_rows(records, several))
    return records.select([i for i in range(len(records)) if i not in bad]) if bad else records


def _unusable_rows(records: datasets.Dataset, several: bool) -> list[int]:
    """Their places, found column-wise: a table may have a million records."""
    import pyarrow
    import pyarrow.compute

    rows, offset = [], 0
    for batch in records.with_format("arrow").iter(batch_size=1 << 16):
        turns = batch.column("conversations").combine_chunks()
        roles = pyarrow.compute.struct_field(pyarrow.compute.list_flatten(turns), "from")
        parents = pyarrow.compute.list_parent_indices(turns)
        found = parents.filter(pyarrow.compute.starts_with(roles, UNUSABLE)).to_pylist()
        if not several:
            many = pyarrow.compute.greater(pyarrow.compute.list_value_length(batch.column("image").combine_chunks()), 1)
            found = sorted({*found, *pyarrow.compute.indices_nonzero(many).to_pylist()})
        rows += [offset + i for i in found]
        offset += len(batch)
    return rows


def complaint(
    source: str, bad: Sequence[tuple[int, Any, str]], count: int, total: int, image_root: Path | None = None
) -> str:
    """What stops a run: `count` of `total` records of `source` are bad, the first of them as (index, id, reason)."""
    shown = [f"record {index}{'' if name is None else f' (id {name!r})'}: {reason}" for index, name, reason in bad[:5]]
    more = f"\n… and {count - len(shown)} more" if count > len(shown) else ""
    root = f" (image root: {image_root})" if image_root is not None else ""
    return (
        f"{source}: {count} of {total} records cannot be trained on{root}; repair them or "
        "set train.on_bad_sample=skip.\n" + "\n".join(shown) + more
    )


def load_questions(file: Path, image_root: Path | None = None) -> list[dict[str, Any]]:
    """The questions of a test file or folder: rows of {question_id, text, image?, answer?, …}, or conversations of one question.

    Further fields are kept for the metrics. `image` is the picture's path, a list of several, or absent. An id that repeats
    with another text gets a suffix (`unique_ids`). Raises UserError for a missing text or id, and for a question asked twice.
    """
    file = Path(file)
    questions: list[dict[str, Any]] = []
    for index, question in enumerate(stream(file, image_root, asked=True)):
        check_question(question, f"{file}: question {index}", image_root)
        row = {key: value for key, value in question.items() if key not in ("image", "images")}
        if named := named_pictures(question):
            row["image"] = named[0] if len(named) == 1 else named
        questions.append(row)
    if not questions:
        raise UserError(f"{file} holds no questions.")
    return unique_ids(questions, str(file))


def unique_ids(rows: Iterable[Mapping[str, Any]], what: str) -> list[dict[str, Any]]:
    """The questions with `question_id`s that tell them apart, as `metrics.rows.tell_apart` does for references.

    Published question files may use one id for several questions (in LLaVA's TextVQA file it is the image's), and
    published scorers then join by id and prompt. Here the first question of an id keeps it, and each further one with
    another text gets a suffix: img_a, img_a#2, img_a#3, in file order.

    Raises:
        UserError: the same id with the same text, or an id both as a number and as a string (7 and "7": answers are
            joined by the written id).
    """
    rows = [dict(row) for row in rows]
    written = {str(row["question_id"]) for row in rows}
    seen: dict[str, dict[str, int]] = {}  # written id → {text: index of its row}
    for index, row in enumerate(rows):
        identity, text = row["question_id"], row["text"]
        texts = seen.setdefault(str(identity), {})
        where = f"{what}: record {index} (question_id {identity!r})"
        if text in texts:
            raise UserError(f"{where} repeats the id and the text of record {texts[text]}; answers are joined by id, so "
                            "every id must be unique.")  # fmt: skip
        if texts:
            first = rows[next(iter(texts.values()))]["question_id"]
            if type(first) is not type(identity):
                raise UserError(
                    f"{where} has the id of record {next(iter(texts.values()))} ({first!r}) in another form; answers are "
                    "joined by the written id, so use one form and make every id unique."
                )
            row["question_id"] = f"{identity}#{len(texts) + 1}"
            if row["question_id"] in written:
                raise UserError(f"{where} repeats an id and would become {row['question_id']!r}, which another record has.")
        texts[text] = index
    return rows


# ------------------------------------------------------------------------------------------------------------ the table


def _table_of(source: Path, image_root: Path, folder: Path) -> Path:
    """The file of the table, which is built where it is not there yet."""
    content = hashlib.sha256(f"{LAYOUT} {content_sha256(source)}".encode()).hexdigest()
    place = os.path.relpath(source, image_root)
    names = [content, hashlib.sha256(f"{content} {place}".encode()).hexdigest()]
    apart, here = (folder / f"records-{name[:32]}.arrow" for name in names)
    return next((table for table in (apart, here) if table.is_file()), None) or _build_table(source, image_root, apart, here)


def _build_table(source: Path, image_root: Path, apart: Path, here: Path) -> Path:
    """Write the table of a source that names its pictures' files to `apart`, of one that holds them itself to `here`."""
    from datasets.arrow_writer import ArrowWriter

    apart.parent.mkdir(parents=True, exist_ok=True)
    # Written under a name of its own and renamed when complete: a crash or a second process leaves no half table.
    temporary = apart.with_name(f"{apart.name}.{uuid.uuid4().hex}.tmp")
    try:
        count, embedded = 0, False
        with writing(apart), ArrowWriter(features=features(), path=str(temporary)) as writer:
            for record in watched(stream(source, image_root), f"reading {source.name}"):
                row = _row(record)
                embedded = embedded or any(isinstance(name, Embedded) for name in row["image"])
                writer.write(row)
                count += 1
            if count:
                writer.finalize()
        if not count:
            raise UserError(f"{source} holds no records (an empty list).")
        table = here if embedded else apart
        os.replace(temporary, table)
        return table
    finally:
        temporary.unlink(missing_ok=True)


def _row(record: Any) -> dict[str, Any]:
    try:
        return check_record(record)
    except BadRecord as error:
        identity = record.get("id", record.get("question_id")) if isinstance(record, Mapping) else None
        turn = {"from": UNUSABLE + error.kind, "value": str(error)}
        return {"id": json.dumps(identity), "image": [], "conversations": [turn]}


def check_question(question: Any, where: str, image_root: Path | None) -> str:
    """`where` with the question's id, if it is a well-formed test question; UserError naming `where` if not."""
    if isinstance(question, Unreadable):
        raise UserError(f"{where}: {question.fault}")
    if not isinstance(question, Mapping):
        raise UserError(f"{where} is a {type(question).__name__}, expected an object with question_id and text.")
    identity = question.get("question_id")
    if not isinstance(identity, str | int) or isinstance(identity, bool):
        raise UserError(f"{where} has no question_id (a string or a whole number); add one that is unique.")
    where += f" (question_id {identity!r})"
    if not isinstance(question.get("text"), str) or not question["text"].strip():
        raise UserError(f"{where} has no text; every question needs a non-empty 'text' string.")
    try:
        _check_whole(question["text"], "its text")
        named_pictures(question)
    except BadRecord as error:
        root = f" (image root: {image_root})" if image_root is not None else ""
        raise UserError(f"{where}: {error}{root}") from None
    return where


def check_record(record: Any) -> dict[str, Any]:
    """A training record in the shape of `features`, if it is well-formed; BadRecord with the reason if not."""
    if isinstance(record, Unreadable):
        raise record.fault
    if not isinstance(record, Mapping):
        raise BadRecord(f"is a {type(record).__name__}, expected an object with 'conversations'", "no object")
    identity = record.get("id", record.get("question_id"))
    named = named_pictures(record)
    turns = record.get("conversations")
    if not isinstance(turns, list) or not turns:
        other = next((key for key in ("messages", "conversation", "dialog") if record.get(key)), None)
        hint = f" (it has {other!r}: write its turns in that form)" if other else ""
        raise BadRecord(
            f"has no conversations; expected a non-empty list of {{from, value}} turns{hint}", "no conversations"
        )
    for number, turn in enumerate(turns, start=1):
        _check_turn(turn, f"turn {number}")
    # The reference skips one assistant turn at the start; after it, questions and answers must alternate.
    start = 1 if turns[0]["from"] == "gpt" else 0
    for number, turn in enumerate(turns[start:]):
        if turn["from"] != ("human", "gpt")[number % 2]:
            raise BadRecord(
                f"turn {number + start + 1} is from {turn['from']!r}, like the one before; "
                "human and gpt turns must alternate",
                "order of turns",
            )
    if start == len(turns):
        raise BadRecord("has no human turn", "order of turns")
    return {
        "id": json.dumps(identity),
        "image": named,
        "conversations": [{"from": turn["from"], "value": turn["value"]} for turn in turns],
    }


def _check_turn(turn: Any, where: str) -> None:
    if not isinstance(turn, Mapping) or not isinstance(turn.get("value"), str):
        raise BadRecord(f"{where} must be an object with 'from' and a string 'value'", "turn without text")
    _check_whole(turn["value"], where)
    if turn.get("from") not in ("human", "gpt"):
        raise BadRecord(f"{where} has the role {turn.get('from')!r}; the roles are 'human' and 'gpt'", "role of a turn")
    if (key := next((key for key, value in turn.items() if _is_media(key, value)), None)) is not None:
        raise BadRecord(f"{where} has {key!r}, which is not read; name its pictures as 'image' of the record",
                        "picture under another key")  # fmt: skip


def _check_whole(text: str, where: str) -> None:
    """JSON can say half of a surrogate pair, as a text has it that was cut within an emoji; no tokenizer takes that."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadRecord(f"{where} holds {text[error.start]!a}, half of a character that was cut in two; remove it",
                        "cut character") from None  # fmt: skip


def named_pictures(record: Mapping[str, Any]) -> list[str]:
    """The paths of a record's or question's pictures as its file names them, relative to the image root.

    `image` or `images` hold a path, a list of paths, or nothing (null, "", []).

    Raises:
        BadRecord: two different lists, media under a key that is not read, no path, or one that leaves the image root (a
            data file is not to be trusted).
    """
    named = [value for key in ("image", "images") if (value := record.get(key)) not in (None, "", [])]
    lists = [value if isinstance(value, list) else [value] for value in named]
    if len(lists) == 2 and lists[0] != lists[1]:
        raise BadRecord(
            f"names pictures as 'image' ({lists[0][:3]!r}) and others as 'images' ({lists[1][:3]!r}); keep one of the keys",
            "several pictures",
        )
    found = lists[0] if lists else []
    for image in found:
        if not isinstance(image, str) or not image.strip():
            raise BadRecord(f"the image must be a path string, got {image!r}; leave the key out for text only", "image path")
    for key, value in record.items():
        if key not in ("image", "images") and _is_media(key, value) and not _same_file(value, found):
            kind = "several pictures" if found else "picture under another key"
            raise BadRecord(f"has {key!r}, which is not read; name its pictures as 'image', or remove the key", kind)
    for image in found:
        _check_path(image)
    return found


def _is_media(key: str, value: Any) -> bool:
    bare = value[0] if isinstance(value, list) and value else value
    held = isinstance(bare, bytes) or (isinstance(bare, Mapping) and isinstance(bare.get("bytes"), bytes))
    return held or (isinstance(value, str | list | Mapping) and bool(value) and bool(MEDIA.fullmatch(key)))


def _same_file(value: Any, named: list[str]) -> bool:
    """Whether it is the one picture's own name or address once more, as a note of where it is from."""
    value = value[0] if isinstance(value, list) and len(value) == 1 else value
    return isinstance(value, str) and len(named) == 1 and PurePosixPath(value).name == PurePosixPath(named[0]).name


def _check_path(image: str) -> None:
    if isinstance(image, Embedded):  # named here, not by the file
        return
    path = PurePosixPath(image)
    depth = 0
    for part in path.parts:
        depth += -1 if part == ".." else 1
        if depth < 0 or path.is_absolute():
            raise BadRecord(
                f"the image path {image!r} leaves the image root; use a path relative to the root", "image path"
            )
