"""Requests of lmms-eval as questions to a run: its chat messages, its generation options. Nothing here needs lmms-eval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hide_llava.data.turns import IMAGE_TEXT
from hide_llava.errors import UserError
from hide_llava.evaluation.model import Question

OWN = "hide_llava"  # the column by which our own tasks are known: BENCHMARK/TASK
GREEDY = {"temperature": 0.0, "do_sample": False, "num_beams": 1}  # what must hold where it is said
IDLE = ("top_p", "top_k", "typical_p", "use_cache", "return_dict_in_generate")  # of sampling, or of no effect on an answer
READ = ("max_new_tokens", "until", *GREEDY, *IDLE)


@dataclass(frozen=True)
class Decoding:
    """How a request is answered. max_new_tokens: None takes the run's. until: where an answer is cut. ignored: what the
    request says besides, which nothing here reads."""

    max_new_tokens: int | None
    until: tuple[str, ...]
    ignored: tuple[str, ...] = ()


def decoding(options: Mapping[str, Any], where: str) -> Decoding:
    """The `generation_kwargs` of a task, or of `--gen_kwargs`; where: names the task in errors.

    Raises:
        UserError: sampling or beams, or a length or stop that is none.
    """
    samples = options.get("do_sample")
    if samples or (samples is None and (options.get("temperature") or 0) > 0):
        said = ", ".join(f"{k}={options[k]}" for k in ("do_sample", "temperature") if options.get(k))
        raise UserError(f"{where}: {said} samples, and a run answers greedily; give --gen_kwargs do_sample=False,temperature=0.")
    if (options.get("num_beams") or 1) != 1:
        raise UserError(f"{where}: num_beams={options['num_beams']} searches beams, and a run answers greedily; "
                        "give --gen_kwargs num_beams=1.")  # fmt: skip
    most = options.get("max_new_tokens")
    if most is not None and (not isinstance(most, int) or most < 1):
        raise UserError(f"{where}: max_new_tokens={most!r} is no number of tokens; give --gen_kwargs max_new_tokens=16.")
    until = options.get("until") or ()
    stops = (until,) if isinstance(until, str) else tuple(until)
    if not all(isinstance(stop, str) and stop for stop in stops):
        raise UserError(f"{where}: until={until!r} is no list of texts that end an answer.")
    return Decoding(most, stops, tuple(sorted(set(options) - set(READ))))


def until(text: str, stops: Sequence[str]) -> str:
    """The answer in front of the first of the stops that it holds."""
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    return text[: min(places)].strip() if places else text


def question(messages: Sequence[Mapping[str, Any]], most: int | None, task: str | None, where: str) -> Question:
    """Chat messages [{role, content: [{type, text or url}]}] as one question; where: names it in errors.

    Pictures in front of all text stand where those of a benchmark's questions do; otherwise each stands where it is said.

    Raises:
        UserError: a system prompt (a model has its own), a video or sound, turns that do not take turns, or no question.
    """
    roles = [message["role"] for message in messages]
    if not roles or len(roles) % 2 == 0 or roles != ["user", "assistant"] * (len(roles) // 2) + ["user"]:
        raise UserError(f"{where}: its messages are of {', '.join(roles) or 'nobody'}; a question is of user, or of user and "
                        "assistant in turns with user last.")  # fmt: skip
    turns = [_parts(message["content"], where) for message in messages]
    parts = [part for turn in turns for part in turn]
    pictures = [picture for _, picture in parts if picture is not None]
    in_front = all(picture is None for _, picture in parts[len(pictures) :])
    named = any(IMAGE_TEXT in text for text, _ in parts)
    mark = "" if in_front or named else IMAGE_TEXT
    texts = ["".join(text if picture is None else mark for text, picture in turn) for turn in turns]
    return Question(texts[-1], pictures or None, task, tuple(zip(texts[:-1:2], texts[1::2])), most)


def _parts(content: str | Sequence[Mapping[str, Any]], where: str) -> list[tuple[str, Any]]:
    """(text, None) and ("", picture) of a message, in its order."""
    if isinstance(content, str):
        return [(content, None)]
    found: list[tuple[str, Any]] = []
    for part in content:
        kind = part["type"]
        if kind not in ("text", "image"):
            raise UserError(f"{where}: has a part of the kind {kind!r}; a run reads text and pictures.")
        found.append((part["text"], None) if kind == "text" else ("", part["url"]))
    return found
