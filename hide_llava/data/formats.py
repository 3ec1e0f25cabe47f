"""The shapes in which people have their records → LLaVA's own: `conversations` of {from, value} from human and gpt, and `image`.

Read beside LLaVA's: OpenAI's `messages` of {role, content}, whose content is a text or a list of parts; ShareGPT's
`conversations` with `images` and a `system` turn; `problem` and `solution`, as reinforcement learning has them; and pictures that
are in the record itself, as bytes (Hugging Face's Image columns) or as a data: address. A record that is LLaVA's already is given
back as it is.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from hide_llava.data.turns import IMAGE_TEXT
from hide_llava.errors import BadRecord

TURNS = ("conversations", "messages")  # the keys under which a record's turns are
PICTURES = ("image", "images")
COLUMNS = (*PICTURES, *TURNS)  # where a record's pictures may be
ROLES = {"user": "human", "assistant": "gpt", "system": "system", "developer": "system"}
PICTURE_PARTS = ("image", "image_url", "input_image")
TEXT_PARTS = ("text", "input_text", "output_text")
INLINE = re.compile(r"data:image/[\w.+-]+;base64,", re.IGNORECASE)
ADDRESS = re.compile(r"(?:https?|s3|gs|hdfs)://", re.IGNORECASE)
LEADING = re.compile(rf"(?:{IMAGE_TEXT}\s*)*")


@dataclass(frozen=True)
class Blob:
    """A picture that is in its record. file: the name of the file that it was, where the record says it."""

    content: bytes
    file: str | None = None


Naming = Callable[[Blob], str]


class Unreadable(dict):
    """A record that could not be made LLaVA's, and why: whoever checks it raises that."""

    def __init__(self, record: Mapping[str, Any], fault: BadRecord):
        super().__init__({key: record[key] for key in ("id", "question_id") if key in record})
        self.fault = fault


def shape_of(record: Any) -> str | None:
    """"messages" or "conversations", by the form of its turns, or "problem"; None for a record of neither."""
    turns = _turns(record) if isinstance(record, Mapping) else None
    if not turns and isinstance(record, Mapping) and isinstance(record.get("problem"), str) and "text" not in record:
        return "problem"
    if not turns or not isinstance(first := turns[0], Mapping):
        return None
    return "messages" if "role" in first and "from" not in first else "conversations"


def as_llava(record: Mapping[str, Any], name: Naming, asked: bool = False) -> Mapping[str, Any]:
    """The record in LLaVA's shape; its other keys stay.

    name: what a picture that is in the record is called from now on; asked for in the order of the pictures. asked: the
    record is a question, so a conversation of one becomes {text, answer}.

    Raises:
        BadRecord: parts, roles or pictures that are not read, or a question with several turns.
    """
    record = with_names(record, name)
    if (shape := shape_of(record)) == "problem":
        record = _from_problem(record)
    elif shape == "messages":
        record = _from_messages(record)
    record = _without_system(record)
    return _as_question(record) if asked and record.get("conversations") and "text" not in record else record


# --------------------------------------------------------------------------------------------------------------- pictures


def with_names(record: Mapping[str, Any], name: Naming) -> Mapping[str, Any]:
    """The record with a path in place of every picture that is in it.

    Raises:
        BadRecord: a picture somewhere in the network.
    """
    changed: dict[str, Any] = {}
    for key in PICTURES:
        if (value := record.get(key)) is not None and (plain := _named(value, name)) is not value:
            changed[key] = plain
    for key in TURNS:
        turns = _listed(record.get(key))
        if isinstance(turns, list) and any(isinstance(t, Mapping) and isinstance(t.get("content"), list) for t in turns):
            changed[key] = [_turn_with_names(turn, name) for turn in turns]
    return {**record, **changed} if changed else record


def blobs_of(record: Mapping[str, Any]) -> Iterator[Blob]:
    """The pictures that are in a record, in the order in which `as_llava` asks for their names."""
    found: list[Blob] = []
    with_names(record, lambda blob: found.append(blob) or "")
    yield from found


def _named(value: Any, name: Naming) -> Any:
    if isinstance(value, list):
        plain = [_named(one, name) for one in value]
        return value if all(new is old for new, old in zip(plain, value)) else plain
    if isinstance(value, bytes):
        return name(Blob(value))
    if isinstance(value, str):
        return _path_of(value, name)
    if isinstance(value, Mapping):
        path = next((value[key] for key in ("path", "url") if isinstance(value.get(key), str) and value[key]), None)
        if isinstance(value.get("bytes"), bytes):
            return name(Blob(value["bytes"], path))
        if path is not None and not value.get("bytes"):
            return _path_of(path, name)
    return value


def _path_of(text: str, name: Naming) -> str:
    if inline := INLINE.match(text):
        try:
            return name(Blob(base64.b64decode(text[inline.end() :], validate=True)))
        except binascii.Error as error:
            raise BadRecord(f"holds a picture as a data: address that is no base64 ({error})", "image path") from None
    if ADDRESS.match(text):
        raise BadRecord(f"names a picture by its address ({text[:80]!r}), and nothing is downloaded while records are read; "
                        "save it and name its file", "image path")  # fmt: skip
    return text.removeprefix("file://")


def _turn_with_names(turn: Any, name: Naming) -> Any:
    if not isinstance(turn, Mapping) or not isinstance(turn.get("content"), list):
        return turn
    parts = [_part_with_name(part, name) if _is_picture(part) else part for part in turn["content"]]
    return {**turn, "content": parts}


def _is_picture(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") in PICTURE_PARTS


def _part_with_name(part: Mapping[str, Any], name: Naming) -> dict[str, Any]:
    """The part as {type: image, image: path}; None for one that only says where a picture of the record belongs."""
    value = next((part[key] for key in ("image_url", "image", "url", "path", "bytes") if part.get(key)), None)
    return {"type": "image", "image": None if value is None else _named(value, name)}


# ------------------------------------------------------------------------------------------------------------------ turns


def _turns(record: Mapping[str, Any]) -> list[Any] | None:
    listed = (_listed(record.get(key)) for key in TURNS)
    return next((turns for turns in listed if isinstance(turns, list) and turns), None)


def _listed(turns: Any) -> Any:
    """A list of objects, which `datasets` may have stored as an object of lists."""
    if isinstance(turns, Mapping) and turns and all(isinstance(column, list) for column in turns.values()):
        return [dict(zip(turns, values)) for values in zip(*turns.values())]
    return turns


def _from_problem(record: Mapping[str, Any]) -> dict[str, Any]:
    """A problem is a question, with its pictures in front where its text has no place for them, and the solution its answer."""
    listed = next((value for key in PICTURES if (value := record.get(key)) not in (None, "", [])), [])
    count = len(listed) if isinstance(listed, list) else 1
    text = record["problem"]
    turns = [{"from": "human", "value": text if IMAGE_TEXT in text else f"{IMAGE_TEXT}\n" * count + text}]
    if isinstance(record.get("solution"), str):
        turns.append({"from": "gpt", "value": record["solution"]})
    kept = {key: value for key, value in record.items() if key not in (*TURNS, "problem", "solution")}
    return {**kept, "conversations": turns}


def _from_messages(record: Mapping[str, Any]) -> dict[str, Any]:
    if record.get("conversations") and record.get("messages"):
        raise BadRecord("has both 'conversations' and 'messages'; keep one of them", "two conversations")
    listed = [value for key in PICTURES if (value := record.get(key)) not in (None, "", [])]
    lists = [value if isinstance(value, list) else [value] for value in listed]
    if len(lists) == 2 and lists[0] != lists[1]:
        raise BadRecord("names pictures as 'image' and others as 'images'; keep one of the keys", "several pictures")
    waiting = [*lists[0]] if lists else []
    placed: list[Any] = []
    turns = [_turn(message, number, placed, waiting) for number, message in enumerate(_turns(record) or [], 1)]
    left = [one for one in waiting if one not in placed]  # named by its part and, once more, by the record
    kept = {key: value for key, value in record.items() if key not in (*TURNS, *PICTURES)}
    return {**kept, "image": placed + left, "conversations": turns}


def _turn(message: Any, number: int, placed: list[Any], waiting: list[Any]) -> dict[str, str]:
    """A message as LLaVA's turn; its pictures move to `placed`, those it only has a place for from `waiting`."""
    if not isinstance(message, Mapping) or message.get("role") not in ROLES:
        role = message.get("role") if isinstance(message, Mapping) else message
        raise BadRecord(f"message {number} has the role {role!r}; the roles are {', '.join(ROLES)}", "role of a turn")
    for key in ("images", "tool_calls", "audio"):
        if message.get(key):
            raise BadRecord(f"message {number} has {key!r}, which is not read; put pictures into its content", "part of a turn")
    content = message.get("content")
    text = ""
    for part in [{"type": "text", "text": content}] if isinstance(content, str) else content if content else [None]:
        text = _joined(text, *_part(part, number, placed, waiting))
    return {"from": ROLES[message["role"]], "value": text}


def _part(part: Any, number: int, placed: list[Any], waiting: list[Any]) -> tuple[str, bool]:
    """The text of a part, and whether it is a picture's place."""
    if _is_picture(part):
        if part["image"] is not None:
            placed.append(part["image"])
        elif waiting:
            placed.append(waiting.pop(0))
        else:
            raise BadRecord(f"message {number} has a place for a picture that the record does not name", "no picture")
        return IMAGE_TEXT, True
    if isinstance(part, Mapping) and part.get("type") in TEXT_PARTS and isinstance(part.get("text"), str):
        for _ in range(min(part["text"].count(IMAGE_TEXT), len(waiting))):
            placed.append(waiting.pop(0))
        return part["text"], False
    kind = part.get("type") if isinstance(part, Mapping) else part
    raise BadRecord(f"message {number} has a part {kind!r}; parts are {{type: text, text}} and {{type: image_url | image, …}}",
                    "part of a turn")  # fmt: skip


def _joined(text: str, more: str, picture: bool) -> str:
    """A picture stands on a line of its own, as LLaVA puts it; texts follow each other as they are."""
    apart = text and (picture or text.endswith(IMAGE_TEXT)) and not text.endswith("\n") and not more.startswith("\n")
    return f"{text}\n{more}" if apart else text + more


def _without_system(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """The text of a system turn, or of the key `system`, in front of the first question: models differ in whether they have a
    place of its own for it, and those without one (Gemma's template) do so."""
    turns = _turns(record)
    if turns is None or not all(isinstance(turn, Mapping) for turn in turns):
        return record
    said = [record["system"]] if isinstance(record.get("system"), str) else []
    if turns[0].get("from") == "system":
        said, turns = [*said, turns[0].get("value")], turns[1:]
    if any(turn.get("from") == "system" for turn in turns):
        raise BadRecord("has a system turn behind its beginning; only the first turn can be the system's", "order of turns")
    if not said and turns is record.get("conversations"):
        return record
    if not all(isinstance(text, str) for text in said):
        raise BadRecord("has a system turn without a text", "turn without text")
    words = "\n\n".join(text.strip() for text in said if text.strip())
    if words and turns and isinstance(turns[0].get("value"), str):
        question = turns[0]["value"]
        start = LEADING.match(question).end()
        pictures = question[:start].rstrip() + "\n" if start else ""
        turns = [{**turns[0], "value": f"{pictures}{words}\n\n{question[start:]}"}, *turns[1:]]
    kept = {key: value for key, value in record.items() if key not in ("system", "messages")}
    return {**kept, "conversations": turns}


def _as_question(record: Mapping[str, Any]) -> dict[str, Any]:
    """A conversation of one question as {text, answer}."""
    turns = record["conversations"]
    well = isinstance(turns, list) and all(isinstance(turn, Mapping) and isinstance(turn.get("value"), str) for turn in turns)
    roles = [turn.get("from") for turn in turns] if well else []
    if roles not in (["human"], ["human", "gpt"]):
        raise BadRecord(f"is a conversation of {len(roles)} turns ({', '.join(map(str, roles))}); in a question file it is one "
                        "question, and its answer if that is known", "several questions")  # fmt: skip
    kept = {key: value for key, value in record.items() if key != "conversations"}
    answer = {"answer": turns[1]["value"]} if len(turns) == 2 and "answer" not in kept else {}
    return {**kept, "text": turns[0]["value"], **answer}


def own_name(file: str | None) -> str:
    """The file's own name, without folders, or nothing."""
    name = PurePosixPath((file or "").replace("\\", "/")).name
    return "" if name in ("..", ".") else name
