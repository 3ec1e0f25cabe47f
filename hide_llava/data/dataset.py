"""Records → samples: token ids with the image expanded, labels, pixels and routing text.

A sample that would train on nothing, or on something else than its author meant, is an error that names the record (or,
with `on_bad_sample="skip"`, is left out and listed). The reference keeps such samples silently.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.data import Dataset
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from hide_llava.data.conversation import (
    IGNORE,
    IMAGE_TEXT,
    IMAGE_TOKEN,
    Turn,
    drop_leading_answer,
    encode_question,
    encode_training,
    place_image,
    reference_routing_text,
    routing_text,
)
from hide_llava.data.images import load_image
from hide_llava.errors import UserError

ON_BAD_SAMPLE = ("error", "skip", "show")
ROUTING = ("question", "reference")
Transform = Callable[[Image.Image], torch.Tensor]


def expand_image(
    input_ids: Sequence[int], labels: Sequence[int] | None, image_tokens: int, max_length: int | None
) -> tuple[list[int], list[int] | None]:
    """Repeat IMAGE_TOKEN `image_tokens` times, with labels IGNORE, and cut to `max_length` (None: no limit).

    In the reference's order: the un-expanded text is cut first, then the expanded sequence. UserError if the cut would
    fall before or inside the image: half an image is never trained on.
    """
    ids, labels = list(input_ids[:max_length]), None if labels is None else list(labels[:max_length])
    if IMAGE_TOKEN in input_ids:
        at = ids.index(IMAGE_TOKEN) if IMAGE_TOKEN in ids else len(ids)
        if max_length is not None and at + image_tokens > max_length:
            raise UserError(
                f"the image ends at token {list(input_ids).index(IMAGE_TOKEN) + image_tokens}, beyond the limit of "
                f"{max_length}; shorten the text before it or raise max_length"
            )
        ids[at : at + 1] = [IMAGE_TOKEN] * image_tokens
        if labels is not None:
            labels[at : at + 1] = [IGNORE] * image_tokens
    return ids[:max_length], None if labels is None else labels[:max_length]


def modality_length(turns: Sequence[Turn], has_image: bool) -> int:
    """Whitespace-separated words over all turns; negative without an image. What the sampler groups by."""
    words = sum(len(turn["value"].split()) for turn in turns)
    return words if has_image else -words


class TrainingDataset(Dataset):
    """Map-style training samples of one annotation file (`records` from `load_records`).

    An item is a dict: input_ids and labels (long [N], N ≤ max_length, image expanded to `image_tokens` ids),
    pixel_values (float32 [3, H, W], or None for a text-only record), text (what the sample is routed by), id (as in the
    file).

    Every record is tokenised and its image looked up when the dataset is built, so that bad data stops a run before it
    starts. `on_bad_sample="error"` raises UserError naming the first bad records; "skip" also decodes every image,
    leaves bad records out and lists them in `skipped` as {index, id, reason}; "show", for the preview, does the same and
    does not mind if no good record is left. `routing="reference"` reproduces the
    routing text of the reference, which differs for text-only records.
    """

    def __init__(
        self,
        records: Sequence[Mapping[str, Any]],
        image_root: Path,
        tokenizer: PreTrainedTokenizerFast,
        transform: Transform,
        image_tokens: int,
        max_length: int = 2048,
        on_bad_sample: str = "error",
        routing: str = "question",
    ) -> None:
        _check_option("on_bad_sample", on_bad_sample, ON_BAD_SAMPLE)
        _check_option("routing", routing, ROUTING)
        self.records, self.image_root = records, Path(image_root)
        self.tokenizer, self.transform = tokenizer, transform
        self.image_tokens, self.max_length = image_tokens, max_length
        self.on_bad_sample, self.routing = on_bad_sample, routing
        # A concatenated table carries the names of all its files, one a line.
        source = getattr(getattr(records, "info", None), "description", "") or "records"
        self.source = " + ".join(filter(None, source.splitlines()))

        self.indices, self.skipped = self.check(decode=on_bad_sample != "error")
        if self.skipped and on_bad_sample == "error":
            raise UserError(self._complaint())
        if not self.indices and on_bad_sample != "show":
            raise UserError(f"{self.source}: no usable sample. {self._complaint()}")

    def check(self, decode: bool = False) -> tuple[list[int], list[dict[str, Any]]]:
        """Try every record: the indices of good ones, and {index, id, reason} of bad ones. Fills `modality_lengths`.

        `decode` also opens every image, which takes much longer than the rest.
        """
        good: list[int] = []
        bad: list[dict[str, Any]] = []
        self.modality_lengths: list[int] = []
        name = Path(self.source).name
        for index, record in enumerate(tqdm(self.records, desc=f"checking {name}", delay=5, disable=None)):
            try:
                self.encode(record)
                if record["image"] is not None:
                    self._find_image(record, decode)
                length = modality_length(record["conversations"], record["image"] is not None)
                if length == 0:
                    raise UserError("all of its turns are empty")
            except UserError as error:
                bad.append({"index": index, "id": json.loads(record["id"]), "reason": str(error)})
            else:
                good.append(index)
                self.modality_lengths.append(length)
        return good, bad

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, item: int) -> dict[str, Any]:
        index = self.indices[item]
        record = self.records[index]
        identity = json.loads(record["id"])
        try:
            ids, labels, text = self.encode(record)
            pixels = None if record["image"] is None else self.transform(self._find_image(record, decode=True))
        except UserError as error:
            raise UserError(f"{self.source}: record {index} (id {identity!r}): {error}") from error
        return {
            "input_ids": torch.tensor(ids, dtype=torch.long),
            "labels": torch.tensor(labels, dtype=torch.long),
            "pixel_values": pixels,
            "text": text,
            "id": identity,
        }

    def encode(self, record: Mapping[str, Any]) -> tuple[list[int], list[int], str]:
        """Expanded ids, labels and routing text; UserError with the reason if the record is unusable."""
        turns, has_image = record["conversations"], record["image"] is not None
        _check_placeholders(turns, has_image)
        encoded = encode_training(turns, has_image, self.tokenizer, self.max_length)
        if encoded.mismatch:
            raise UserError(
                "its tokens do not line up with its turns (an empty or missing answer, or a literal '</s>', '<unk>' or "
                "' ASSISTANT: ' in the text), so it has no supervised token"
            )
        ids, labels = expand_image(encoded.input_ids, encoded.labels, self.image_tokens, self.max_length)
        if all(label == IGNORE for label in labels):
            raise UserError(f"no token of an answer is left within max_length {self.max_length}")
        if self.routing == "reference":
            return ids, labels, reference_routing_text(encoded.input_ids[: self.max_length], self.tokenizer)
        return ids, labels, routing_text(turns)

    def _find_image(self, record: Mapping[str, Any], decode: bool) -> Image.Image | None:
        path = self.image_root / record["image"]
        if decode:
            return load_image(path)
        if not path.is_file():
            raise UserError(f"Image {path} does not exist; check the image root of the benchmark.")
        return None

    def _complaint(self) -> str:
        shown = [f"record {bad['index']} (id {bad['id']!r}): {bad['reason']}" for bad in self.skipped[:5]]
        more = f"\n… and {len(self.skipped) - 5} more" if len(self.skipped) > 5 else ""
        return (
            f"{self.source}: {len(self.skipped)} of {len(self.records)} records cannot be trained on; repair them or "
            "set train.on_bad_sample=skip.\n" + "\n".join(shown) + more
        )


class QuestionDataset(Dataset):
    """Test questions (from `load_questions`) ready for generation.

    An item is a dict: input_ids (long [N], image expanded), pixel_values (float32 [3, H, W] or None), text (what the
    question is routed by), question_id, prompt (the question without `<image>`, as answer files record it).

    A question whose image file is missing, or that has `<image>` in its text but no image, raises UserError when the
    dataset is built; an undecodable image when it is reached. Questions are never skipped: that would change the score.
    """

    def __init__(
        self,
        questions: Sequence[Mapping[str, Any]],
        image_root: Path,
        tokenizer: PreTrainedTokenizerFast,
        transform: Transform,
        image_tokens: int,
        routing: str = "question",
    ) -> None:
        _check_option("routing", routing, ROUTING)
        self.questions, self.image_root = questions, Path(image_root)
        self.tokenizer, self.transform = tokenizer, transform
        self.image_tokens, self.routing = image_tokens, routing
        for question in questions:
            where, image = f"Question {question['question_id']!r}", question.get("image")
            if image is None and IMAGE_TEXT in question["text"]:
                raise UserError(f"{where} contains {IMAGE_TEXT} but names no image file.")
            if image is not None and not (self.image_root / image).is_file():
                raise UserError(f"{where}: image {self.image_root / image} does not exist; check the image root.")

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, item: int) -> dict[str, Any]:
        question = self.questions[item]
        text, image = question["text"], question.get("image")
        ids = encode_question(text, image is not None, self.tokenizer)
        routed = reference_routing_text(ids, self.tokenizer) if self.routing == "reference" else routing_text(text)
        try:
            pixels = None if image is None else self.transform(load_image(self.image_root / image))
        except UserError as error:
            raise UserError(f"Question {question['question_id']!r}: {error}") from error
        return {
            "input_ids": torch.tensor(expand_image(ids, None, self.image_tokens, None)[0], dtype=torch.long),
            "pixel_values": pixels,
            "text": routed,
            "question_id": question["question_id"],
            "prompt": routing_text(text) if IMAGE_TEXT in text else text,
        }


def _check_placeholders(turns: Sequence[Turn], has_image: bool) -> None:
    """An image file and exactly one turn to put it in, or neither."""
    turns = drop_leading_answer(turns)
    if any(IMAGE_TEXT in turn["value"] for turn in turns[1::2]):
        raise UserError(f"an answer contains {IMAGE_TEXT}; only a question can hold the image")
    places = sum(IMAGE_TEXT in place_image(turn["value"]) for turn in turns)
    if has_image and places == 0:
        raise UserError(f"it names an image but no question contains {IMAGE_TEXT}; put it where the image belongs")
    if has_image and places > 1:
        raise UserError(f"{places} questions contain {IMAGE_TEXT}; a record has one image, so only one may")
    if not has_image and places:
        raise UserError(f"its text contains {IMAGE_TEXT} but the record names no image file")


def _check_option(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise UserError(f"{name} is {value!r}; choose one of {', '.join(allowed)}.")
