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


def last_line(text: str) -> str:
    """Of a question, where instruction-tuning data say what form the answer should have; "" of an empty one."""
    return text.rstrip().rpartition("\n")[2]
