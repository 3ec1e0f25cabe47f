"""Turns → prompt string → token ids and labels, in the vicuna_v1 format of LLaVA-1.5.

Everything here is un-expanded: one image is one id, `IMAGE_TOKEN`. The reader (llava15.py) repeats it once per patch.
The ids are those of the reference, bit for bit; `tests/data/test_golden_conversation.py` holds the recordings. The labels
are, too, wherever the reference finds the answers: it searches the text for " ASSISTANT: " and "</s>", so a prompt with
these words in it was masked wrongly or not at all. `masks="reference"` repeats that; "exact" knows where the answers are.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerFast

from hide_llava.backbones.llama_tokenizer import encode
from hide_llava.data.turns import IGNORE, IMAGE_TEXT, Turn, asked_after, drop_leading_answer, place_image
from hide_llava.errors import UserError

IMAGE_TOKEN = -200  # stands for the image in input_ids; never a row of the embedding table

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
ROLES = {"human": "USER", "gpt": "ASSISTANT"}
SEPARATORS = {"human": " ", "gpt": "</s>"}

MASKS = ("exact", "reference")
SPECIAL = ("<s>", "</s>", "<unk>")  # LLaMA's special tokens, which its tokenizer also finds in texts


class Encoded(NamedTuple):
    """One training sample, un-expanded. `mismatch`: the reference's label walk failed, so every label is IGNORE."""

    input_ids: list[int]
    labels: list[int]
    mismatch: bool


def build_prompt(turns: Sequence[Turn], generate: bool = False) -> str:
    """The prompt string. With `generate` it ends in " ASSISTANT:" without a space, ready for the model to answer.

    An empty turn is written as its role and a colon alone, as in the reference. Roles must alternate from human.
    """
    return "".join(_pieces(turns)) + (ROLES["gpt"] + ":" if generate else "")


def _pieces(turns: Sequence[Turn]) -> Iterator[str]:
    """The prompt in pieces: the system prompt, then two of each turn, its role with the colon and what follows it."""
    yield SYSTEM + " "
    for index, turn in enumerate(turns):
        if turn["from"] != ("human", "gpt")[index % 2]:
            raise UserError(f"turn {index + 1} is from {turn['from']!r}; human and gpt turns must alternate.")
        yield f"{ROLES[turn['from']]}:"
        yield f" {turn['value']}{SEPARATORS[turn['from']]}" if turn["value"] else ""


def answer_spans(turns: Sequence[Turn]) -> list[tuple[int, int]]:
    """[start, end) of each answer in `build_prompt(turns)`, in characters, with its leading blank and its `</s>`."""
    spans, at = [], 0
    for index, piece in enumerate(_pieces(turns)):
        if index and index % 4 == 0:  # 0: system; 1, 2: question; 3, 4: answer
            spans.append((at, at + len(piece)))
        at += len(piece)
    return spans


def tokenize_with_image(prompt: str, tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Ids of `prompt` with each literal `<image>` replaced by IMAGE_TOKEN.

    Each piece of text between images is tokenised alone (so it gets its own leading "▁") and loses its BOS, except the
    first: `USER: <image>\\n` gives … 3148 1001 29901 29871 -200 29871 13 with LLaMA's vocabulary.
    """
    first, *others = (encode(piece, tokenizer) for piece in prompt.split(IMAGE_TEXT))
    ids = list(first)
    for piece in others:
        ids += [IMAGE_TOKEN, *piece[1:]]
    return ids


def encode_training(
    turns: Sequence[Turn], has_image: bool, tokenizer: PreTrainedTokenizerFast, max_length: int, masks: str = "exact"
) -> Encoded:
    """Ids and labels of one conversation; loss falls on each answer's tokens and its `</s>`, nowhere else.

    masks="reference": the labels of the reference's label walk, which searches the text for the answers.
    Only a text-only sample is cut to `max_length` here; one with an image is cut when the image is expanded.
    """
    turns = drop_leading_answer(turns)
    if has_image:
        turns = [{"from": turn["from"], "value": place_image(turn["value"])} for turn in turns]
    prompt = build_prompt(turns)
    if masks == "reference":
        ids = tokenize_with_image(prompt, tokenizer) if has_image else encode(prompt, tokenizer)[:max_length]
        labels, mismatch = _label_walk(prompt, ids, has_image, tokenizer, max_length)
        return Encoded(ids, labels, mismatch)
    ids, starts = _tokens_and_starts(prompt, has_image, tokenizer)
    labels = [IGNORE] * len(ids)
    for first, end in answer_spans(turns):
        span = range(bisect_left(starts, first), bisect_left(starts, end))
        labels[span.start : span.stop] = ids[span.start : span.stop]
    limit = len(ids) if has_image else max_length
    return Encoded(ids[:limit], labels[:limit], False)


def _tokens_and_starts(
    prompt: str, has_image: bool, tokenizer: PreTrainedTokenizerFast
) -> tuple[list[int], list[int]]:
    """Ids as of `tokenize_with_image` (with an image) or `encode`, and the character of the prompt each begins at.

    No token crosses the border between a role's colon and the blank after it: LLaMA's vocabulary has "▁" only at the
    beginning of a piece, and special tokens are cut out first (`load_tokenizer` proves both).
    """
    ids, starts, at = [], [], 0
    for number, piece in enumerate(prompt.split(IMAGE_TEXT) if has_image else [prompt]):
        if number:
            ids.append(IMAGE_TOKEN)
            starts.append(at)
            at += len(IMAGE_TEXT)
        encoding = tokenizer.backend_tokenizer.encode(piece, add_special_tokens=True)
        skip = 1 if number else 0  # the BOS of each piece but the first
        ids += encoding.ids[skip:]
        starts += [at + start for start, _ in encoding.offsets[skip:]]
        at += len(piece)
    return ids, starts


def _label_walk(
    prompt: str, ids: list[int], has_image: bool, tokenizer: PreTrainedTokenizerFast, max_length: int
) -> tuple[list[int], bool]:
    """Walk over the rounds (question + answer) and mask what is not answer, counting tokens round by round."""
    count = (
        (lambda text: len(tokenize_with_image(text, tokenizer)))
        if has_image
        else (lambda text: len(encode(text, tokenizer)))
    )
    labels = list(ids)
    labels[0] = IGNORE
    position = 1
    for piece in prompt.split(SEPARATORS["gpt"]):
        halves = piece.split(" ASSISTANT: ")
        if len(halves) != 2:  # the empty text after the last </s>, or a round that cannot be told apart
            break
        length = count(piece)  # its own BOS is counted: it stands for the </s> that ended the round
        question = count(halves[0] + " ASSISTANT: ") - 2  # without that BOS and the trailing "▁" of the answer's start
        labels[position : position + question] = [IGNORE] * len(labels[position : position + question])
        position += length
    labels[position:] = [IGNORE] * len(labels[position:])
    # Padding is <unk>, so the reference does not count a literal <unk> in the text, and gives the sample up.
    real = sum(token != tokenizer.pad_token_id for token in ids)
    mismatch = position < max_length and position != real
    return ([IGNORE] * len(ids) if mismatch else labels), mismatch


def encode_question(
    text: str, has_image: bool, tokenizer: PreTrainedTokenizerFast, before: Sequence[Turn] = ()
) -> list[int]:
    """Ids of the generation prompt for a question; with an image, `<image>` and a newline are put before it.

    before: turns of the same conversation, in front of it; then the image stands in the first question, if no question has it.
    """
    turns = asked_after(before, text, int(has_image))
    if has_image and any(IMAGE_TEXT in turn["value"] for turn in [*before, {"value": text}]):
        turns = [{"from": turn["from"], "value": place_image(turn["value"])} for turn in turns]
    prompt = build_prompt(turns, generate=True)
    return tokenize_with_image(prompt, tokenizer) if has_image else encode(prompt, tokenizer)


def reference_routing_text(input_ids: Sequence[int], tokenizer: PreTrainedTokenizerFast) -> str:
    """What the reference routes by: the decoded prompt from after its first newline to before " ASSISTANT".

    With an image first this is the first question. A text-only prompt loses its first line, and is empty when that is
    all it has. Kept for parity with recorded numbers; `routing_text` is the sound rule.
    """
    ids = [tokenizer.pad_token_id if token == IMAGE_TOKEN else token for token in input_ids]
    decoded = tokenizer.decode(ids, skip_special_tokens=True)
    return decoded.partition("\n")[2].partition(f" {ROLES['gpt']}")[0]
