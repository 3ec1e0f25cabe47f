"""Option letters as VLMEvalKit reads them without a judge: its `exact_matching` policy.

The rules are those of `matching_util.py` of open-compass/VLMEvalKit. The published MMBench numbers come from the same rules with
ChatGPT behind them, which reads what these rules cannot. Here such an answer names no option.
"""

from __future__ import annotations

import re

MARKS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
REFUSALS = (
    "Sorry, I can't help with images of people yet.", "I can't process this file.",
    "I'm sorry, but without the image provided", "Cannot determine the answer",
)  # fmt: skip
FAILED = "Failed to obtain answer via API"
NONE_OF_THEM = "Z"
LAST_WORDS = 4  # a letter counts as the answer only among so many words at the end
ANSWER_IS = re.compile(r"(?i)(?:correct\s+)?answer\s+is\s+\**([ABCD])\**")


def matched_letter(text: str, choices: dict[str, str]) -> str | None:
    """The letter that the answer names by itself or by its option's text; "Z" for a refusal; None for what needs a judge.

    choices: {letter: text of the option}.
    """
    return _named(text, choices) or _quoted(text, choices)


def _named(text: str, choices: dict[str, str]) -> str | None:
    if FAILED in text:
        return None
    if any(refusal in text for refusal in REFUSALS):
        return NONE_OF_THEM
    words = text.translate(MARKS).split()
    letters = [letter for letter in choices if letter in words]
    if len(letters) == 1 and words.index(letters[0]) >= len(words) - LAST_WORDS:
        return letters[0]
    if not letters and NONE_OF_THEM in words:
        return NONE_OF_THEM
    said = ANSWER_IS.search(text)
    return said.group(1).upper() if said and said.group(1).upper() in choices else None


def _quoted(text: str, choices: dict[str, str]) -> str | None:
    """The one option whose text stands in the answer, without regard to case or words; none in a long answer."""
    if len(text) > 2 * sum(map(len, choices.values())):
        return None
    found = [letter for letter, choice in choices.items() if choice.lower() in text.lower()]
    return found[0] if len(found) == 1 else None
