"""Answer style diversification: the same knowledge asked for in another form of answer (SEFE, arXiv 2505.02486).

A task whose answers all have one form teaches that form for everything. Part of its records are rewritten by the
templates of `assets/answer_styles.json`: yes/no, multiple choice, a word or phrase, a sentence. Only one-round records
are; wrong candidates are answers of other records of the task. Rewriting by a model (as the authors do) can also write
detailed answers; templates cannot.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hide_llava.data.records import features, pictures
from hide_llava.data.turns import IMAGE_TEXT

if TYPE_CHECKING:
    from datasets import Dataset

OPTION = re.compile(r"^\(?([A-Z]|\d)[).:] *(\S.*)$")
SHORT = 3  # words of the longest word-or-phrase answer


class Asked(NamedTuple):
    """A record without its form: what is asked, the answer as text, and the style the record had."""

    question: str
    answer: str
    style: str


@cache
def templates() -> dict[str, Any]:
    return json.loads((Path(__file__).parent.parent / "assets" / "answer_styles.json").read_text(encoding="utf-8"))


def understand(record: Mapping[str, Any]) -> Asked | None:
    """Question, answer and style of a record, None if it is not one question with one answer."""
    turns = record["conversations"]
    if [turn["from"] for turn in turns] != ["human", "gpt"] or not turns[1]["value"].strip():
        return None
    lines = turns[0]["value"].replace(IMAGE_TEXT, "").strip().splitlines()
    lines = [line for line in lines if line.strip() not in templates()["instructions"]]
    answer = turns[1]["value"].strip()
    options = {m[1]: m[2].strip() for m in map(OPTION.match, lines) if m}
    if answer.strip("().:") in options:
        kept = [line for line in lines if not OPTION.match(line)]
        return Asked("\n".join(kept), options[answer.strip("().:")], "choice")
    style = "yes_no" if answer.lower().strip(".") in ("yes", "no") else "short"
    return Asked("\n".join(lines), answer, style if len(answer.split()) <= SHORT else "long")


def rewrite(asked: Asked, style: str, others: list[str], rng: random.Random) -> tuple[str, str] | None:
    """Question and answer in `style`; `others` are candidates for wrong answers. None if they do not suffice."""
    form = templates()[style]
    wrong = [other for other in others if other.lower() != asked.answer.lower()]
    if style == "yes_no":
        right = not wrong or rng.random() < 0.5
        candidate = asked.answer if right else rng.choice(wrong)
        question = form["question"].format(question=asked.question, candidate=candidate)
        return question, form["right" if right else "wrong"]
    if style == "choice":
        if not wrong:
            return None
        texts = [asked.answer, *rng.sample(wrong, min(len(wrong), form["most"] - 1))]
        rng.shuffle(texts)
        listed = [form["option"].format(letter=chr(65 + i), text=text) for i, text in enumerate(texts)]
        question = form["question"].format(question=asked.question, options="\n".join(listed))
        return question, chr(65 + texts.index(asked.answer))
    return form["question"].format(question=asked.question), form["answer"].format(answer=asked.answer.rstrip("."))


def diversify(records: Dataset, percent: float, seed: int) -> Dataset:
    """`records` with `percent` of those that can be, rewritten; the number of records stays. Same seed, same result."""
    from datasets import Dataset, concatenate_datasets

    rng, known = random.Random(seed), [understand(record) for record in records]
    places = [i for i, asked in enumerate(known) if asked is not None]
    rng.shuffle(places)
    pools: dict[str, dict[str, None]] = {"yes_no": {"Yes": None, "No": None}}  # style → distinct answers, in order
    for asked in filter(None, known):
        if asked.style != "yes_no":
            pools.setdefault(asked.style, {})[asked.answer] = None
    answers = {style: list(pool) for style, pool in pools.items()}
    changed: dict[int, dict[str, Any]] = {}
    for place in places[: round(len(places) * percent / 100)]:
        asked, record = known[place], records[place]
        styles = templates()["from"][asked.style]
        made = [
            r for style in rng.sample(styles, len(styles)) if (r := rewrite(asked, style, answers[asked.style], rng))
        ]
        if made:
            question, answer = made[0]
            image = f"{IMAGE_TEXT}\n" * len(pictures(record))
            turns = [{"from": "human", "value": image + question}, {"from": "gpt", "value": answer}]
            changed[place] = {**record, "conversations": turns}
    if not changed:
        return records
    same = records.select([i for i in range(len(records)) if i not in changed])
    return concatenate_datasets([same, Dataset.from_list(list(changed.values()), features=features())])
