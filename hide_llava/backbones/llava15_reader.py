"""How LLaVA-1.5 reads: records and questions to token ids and labels with the image expanded, pictures to pixels.

As the authors' code does, which recordings hold it to: their tokenizer, prompt, label masks and picture transform.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from hide_llava.backbones.llama_tokenizer import encode
from hide_llava.backbones.vicuna import (
    IMAGE_TOKEN,
    MASKS,
    ROLES,
    Encoded,
    encode_question,
    encode_training,
    reference_routing_text,
)
from hide_llava.data.measured import file_of
from hide_llava.data.reader import ROUTING_PIXELS, Read, Reader, Size
from hide_llava.data.turns import IGNORE, Turn, routing_text
from hide_llava.errors import BadRecord, UserError
from hide_llava.storage import read_json

ROUTING = ("question", "reference")


@dataclass
class Llava15Reader(Reader):
    """How LLaVA-1.5 reads. image_positions: decoder positions of an image, the same for every image. transform: RGB image →
    pixels, None where nobody asks for pixels. masks, routing, beside: of `Backbone.reader`."""

    tokenizer: PreTrainedTokenizerFast
    image_positions: int
    transform: Callable[[Image.Image], Tensor] | None = None
    masks: str = "exact"
    routing: str = "question"
    beside: Callable[[Image.Image], Tensor] | None = None
    image_id: int = IMAGE_TOKEN

    def __post_init__(self) -> None:
        for name, allowed in (("masks", MASKS), ("routing", ROUTING)):
            if getattr(self, name) not in allowed:
                raise UserError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(allowed)}.")

    @property
    def special(self) -> Sequence[str] | None:
        return self.tokenizer.all_special_tokens if self.masks == "exact" else None  # else the label walk judges answers

    def training(self, turns: Sequence[Turn], images: Sequence[Size], max_length: int) -> Read:
        encoded, ids, labels = supervised(turns, bool(images), self.tokenizer, self.image_positions, max_length, self.masks)
        if self.routing == "reference":
            routed_by = reference_routing_text(encoded.input_ids[:max_length], self.tokenizer)
        else:
            routed_by = routing_text(turns)
        return Read(ids, labels, routed_by, self._spans(ids))

    def draft(self, turns: Sequence[Turn], images: Sequence[Size], max_length: int) -> tuple[list[int], list[int], int]:
        ids, labels, _ = encode_training(turns, bool(images), self.tokenizer, max_length, self.masks)
        return ids, labels, self.image_positions if images and IMAGE_TOKEN in ids else 0

    def question(self, text: str, images: Sequence[Size], before: Sequence[Turn] = ()) -> Read:
        ids = encode_question(text, bool(images), self.tokenizer, before)
        reference = self.routing == "reference"
        routed_by = reference_routing_text(ids, self.tokenizer) if reference else routing_text(before or text)
        expanded = expand_image(ids, None, self.image_positions, None)[0]
        return Read(expanded, None, routed_by, self._spans(expanded))

    def _spans(self, ids: list[int]) -> tuple[tuple[int, int], ...]:
        if IMAGE_TOKEN not in ids:
            return ()
        start = ids.index(IMAGE_TOKEN)
        return ((start, start + self.image_positions),)

    def answer_start(self, text: str) -> list[int]:
        start = f"{ROLES['gpt']}:"
        return encode(f"{start} {text}", self.tokenizer)[len(encode(start, self.tokenizer)) :]

    def pixels(self, images: Sequence[Image.Image]) -> dict[str, Tensor]:
        """pixel_values float32 [k, 3, H, W]; with `beside`, `routing` in the form that the routing encoder takes."""
        made = {"pixel_values": torch.stack([self.transform(image) for image in images])}
        return made if self.beside is None else {**made, ROUTING_PIXELS: torch.stack([self.beside(i) for i in images])}

    def settings(self) -> list[Any]:
        return [file_of(self.tokenizer), self.image_positions, self.masks]

    def piece(self, token: int) -> str:
        return self.tokenizer.convert_ids_to_tokens(token).replace("▁", " ").replace("<0x0A>", "\n")


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
            raise BadRecord(
                f"the image ends at token {list(input_ids).index(IMAGE_TOKEN) + image_tokens}, beyond the limit of "
                f"{max_length}; shorten the text before it or raise max_length",
                "too long",
            )
        ids[at : at + 1] = [IMAGE_TOKEN] * image_tokens
        if labels is not None:
            labels[at : at + 1] = [IGNORE] * image_tokens
    return ids[:max_length], None if labels is None else labels[:max_length]


def supervised(
    turns: Sequence[Turn],
    has_image: bool,
    tokenizer: PreTrainedTokenizerFast,
    image_tokens: int,
    max_length: int,
    label_masks: str = "exact",
) -> tuple[Encoded, list[int], list[int]]:
    """One conversation as encoded, and its ids and labels with the image expanded; at least one label is to be learned.

    Raises:
        BadRecord: no token of an answer is left within `max_length`, or the reference's label walk gives the record up.
    """
    encoded = encode_training(turns, has_image, tokenizer, max_length, label_masks)
    if encoded.mismatch:
        raise BadRecord(
            "its tokens do not line up with its turns (an empty or missing answer, or a literal '</s>', '<unk>' or "
            "' ASSISTANT: ' in the text), so it has no supervised token; train.label_masks=exact finds its answers",
            "no supervised token",
        )
    ids, labels = expand_image(encoded.input_ids, encoded.labels, image_tokens, max_length)
    if all(label == IGNORE for label in labels):
        raise BadRecord(
            f"no token of an answer is left within train.max_length={max_length}; shorten its text or raise the limit",
            "too long",
        )
    return encoded, ids, labels


def stated_image_tokens(model: Path, clip: Path | None) -> int:
    """Decoder positions of one image, from the configuration files.

    Raises:
        UserError: neither folder says how large the image and its patches are.
    """
    for folder in (model, clip):
        if folder is None:
            continue
        if not (folder / "config.json").is_file():
            raise UserError(f"{folder}: no config.json, so this is not a model folder.")
        vision = read_json(folder / "config.json").get("vision_config")
        if vision:
            return (vision.get("image_size", 224) // vision.get("patch_size", 32)) ** 2
    raise UserError(f"{model}: an original-format LLaVA does not describe its vision tower; give --clip DIR.")
