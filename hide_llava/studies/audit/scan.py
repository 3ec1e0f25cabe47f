"""One annotation file, read once and record by record; what is kept of a record is a few 64-bit hashes."""

from __future__ import annotations

import os
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hide_llava.data import embedded
from hide_llava.data.dataset import check_place, check_turns
from hide_llava.data.hashing import NONE, Hashes, as_hashes, hash64, repeats
from hide_llava.data.records import check_question, check_record, named_pictures, too_many
from hide_llava.data.stream import stream
from hide_llava.data.turns import routing_text
from hide_llava.errors import BadRecord, UserError
from hide_llava.progress import watched
from hide_llava.studies.audit.findings import SHOWN, Finding, plural
from hide_llava.studies.audit.pictures import Pictures, pictures
from hide_llava.studies.audit.texts import AnswerRoom, PromptLengths, answer_format, questions_of

BLOCK = 4096  # images looked at together


@dataclass
class Place:
    """A file of a benchmark and what is expected of it.

    answered: the metric reads the answers from this file. suffix: what evaluation appends to every question.
    """

    task: str
    split: str
    file: Path
    images: Path
    expected: int | None
    answered: bool
    suffix: str = ""
    orientation: str = "ignore"  # of its images: exif | ignore


@dataclass
class Scan:
    """The traces of one file. `images` and `ids` have one element per record, `questions` and `owner` one per question, `shown`
    and `holder` one per picture of a record."""

    place: Place
    records: int = 0
    complete: bool = True
    ids: array = field(default_factory=lambda: array("Q"))  # of a question: of its id and text
    names: array = field(default_factory=lambda: array("Q"))  # of a question: of its id alone
    images: array = field(default_factory=lambda: array("Q"))  # of several pictures: what they are together
    shown: array = field(default_factory=lambda: array("Q"))
    holder: array = field(default_factory=lambda: array("I"))  # record of each picture
    questions: array = field(default_factory=lambda: array("Q"))
    owner: array = field(default_factory=lambda: array("I"))  # record of each question
    formats: Counter = field(default_factory=Counter)
    distinct_images: int = 0
    pictures: Pictures = field(default_factory=Pictures)
    long_prompts: int = 0
    prompt: str | None = None  # of the first record
    alike: bool = True  # all others have the same
    faults: dict[str, list[str]] = field(default_factory=dict)  # kind -> examples
    counts: Counter = field(default_factory=Counter)  # kind -> number

    def fault(self, kind: str, example: str) -> None:
        self.counts[kind] += 1
        if self.counts[kind] <= SHOWN:
            self.faults.setdefault(kind, []).append(example)

    @property
    def constant_prompt(self) -> str | None:
        """The prompt that all records share, if there are at least two."""
        return self.prompt if self.alike and self.records > 1 else None

    def asked(self) -> tuple[Hashes, Hashes]:
        """(image, question) of every question; the image is NONE for a text-only one."""
        return as_hashes(self.images)[np.asarray(self.owner, dtype=np.int64)], as_hashes(self.questions)


def scan(place: Place, lengths: PromptLengths, room: AnswerRoom, deep: bool) -> Scan:
    """Read the whole file, look at each distinct image once (deep: decode it), and note every fault."""
    found = Scan(place)
    images = _Images(found, deep)
    try:
        records = stream(place.file, place.images, asked=place.split != "train")
        for record in watched(records, f"{place.task} {place.split}", place.expected):
            _take(found, record, images, lengths, room)
    except UserError as error:
        found.complete = False
        found.fault("broken JSON", f"after {plural(found.records, 'record')}: {error}")
    images.look()
    found.distinct_images = len(images.seen)
    return found


def label(index: int, record: Any) -> str:
    """How a record is named: its position from 0, its id, its image."""
    if not isinstance(record, Mapping):
        return f"record {index}"
    identity = record.get("id", record.get("question_id"))
    try:
        images = ", ".join(named_pictures(record))
    except BadRecord:
        images = ""
    return f"record {index} (id {identity!r}{f', {images}' if images else ''})"


def _take(found: Scan, record: Any, images: _Images, lengths: PromptLengths, room: AnswerRoom) -> None:
    index, place = found.records, found.place
    found.records += 1
    identity, named = None, []
    prompt, questions = "", []
    try:
        if place.split == "train":
            row = check_record(record)
            turns = row["conversations"]
            identity, prompt = record.get("id", record.get("question_id")), routing_text(turns)
            answers = [turn["value"] for turn in turns if turn["from"] == "gpt"]
            if all(answers):  # an empty answer is a fault of its own
                named = row["image"]
                if not room.several and (fault := too_many(row)) is not None:
                    raise fault
                check_turns(turns, len(named), room.special)
                room.check(turns, [place.images / path for path in named], place.orientation)
            named = row["image"]
        else:
            check_question(record, f"record {index}", place.images)
            check_place({**record, "image": named_pictures(record)}, room.several)
            identity, prompt = f"{record['question_id']}\n{record['text']}", routing_text(record["text"] + place.suffix)
            found.names.append(hash64(repr(record["question_id"])))
            answers = _answers(found, record, index)
            named = named_pictures(record)
        questions = questions_of(record)
    except UserError as error:
        found.fault("bad record", f"{label(index, record)}: {error}" if place.split == "train" else str(error))
        answers = []
    found.ids.append(NONE if identity is None else hash64(repr(identity)))  # 7 and "7" are different ids
    shown = [images.add(image, index, record) for image in named]
    found.images.append(together(shown))
    found.shown.extend(shown)
    found.holder.extend([index] * len(shown))
    for question in questions:
        found.questions.append(hash64(question))
        found.owner.append(index)
    for answer in answers:
        form = answer_format(answer)
        found.formats[form] += 1
        if form == "empty":
            found.fault("empty answer", label(index, record))
    if prompt:
        found.long_prompts += lengths.is_long(prompt)
        found.prompt = prompt if found.prompt is None else found.prompt
        found.alike = found.alike and prompt == found.prompt


def together(keys: list[int]) -> int:
    """What the pictures of one record are known by; NONE without."""
    return NONE if not keys else keys[0] if len(keys) == 1 else hash64(repr(keys))


def _answers(found: Scan, record: Mapping[str, Any], index: int) -> list[Any]:
    for key in ("answer", "answer_bbox", "answers", "label"):
        if key in record:
            return [record[key]]
    return [""] if found.place.answered else []  # a file of references may hold them instead


class _Images:
    """The distinct images of one file; each is looked at once, many at a time."""

    def __init__(self, found: Scan, deep: bool):
        self.found, self.deep = found, deep
        self.seen: set[int] = set()
        self.waiting: list[tuple[int, str, str]] = []  # key, path, name of the record

    def add(self, image: str, index: int, record: Any) -> int:
        path = os.path.normpath(os.path.join(self.found.place.images, image))
        key = hash64(path)
        if key not in self.seen:
            self.seen.add(key)
            self.waiting.append((key, path, label(index, record)))
            if len(self.waiting) == BLOCK:
                self.look()
        return key

    def look(self) -> None:
        there = []
        for key, path, name in self.waiting:
            if embedded.is_there(path):
                there.append((key, path, name))
            else:
                self.found.fault("missing image", name)
        self.waiting = []
        if self.deep:
            self._decode(there)

    def _decode(self, there: list[tuple[int, str, str]]) -> None:
        for (key, _, name), shown in zip(there, pictures((Path(path) for _, path, _ in there), self.found.place.orientation)):
            if isinstance(shown, str):
                self.found.fault("unreadable image", f"{name}: {shown}")
            else:
                self.found.pictures.add(key, shown)
                for kind, holds in (("turned image", shown.turned), ("16-bit image", shown.deep)):
                    if holds:
                        self.found.fault(kind, name)


def findings(found: Scan) -> list[Finding]:
    """What is wrong within this file alone."""
    place, split = found.place, found.place.split
    result = []

    def add(kind: str, count: int, text: str, examples: Iterable[str] = ()) -> None:
        if count:
            result.append(Finding(kind, place.task, split, count, text, list(examples)))

    def counted(kind: str, word: str, tail: str) -> None:
        add(kind, found.counts[kind], f"{plural(found.counts[kind], word)} {tail}", found.faults.get(kind, ()))

    counted("broken JSON", "place", f"where {place.file} cannot be read; nothing after it was checked")
    counted("bad record", "record", f"of {place.file} cannot be used")
    counted("missing image", "image", f"of {found.distinct_images:,} missing under {place.images}")
    counted("unreadable image", "image", f"of {found.distinct_images:,} cannot be decoded")
    counted("empty answer", "empty answer", f"in {place.file}")
    if found.complete and not found.records and split == "train":  # of questions, the reason why they cannot be scored says it
        add("no records", 1, f"{place.file} holds no records")
    elif found.complete and place.expected is not None and found.records != place.expected:
        difference = abs(found.records - place.expected)
        add("wrong count", difference, f"{plural(found.records, 'record')} in {place.file}, expected {place.expected:,}")
    _duplicate_ids(found, add)
    repeated = len(found.names) - len(np.unique(as_hashes(found.names)))
    if not found.counts["bad record"] and repeated and not len(repeats(as_hashes(found.ids))):
        text = f"{plural(repeated, 'question')} of {place.file} with the id of an earlier one and another text; answered as "
        add("repeated id", repeated, text + "ID#2, ID#3 …")
    turned = "and is shown as a viewer shows it" if place.orientation == "exif" else "and is read as stored"
    many = "that says (EXIF) how to turn it, " + turned
    add("turned image", found.counts["turned image"], f"{plural(found.counts['turned image'], 'image')} {many} "
        f"(image_orientation: {place.orientation})", found.faults.get("turned image", ()))  # fmt: skip
    deep16 = found.counts["16-bit image"]
    add("16-bit image", deep16, f"{plural(deep16, 'image')} of 16 bits, scaled from 0…65,535 to 0…255",
        found.faults.get("16-bit image", ()))  # fmt: skip
    add("long prompt", found.long_prompts, f"{plural(found.long_prompts, 'prompt')} longer than the text encoder reads")
    return result


def _duplicate_ids(found: Scan, add: Any) -> None:
    ids = as_hashes(found.ids)
    given = np.flatnonzero(ids != NONE)
    again = given[repeats(ids[given])]
    if not len(again):
        return
    firsts = {int(k): int(np.flatnonzero(ids == ids[k])[0]) for k in again[:SHOWN]}
    named = name_records(found.place, {*firsts, *firsts.values()})
    kind = "duplicate train id" if found.place.split == "train" else "duplicate id"
    examples = [f"{named[k]} repeats the id of {named[first]}" for k, first in firsts.items()]
    add(
        kind,
        len(again),
        f"{plural(len(again), 'record')} of {found.place.file} with the id of an earlier one",
        examples,
    )


def name_records(place: Place, wanted: set[int]) -> dict[int, str]:
    """Names of the records at these positions; reads the file again, up to the last of them."""
    named: dict[int, str] = {}
    for index, record in enumerate(stream(place.file, place.images, asked=place.split != "train")):
        if index in wanted:
            named[index] = label(index, record)
            if len(named) == len(wanted):
                break
    return named
