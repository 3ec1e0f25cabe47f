"""How a model with a chat template reads: every family but LLaVA-1.5.

The template writes a conversation as one text with a placeholder for each picture; the processor says what text each
placeholder becomes, which depends on the picture's size alone, so that it is asked once about a blank picture of that size.
The rest is the tokenizer's. Answers are found in the text, because hardly a published template marks them, and the tokens of
the prompt are compared with how the training tokens begin, so that nothing else can be generated from than was trained on.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from PIL import Image
from torch import Tensor

from hide_llava.backbones.processors import template_options
from hide_llava.data.measured import file_of
from hide_llava.data.reader import ROUTING_PIXELS, Read, Reader, Size, collapse
from hide_llava.data.turns import IGNORE, IMAGE_TEXT, Turn, asked_after, drop_leading_answer, routing_text
from hide_llava.errors import BadRecord

KEPT = 8192  # sizes of pictures whose text is kept, a few kilobytes each
BLANK: Size = (64, 64)
ASKED_OTHERWISE = ("the tokens of its question change when the answer follows it, so the model would be asked otherwise than "
                   "it was trained")  # fmt: skip
PLAIN = (str, int, float, list)  # among what a processor holds, its settings
# What a processor returns beside the pixels.
OF_TEXT = {"input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids", "labels", "offset_mapping",
           "text_replacement_offsets"}  # fmt: skip


class Tokens(NamedTuple):
    """A text in tokens. offsets: [start, end) of each in the text with its pictures expanded. places: for each picture, where
    its placeholder ended in the text without, and by how many characters it grew; images: [start, stop) of its tokens."""

    ids: list[int]
    offsets: list[tuple[int, int]]
    places: list[tuple[int, int]]
    images: tuple[tuple[int, int], ...]

    def moved(self, at: int) -> int:
        """A place in the text without pictures → in the text with them."""
        return at + sum(gain for end, gain in self.places if end <= at)

    def within(self, start: int, end: int) -> list[int]:
        """The tokens of a stretch of the text with pictures."""
        return [i for i, (a, b) in enumerate(self.offsets) if a < end and b > start]


class ChatReader(Reader):
    """processor: of `load_processor`. stops: tokens that end an answer. beside: of `Backbone.reader`.

    Raises:
        UserError: the template leaves a thinking block open, or does not end an answer.
    """

    several = True
    by_size = True

    def __init__(self, processor: Any, stops: set[int], beside: Callable[[Image.Image], Tensor] | None = None):
        self.processor, self.tokenizer, self.stops, self.beside = processor, processor.tokenizer, set(stops), beside
        self.options = template_options(processor)
        added = {i: token.content for i, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        self.special = list(dict.fromkeys([*self.tokenizer.all_special_tokens, *added.values()]))
        self.texts = lru_cache(KEPT)(self._texts)
        self.placeholder = ""
        (text,) = self.texts((BLANK,))  # finds the placeholder too
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        ids = [i for i in ids if i in added] or ids  # not the newlines around
        self.image_id = Counter(ids).most_common(1)[0][0]
        video = getattr(processor, "video_token", None)
        # Tokens that stand for a picture or a part of one, and with them alone the model would look for one.
        self.seen = {i: token for i, token in added.items() if i in ids or token == video}

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "texts"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.texts = lru_cache(KEPT)(self._texts)

    # ---- what a family may write otherwise ---------------------------------------------------------------------------
    def render(self, messages: list[dict[str, Any]], generate: bool) -> str:
        """The conversation as text, a placeholder for each picture. generate: up to where the model answers."""
        return self.processor.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=generate, **self.options
        )

    def token_types(self, ids: list[int], labels: list[int] | None) -> dict[str, list[int]]:
        """Token types by the names of the model's forward; the processor's rule, where it has one."""
        if not getattr(self.processor, "return_mm_token_type_ids", False):
            return {}
        return {"mm_token_type_ids": list(self.processor.create_mm_token_type_ids([ids])[0])}

    # ---- text --------------------------------------------------------------------------------------------------------
    def messages(self, turns: Sequence[Turn], images: int) -> list[dict[str, Any]]:
        """Turns → messages of a chat template. One picture stands first in its question, as LLaVA puts it; several stand
        where the text has them, without the newlines around."""
        made = []
        for turn in turns:
            text, content = turn["value"], []
            pieces = text.split(IMAGE_TEXT) if images and turn["from"] == "human" else [text]
            if images == 1 and len(pieces) > 1:
                pieces = ["", "".join(pieces).strip()]
            for number, piece in enumerate(pieces):
                content += [{"type": "image"}] if number else []
                piece = piece.strip("\n") if len(pieces) > 1 else piece
                content += [{"type": "text", "text": piece}] if piece.strip() or len(pieces) == 1 else []
            made.append({"role": "user" if turn["from"] == "human" else "assistant", "content": content})
        return made

    def _asked(self, images: Sequence[Any]) -> tuple[str, Any]:
        """A message of these pictures alone, as text and through the processor."""
        turns = [{"from": "human", "value": IMAGE_TEXT * len(images) + "?"}]
        text = self.render(self.messages(turns, len(images)), True)
        return text, self.processor(
            text=[text], images=[list(images)], return_text_replacement_offsets=True, add_special_tokens=False
        )

    def _texts(self, sizes: tuple[Size, ...]) -> list[str]:
        """What the placeholders of a record's pictures become."""
        text, made = self._asked([Image.new("RGB", size) for size in sizes])
        places = made["text_replacement_offsets"][0]
        start, end = places[0]["span"]
        self.placeholder = text[start:end]
        return [place["replacement"] for place in places]

    def tokens(self, text: str, sizes: Sequence[Size]) -> Tokens:
        """Raises BadRecord for a text that contains the model's own placeholder."""
        parts, grown = text.split(self.placeholder), self.texts(tuple(sizes)) if sizes else []
        if len(parts) != len(grown) + 1:
            raise no_picture(self.placeholder)
        made, places, spans, at = [parts[0]], [], [], len(parts[0])
        for new, part in zip(grown, parts[1:]):
            start = sum(map(len, made))
            spans.append((start, start + len(new)))
            places.append((at + len(self.placeholder), len(new) - len(self.placeholder)))
            at += len(self.placeholder) + len(part)
            made += [new, part]
        whole, bos = "".join(made), self.tokenizer.bos_token
        begun = bool(bos) and whole.startswith(bos)  # as a rendered template may; the tokenizer would put another
        out = self.tokenizer(whole, return_offsets_mapping=True, add_special_tokens=not begun)
        found = Tokens(list(out["input_ids"]), list(out["offset_mapping"]), places, ())
        inside = [found.within(*span) for span in spans]
        outside = set(range(len(found.ids))).difference(*inside)
        if (literal := next((at for at in sorted(outside) if found.ids[at] in self.seen), None)) is not None:
            raise no_picture(self.seen[found.ids[literal]])
        return found._replace(images=tuple((tokens[0], tokens[-1] + 1) for tokens in inside))

    def answers(self, messages: list[dict[str, Any]], text: str) -> list[tuple[int, int]]:
        """[start, end) of each answer in the text: from the generation prompt to the end of its turn.

        Raises:
            BadRecord: the template writes an answer otherwise than behind its generation prompt.
        """
        found = []
        for i, message in enumerate(messages):
            if message["role"] == "assistant":
                before, after = self.render(messages[:i], True), self.render(messages[: i + 1], False)
                if not (text.startswith(before) and after.startswith(before)):
                    raise BadRecord(
                        "the model's chat template does not write this answer right behind its generation prompt, so it "
                        "would be trained on what is never generated (a template that thinks, with several turns, or that "
                        "moves a later picture to the front?)",
                        "chat template",
                    )
                found.append((len(before), len(after) if text.startswith(after) else len(text)))
        return found

    # ---- Reader ------------------------------------------------------------------------------------------------------
    def training(self, turns: Sequence[Turn], images: Sequence[Size], max_length: int) -> Read:
        made, labels = self._supervised(turns, images)
        late = next((stop for _, stop in made.images if stop > max_length), None)
        if late is not None:
            raise BadRecord(
                f"the image ends at token {late}, beyond the limit of {max_length}; raise train.max_length, or let the model "
                "see less of it (model.image.max_pixels, model.image.max_tiles)",
                "too long",
            )
        ids, labels = made.ids[:max_length], labels[:max_length]
        if all(label == IGNORE for label in labels):
            raise BadRecord(
                f"no token of an answer is left within train.max_length={max_length}; shorten its text or raise the limit",
                "too long",
            )
        return Read(ids, labels, routing_text(turns), made.images, self.token_types(ids, labels))

    def _supervised(self, turns: Sequence[Turn], images: Sequence[Size]) -> tuple[Tokens, list[int]]:
        """A conversation in tokens, and its labels: each answer and the token that ends it.

        Raises:
            BadRecord: the tokens of the prompt are not how the training tokens begin; an answer is not ended.
        """
        turns = drop_leading_answer(turns)
        messages = self.messages(turns, len(images))
        text = self.render(messages, False)
        made = self.tokens(text, images)
        labels = [IGNORE] * len(made.ids)
        for start, end in self.answers(messages, text):
            inside = made.within(made.moved(start), made.moved(end))
            if inside and made.offsets[inside[0]][0] < made.moved(start):
                raise BadRecord(ASKED_OTHERWISE, "chat template")
            last = max((i for i in inside if made.ids[i] in self.stops), default=None)
            if last is None:
                raise BadRecord(
                    "the model's chat template ends this answer with no token that stops generation", "chat template"
                )
            for i in inside:
                labels[i] = made.ids[i] if i <= last else IGNORE
        self._check_prompt(messages, images, made.ids)
        return made, labels

    def _check_prompt(self, messages: list[dict[str, Any]], images: Sequence[Size], ids: list[int]) -> None:
        first = sum(part["type"] == "image" for part in messages[0]["content"])
        whole = len(images) == first  # else the pictures' texts may differ: some models see several pictures coarsely
        given = self.tokens(self.render(messages[:1], True), images[:first]).ids if whole else []
        if ids[: len(given)] != given:
            raise BadRecord(ASKED_OTHERWISE, "chat template")

    def draft(self, turns: Sequence[Turn], images: Sequence[Size], max_length: int) -> tuple[list[int], list[int], int]:
        try:
            made, labels = self._supervised(turns, images)
        except BadRecord:
            return [], [], 0
        return collapse(Read(made.ids, labels, "", made.images), self.image_id)

    def question(self, text: str, images: Sequence[Size], before: Sequence[Turn] = ()) -> Read:
        turns = asked_after(before, text, len(images))
        made = self.tokens(self.render(self.messages(turns, len(images)), True), images)
        return Read(made.ids, None, routing_text(before or text), made.images, self.token_types(made.ids, None))

    def answer_start(self, text: str) -> list[int]:
        turns = [{"from": "human", "value": "?"}, {"from": "gpt", "value": text}]
        return [label for label in self._supervised(turns, ())[1] if label != IGNORE][:-1]  # without what ends the turn

    def pixels(self, images: Sequence[Image.Image]) -> dict[str, Tensor]:
        _, made = self._asked(images)
        found = {name: as_tensor(value) for name, value in made.items() if name not in OF_TEXT}
        if self.beside is not None:
            found[ROUTING_PIXELS] = torch.stack([self.beside(image) for image in images])
        return found

    def settings(self) -> list[Any]:
        own = {name: value for name, value in vars(self.processor).items() if isinstance(value, PLAIN)}
        kwargs = getattr(self.processor, "images_kwargs", None)  # these win over the image processor's own
        image = json.loads(json.dumps([self.processor.image_processor.to_dict(), kwargs, own], default=str))
        template = self.processor.chat_template or ""
        return [file_of(self.tokenizer), template, image, sorted(self.stops), self.options, transformers.__version__]

    def piece(self, token: int) -> str:
        return self.tokenizer.decode([token])


def no_picture(token: str) -> BadRecord:
    return BadRecord(
        f"its text contains {token!r}, which stands for a picture to this model; write it in another way",
        "special token in the text",
    )


def as_tensor(value: Any) -> Tensor:
    """What a processor returns, as a tensor; floating point numbers in fp32."""
    tensor = value if isinstance(value, Tensor) else torch.from_numpy(np.ascontiguousarray(np.asarray(value)))
    return tensor.float() if tensor.is_floating_point() else tensor
