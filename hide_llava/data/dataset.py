"""Records → samples: token ids with the image expanded, labels, pixels and routing text.

A sample that would train on nothing, or on something else than its author meant, is an error that names the record (or,
with `on_bad_sample="skip"`, is left out and listed). The reference keeps such samples silently.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from hide_llava.data import embedded
from hide_llava.data.decoded import undecodable
from hide_llava.data.images import ORIENTATIONS, load_image, sizes_of
from hide_llava.data.measured import measured
from hide_llava.data.reader import ANY_SIZE, Read, Reader, Size
from hide_llava.data.records import complaint, pictures, too_many, unusable
from hide_llava.data.turns import IGNORE, IMAGE_TEXT, Turn, drop_leading_answer, place_image, routing_text
from hide_llava.errors import BadRecord, UserError

if TYPE_CHECKING:
    from PIL import Image

ON_BAD_SAMPLE = ("error", "skip", "show")
ONE_PIXEL: Size = (1, 1)  # of a picture that cannot be opened; the record is refused for that


def modality_length(turns: Sequence[Turn], has_image: bool) -> int:
    """Whitespace-separated words over all turns; negative without an image. What the sampler groups by."""
    words = sum(len(turn["value"].split()) for turn in turns)
    return words if has_image else -words


class TrainingDataset(Dataset):
    """Map-style training samples of one annotation file (`records` from `load_records`).

    An item is a dict: input_ids and labels (long [N], N ≤ max_length, pictures expanded), types (token types by name, each
    as long), pixels (what the towers take, or None for a text-only record), sizes (of its pictures), text (what the sample
    is routed by), id (as in the file).

    Every record is tokenised and its image decoded (once: `undecodable`) when the dataset is built, so that bad data stops
    a run before it starts. `on_bad_sample="error"` raises UserError naming the first bad records; "skip" leaves them out
    and lists them in `skipped` as {index, id, kind, reason}; "show", for the preview, does the same and does not mind if
    no good record is left. reader: of the model (`Backbone.reader`). orientation: as in `load_image`.
    """

    def __init__(
        self,
        records: Sequence[Mapping[str, Any]],
        image_root: Path,
        reader: Reader,
        max_length: int = 2048,
        on_bad_sample: str = "error",
        orientation: str = "exif",
        workers: int = 1,
    ) -> None:
        _check_option("on_bad_sample", on_bad_sample, ON_BAD_SAMPLE)
        _check_option("orientation", orientation, ORIENTATIONS)
        self.records, self.image_root, self.reader, self.max_length = records, Path(image_root), reader, max_length
        self.on_bad_sample, self.orientation, self.workers = on_bad_sample, orientation, workers
        # A concatenated table carries the names of all its files, one a line.
        source = getattr(getattr(records, "info", None), "description", "") or "records"
        self.source = " + ".join(filter(None, source.splitlines()))

        self.indices, self.skipped = self.check()
        if self.skipped and on_bad_sample == "error":
            raise UserError(self._complaint())
        if not self.indices and on_bad_sample != "show":
            raise UserError(f"{self.source}: no usable sample. {self._complaint()}")

    def check(self) -> tuple[list[int], list[dict[str, Any]]]:
        """Try every record: the indices of good ones, and {index, id, kind, reason} of bad ones. Fills `modality_lengths`, and
        `longest`: the most positions of a record, and the most that have a label."""
        good: list[int] = []
        bad: list[dict[str, Any]] = []
        self.modality_lengths: list[int] = []
        self.longest = (1, 1)
        name = Path(self.source).name
        damaged = undecodable(
            pictures_of(self.records, self.image_root), self.workers, name, total=len(self.records)
        )
        self._sizes = self._measure_pictures(set(damaged), name) if self.reader.by_size else {}
        for index, found in enumerate(self.measured()):
            if damaged and not isinstance(found[0], str):
                faults = (damaged.get(str(self.image_root / image)) for image in pictures(self.records[index]))
                fault = next((f for f in faults if f is not None), None)
                found = found if fault is None else [fault.kind, str(fault)]
            if isinstance(found[0], str):
                kind, reason = found
                bad.append({"index": index, "id": json.loads(self.records[index]["id"]), "kind": kind, "reason": reason})
            else:
                good.append(index)
                self.modality_lengths.append(found[0])
                self.longest = (max(self.longest[0], found[1]), max(self.longest[1], found[2]))
        return good, bad

    def measured(self) -> list[list]:
        """Of every record [words (`modality_length`), tokens, tokens with a label], or [kind, reason] if it cannot be used;
        from the cache where it is known (data/measured.py)."""
        settings = [*self.reader.settings(), self.max_length]
        if self.reader.by_size:  # another picture under the same name may be larger
            settings.append(hashlib.sha256(json.dumps(sorted(self._sizes.items())).encode()).hexdigest())
        return measured(self.records, self._measure, settings, self.workers, Path(self.source).name)

    def _measure(self, record: Mapping[str, Any]) -> list:
        try:
            read = self.encode(record)
            length = modality_length(record["conversations"], bool(pictures(record)))
            if length == 0:
                raise BadRecord("all of its turns are empty", "empty turns")
        except UserError as error:
            return [getattr(error, "kind", "other"), str(error)]
        return [length, len(read.ids), len(read.labels) - read.labels.count(IGNORE)]

    def _measure_pictures(self, damaged: set[str], name: str) -> dict[str, Size]:
        """The size of every picture that can be opened, by the path in its record."""
        named = dict.fromkeys(path for record in self.records for path in pictures(record))
        good = [path for path in named if str(self.image_root / path) not in damaged]
        return dict(zip(good, sizes_of([self.image_root / path for path in good], self.orientation, self.workers, name)))

    def left_out(self) -> str:
        """How many records were skipped, by kind: what a run says."""
        kinds = Counter(entry["kind"] for entry in self.skipped).most_common()
        listed = ", ".join(f"{count} × {kind}" for kind, count in kinds)
        return f"{len(self.skipped)} of {len(self.records)} records left out ({listed})"

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, place: int) -> dict[str, Any]:
        index = self.indices[place]
        record = self.records[index]
        identity = json.loads(record["id"])
        try:
            images = [load_image(self.image_root / path, self.orientation) for path in pictures(record)]
            read = self.encode(record, [image.size for image in images])
            pixels = self.reader.pixels(images) if images else None
        except UserError as error:
            raise UserError(f"{self.source}: record {index} (id {identity!r}): {error}") from error
        labels = torch.tensor(read.labels, dtype=torch.long)
        return {**item(read, pixels, [image.size for image in images]), "labels": labels, "id": identity}

    def encode(self, record: Mapping[str, Any], sizes: Sequence[Size] | None = None) -> Read:
        """A record as the model reads it; BadRecord with the reason if it is unusable.

        sizes: of its pictures; None: as they were measured when the data set was built.
        """
        if (fault := unusable(record, self.reader.several)) is not None:
            raise fault
        turns, named = record["conversations"], pictures(record)
        check_turns(turns, len(named), self.reader.special)
        return self.reader.training(turns, self.sizes(record) if sizes is None else sizes, self.max_length)

    def sizes(self, record: Mapping[str, Any]) -> list[Size]:
        """Of its pictures, as they were measured; what could not be measured is refused as a damaged picture."""
        return [self._sizes.get(path, ONE_PIXEL) if self.reader.by_size else ANY_SIZE for path in pictures(record)]

    def _complaint(self) -> str:
        bad = [(entry["index"], entry["id"], entry["reason"]) for entry in self.skipped[:5]]
        return complaint(self.source, bad, len(self.skipped), len(self.records))


def pictures_of(records: Any, image_root: Path) -> Iterator[str]:
    """The paths of the records' pictures, in order."""
    import datasets

    if isinstance(records, datasets.Dataset):
        blocks = records.select_columns("image").with_format("arrow").iter(batch_size=4096)
        named = (image for block in blocks for row in block.column("image").to_pylist() for image in row)
    else:
        named = (image for record in records for image in pictures(record))
    return (str(image_root / image) for image in named)


def item(read: Read, pixels: dict[str, Tensor] | None, sizes: list[Size]) -> dict[str, Any]:
    """What training samples and questions have in common."""
    return {
        "input_ids": torch.tensor(read.ids, dtype=torch.long),
        "types": {name: torch.tensor(values, dtype=torch.long) for name, values in read.types.items()},
        "pixels": pixels,
        "sizes": sizes,
        "text": read.routed_by,
    }


def asked(reader: Reader, text: str, images: Sequence[Image.Image], before: Sequence[Turn] = ()) -> dict[str, Any]:
    """A question about upright RGB pictures, as an item of `QuestionDataset` without an id. before: of `Reader.question`."""
    sizes = [image.size for image in images]
    read = reader.question(text, sizes, before)
    pixels = reader.pixels(images) if images else None
    return {**item(read, pixels, sizes), "prompt": routing_text(text) if IMAGE_TEXT in text else text}


class QuestionDataset(Dataset):
    """Test questions (from `load_questions`) ready for generation.

    An item is a dict: input_ids, types, pixels, sizes and text as of `TrainingDataset`, question_id, prompt (the question
    without `<image>`, as answer files record it).

    A question whose image file is missing, or that has `<image>` in its text but no image, raises UserError when the
    dataset is built; an undecodable image when it is reached. Questions are never skipped: that would change the score.
    """

    def __init__(
        self,
        questions: Sequence[Mapping[str, Any]],
        image_root: Path,
        reader: Reader,
        orientation: str = "exif",
    ) -> None:
        _check_option("orientation", orientation, ORIENTATIONS)
        self.questions, self.image_root, self.reader, self.orientation = questions, Path(image_root), reader, orientation
        for question in questions:
            where = f"Question {question['question_id']!r}"
            check_place(question, reader.several)
            for image in pictures(question):
                if not embedded.is_there(self.image_root / image):
                    raise UserError(f"{where}: image {self.image_root / image} does not exist; check the image root.")

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, place: int) -> dict[str, Any]:
        question = self.questions[place]
        text = question["text"]
        try:
            images = [load_image(self.image_root / path, self.orientation) for path in pictures(question)]
            return {**asked(self.reader, text, images), "question_id": question["question_id"]}
        except UserError as error:
            raise UserError(f"Question {question['question_id']!r}: {error}") from error

    def longest(self) -> int:
        """Tokens of the longest question, its pictures included; of a model that reads by size all of them are measured."""
        named = dict.fromkeys(path for question in self.questions for path in pictures(question))
        measured = (
            sizes_of([self.image_root / path for path in named], self.orientation, 1, "questions")
            if self.reader.by_size
            else [ANY_SIZE] * len(named)
        )
        sizes = dict(zip(named, measured))
        asked = (self.reader.question(q["text"], [sizes[path] for path in pictures(q)]) for q in self.questions)
        return max((len(read.ids) for read in asked), default=0)


def check_place(question: Mapping[str, Any], several: bool = True) -> None:
    """Raises UserError for a question that puts other pictures into its text than it names. several: as of `Reader`."""
    where, named = f"Question {question['question_id']!r}", pictures(question)
    if not several and (fault := too_many(question)) is not None:
        raise UserError(f"{where} {fault}.")
    places = question["text"].count(IMAGE_TEXT)
    if places and not named:
        raise UserError(f"{where} contains {IMAGE_TEXT} but names no image file.")
    if len(named) > 1 and places not in (0, len(named)):
        raise UserError(f"{where} names {len(named)} pictures and contains {IMAGE_TEXT} {places} times; write it as often.")


def check_turns(turns: Sequence[Turn], images: int, special: Sequence[str] | None) -> None:
    """One picture and exactly one question to put it in, several and a place for each, or none at all; every question with an
    answer that is text only.

    special: the tokenizer's special tokens; None (label_masks=reference): the label walk judges the answers.

    Raises:
        BadRecord: a record that would train on something else than its author meant.
    """
    turns = drop_leading_answer(turns)
    _check_places(turns, images)
    if special is not None:
        _check_answers(turns, special)


def _check_places(turns: Sequence[Turn], images: int) -> None:
    if any(IMAGE_TEXT in turn["value"] for turn in turns[1::2]):
        raise BadRecord(f"an answer contains {IMAGE_TEXT}; only a question can hold the image", "place of the picture")
    places = sum(IMAGE_TEXT in place_image(turn["value"]) for turn in turns)
    if images > 1:
        places = sum(turn["value"].count(IMAGE_TEXT) for turn in turns)
        if places != images:
            raise BadRecord(
                f"it names {images} pictures but its questions contain {IMAGE_TEXT} {places} times; write it once where each "
                "belongs, in their order",
                "place of the picture",
            )
        return
    if images and places == 0:
        raise BadRecord(
            f"it names an image but no question contains {IMAGE_TEXT}; put it where the image belongs",
            "place of the picture",
        )
    if images and places > 1:
        raise BadRecord(
            f"{places} questions contain {IMAGE_TEXT} but the record names one image, so only one may", "place of the picture"
        )
    if not images and places:
        raise BadRecord(f"its text contains {IMAGE_TEXT} but the record names no image file", "no picture")


def _check_answers(turns: Sequence[Turn], special: Sequence[str]) -> None:
    if len(turns) % 2:
        raise BadRecord("its last question has no answer, so that has no supervised token", "no answer")
    answers = [turn["value"] for turn in turns[1::2]]
    if "" in answers:
        raise BadRecord("an answer is empty, so it has no supervised token", "empty answer")
    if (token := next((t for t in special if any(t in answer for answer in answers)), None)) is not None:
        raise BadRecord(
            f"an answer contains {token!r}, which the tokenizer reads as its special token and not as text, so it has no "
            "supervised token; write it in another way",
            "special token in an answer",
        )


def _check_option(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise UserError(f"{name} is {value!r}; choose one of {', '.join(allowed)}.")
