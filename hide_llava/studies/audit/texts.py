"""What an audit asks about texts: form of an answer, questions of a record, prompts and records that are too long."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from hide_llava.backbones.vicuna import SPECIAL
from hide_llava.data import embedded
from hide_llava.data.images import size_of
from hide_llava.data.reader import ANY_SIZE, Reader
from hide_llava.data.turns import IMAGE_TEXT, Turn
from hide_llava.errors import UserError
from hide_llava.schema import ModelConfig

FORMATS = ("empty", "letter", "yes/no", "number", "list", "short", "sentence")
SHORT = 5  # words
AROUND = 256  # bytes that the template puts around a conversation, and more than it puts around a turn
LETTER = re.compile(r"\(?[A-Za-z]\)?[.)]?")
NUMBER = re.compile(r"[-+]?[\d.,]*\d\s*%?")
# The pieces CLIP's tokenizer splits a text into before it splits them further (openai/CLIP's pattern).
PIECES = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d|[^\W\d_]+|\d|(?:[^\s\w]|_)+", re.IGNORECASE)
PARTS = re.compile(r"[0-9]|[^\s0-9]+")  # none of CLIP's pieces crosses a blank or holds two digits
# Lines that say how to answer, which one data set has in several wordings.
FORMAT_LINES = {
    "answer the question using a single word or phrase.",
    "answer with the option's letter from the given choices directly.",
    "answer with the option's letter from the given choices.",
    "when the provided information is insufficient, respond with 'unanswerable'.",
}


def answer_format(answer: Any) -> str:
    """One of FORMATS. "list": several references, a bracketed list, or commas between short items."""
    if isinstance(answer, list):
        return "list" if any(str(item).strip() for item in answer) else "empty"
    text = str(answer).strip() if answer is not None else ""
    if not text:
        return "empty"
    if LETTER.fullmatch(text):
        return "letter"
    if text.lower().rstrip(".") in ("yes", "no"):
        return "yes/no"
    if NUMBER.fullmatch(text):
        return "number"
    items = [item.split() for item in text.split(",")]
    if text[0] + text[-1] in ("[]", "()") or (len(items) > 2 and all(0 < len(item) <= 2 for item in items)):
        return "list"
    return "short" if len(text.split()) <= SHORT else "sentence"


def questions_of(record: Mapping[str, Any]) -> list[str]:
    """The questions of a training record (one per human turn) or a test question, without `<image>`."""
    turns = record.get("conversations")
    if turns is None:
        texts = [record.get("text")]
    else:
        texts = [turn.get("value") for turn in turns if isinstance(turn, Mapping) and turn.get("from") == "human"]
    return [text.replace(IMAGE_TEXT, "").strip() for text in texts if isinstance(text, str)]


def bare_question(text: str) -> str:
    """A question as it is compared between data sets: lower case, single blanks, without the lines that prescribe
    the answer's form (FORMAT_LINES) or list OCR tokens. A text made of such lines alone is kept."""
    lines = [" ".join(line.lower().split()) for line in text.replace(IMAGE_TEXT, "").splitlines()]
    kept = [line for line in lines if line not in FORMAT_LINES and not line.startswith("reference ocr token")]
    return " ".join(kept).strip() or " ".join(lines).strip()


class PromptLengths:
    """Counts the tokens of prompts with the text encoder's own tokenizer, or, without it, bounds them from below.

    `how` says which. The lower bound counts CLIP's word pieces, each of which is at least one token, and is
    certain for what it finds; it misses long prompts made of rare words.
    """

    def __init__(self, model: ModelConfig, root: Path):
        self.limit, self.tokenizer = 77, None
        found = _clip_tokenizer(model, root)
        if found is not None:
            self.tokenizer, self.limit = found
        name = model.clip
        self.how = f"tokens of {name}" if found else f"lower bound: the tokenizer of {name} is not on this machine"
        self._tokens = lru_cache(maxsize=1 << 16)(self._count_tokens)

    def is_long(self, text: str) -> bool:
        """Whether the text encoder would cut this prompt."""
        room = self.limit - 2  # start and end
        if len(text) * 4 <= room or len(text.encode("utf-8", "replace")) <= room:  # a token is at least one byte
            return False
        return self.count(text) > room

    def count(self, text: str) -> int:
        """Tokens of a text, without start and end; part by part, as the same words come again and again."""
        return sum(map(self._tokens, PARTS.findall(text)))

    def _count_tokens(self, word: str) -> int:
        if self.tokenizer is None:
            return sum(1 for _ in PIECES.finditer(word))
        return len(self.tokenizer(word, add_special_tokens=False)["input_ids"])


def _clip_tokenizer(model: ModelConfig, root: Path) -> tuple[Any, int] | None:
    """The tokenizer of model.clip and its encoder's positions, if it lies on this machine; nothing is downloaded."""
    from transformers import AutoConfig, AutoTokenizer

    from hide_llava.backbones.loading import local

    name = local(model.clip, root) or model.clip
    if name is None:
        return None
    try:
        text = AutoConfig.from_pretrained(name, local_files_only=True).text_config
        return AutoTokenizer.from_pretrained(name, local_files_only=True), text.max_position_embeddings
    except (OSError, ValueError, AttributeError):
        return None


class AnswerRoom:
    """Whether training would keep a token of a record's answers, asked of the function that training itself calls.

    Only a text that could be too long is tokenised. `how` says what was asked; without the model on this machine nothing
    is, and nothing is downloaded.
    """

    def __init__(self, model: ModelConfig, root: Path, limit: int, masks: str):
        self.limit, self.masks = limit, masks  # train.max_length, train.label_masks
        self.reader = _reader(model, root, masks)
        name = model.path
        self.how = f"{self.limit} tokens of {name}" if self.reader else f"not looked for, {name} is not on this machine"

    @property
    def several(self) -> bool:
        """Whether the model reads several pictures of a record."""
        return self.reader is not None and self.reader.several

    @property
    def special(self) -> Sequence[str]:
        """Texts that an answer may not contain; without the model, those of LLaVA-1.5."""
        return (self.reader and self.reader.special) or SPECIAL

    def check(self, turns: Sequence[Turn], images: Sequence[Path], orientation: str) -> None:
        """Raises BadRecord, with the words of a run, for a conversation of which nothing could be learned. images: of the
        record; one that is not there is told of elsewhere."""
        if self.reader is None:
            return
        if self.reader.by_size:
            if all(map(embedded.is_there, images)):
                self.reader.training(turns, [size_of(path, orientation) for path in images], self.limit)
            return
        letters = sum(len(turn["value"].encode("utf-8", "replace")) + AROUND for turn in turns)  # a token is at least one byte
        if letters + AROUND + self.reader.image_positions > self.limit or self.masks == "reference":
            self.reader.training(turns, [ANY_SIZE] * len(images), self.limit)


def _reader(model: ModelConfig, root: Path, masks: str) -> Reader | None:
    """How the model reads, if it lies on this machine; nothing is downloaded."""
    from hide_llava.backbones.auto import reader_of
    from hide_llava.backbones.loading import local

    folders = [local(name, root) for name in (model.path, model.clip)]
    if folders[0] is None:
        return None
    try:
        return reader_of(*folders, masks, model)
    except UserError:
        return None  # `doctor` and a run say what is wrong with a model folder
