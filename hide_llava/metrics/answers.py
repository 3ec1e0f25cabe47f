"""Reading short answers the sane way: what the `clean` rules of several families share. Strings in, strings out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from hide_llava.metrics.letters import ALPHABET, said_letter

NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|[-+]?\.\d+")
_WORD = re.compile(r"\w+")


def trim(text: str) -> str:
    """Lower case, single spaces, no period at the end: "No. " and "no" are the same answer."""
    return " ".join(text.lower().split()).rstrip(".").rstrip()


def has_words(text: str, gold: str) -> bool:
    """Whether the words of gold stand in text, not inside longer words or numbers. An empty gold is nowhere.

    "1" is in "there is 1 car", not in "10 cars", "1.5" or "0.1".
    """
    gold = trim(gold)
    if not gold:
        return False
    left = r"(?<!\w)(?<!\d[.,])" if re.match(r"\w", gold) else ""
    right = r"(?!\w)(?![.,]\d)" if re.search(r"\w$", gold) else ""
    return re.search(left + re.escape(gold) + right, trim(text)) is not None


def yes_no(text: str) -> str | None:
    """ "yes" or "no" when exactly one of the two words occurs or the answer starts with one; None otherwise."""
    words = _WORD.findall(text.lower())
    if words and words[0] in ("yes", "no"):
        return words[0]
    found = {word for word in words if word in ("yes", "no")}
    return found.pop() if len(found) == 1 else None


def option_letter(text: str, letters: Iterable[str] = ALPHABET, choices: Sequence[str] = ()) -> str | None:
    """The letter of the option that an answer names, upper case, or None: the one reader of every clean rule.

    letters: those of the question's options. choices: their texts, in the order of the letters, where they are known:
    an answer that says no letter may be one of them, or hold exactly one of them as whole words.
    """
    letters = [*letters]
    if (said := said_letter(text, letters)) is not None:
        return said
    equal = [letter for letter, choice in zip(letters, choices) if trim(choice) == trim(text)]
    inside = [letter for letter, choice in zip(letters, choices) if has_words(text, choice)]
    return next((found[0] for found in (equal, inside) if len(found) == 1), None)


def numbers(text: str) -> list[float]:
    """All numbers of a text in order; "1,200" is one number, "1, 2" are two."""
    return [float(n.replace(",", "")) for n in NUMBER.findall(text)]
