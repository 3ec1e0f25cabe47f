"""Records and questions as text: turns, the place of the image, what a sample is routed by. No model's prompt format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

IGNORE = -100  # a position without loss
IMAGE_TEXT = "<image>"  # what stands for the image in text

Turn = Mapping[str, str]  # {"from": "human" | "gpt", "value": text}


def place_image(text: str) -> str:
    """`<image>` first and once, followed by a newline, wherever and however often it stood; other text unchanged."""
    if IMAGE_TEXT not in text:
        return text
    return f"{IMAGE_TEXT}\n{text.replace(IMAGE_TEXT, '').strip()}".strip()


def drop_leading_answer(turns: Sequence[Turn]) -> Sequence[Turn]:
    """LLaVA's code skips an assistant turn before the first question."""
    return turns[1:] if turns and turns[0]["from"] != "human" else turns


def routing_text(source: str | Sequence[Turn]) -> str:
    """The text a sample is routed by: its first question, without `<image>` and the newline that follows it."""
    if not isinstance(source, str):
        source = next((turn["value"] for turn in source if turn["from"] == "human"), "")
    return place_image(source).replace(IMAGE_TEXT, "").lstrip("\n")


def asked_after(before: Sequence[Turn], text: str, images: int) -> list[Turn]:
    """The turns of a conversation whose last one is the question `text`. Where no question of it has a place for its pictures,
    the first gets `<image>` and a newline for each of them."""
    turns = [*before, {"from": "human", "value": text}]
    if not any(IMAGE_TEXT in turn["value"] for turn in turns):
        turns[0] = {**turns[0], "value": f"{IMAGE_TEXT}\n" * images + turns[0]["value"]}
    return turns


def interleaved(text: str, images: int) -> list[str | None]:
    """A question in pieces, None for each picture: one picture stands first, as LLaVA puts it; several stand where the text has
    them, without the newlines around, or all in front."""
    pieces = text.split(IMAGE_TEXT)
    if images < 2 or len(pieces) == 1:
        return [*[None] * images, routing_text(text) if len(pieces) > 1 else text]
    found: list[str | None] = []
    for number, piece in enumerate(pieces):
        found += [None] if number else []
        found += [piece.strip("\n")] if piece.strip() else []
    return found


def last_line(text: str) -> str:
    """Of a question, where instruction-tuning data say what form the answer should have; "" of an empty one."""
    return text.rstrip().rpartition("\n")[2]
