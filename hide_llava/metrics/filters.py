"""Filter chains: what of an answer is extracted, how it and the gold answer are normalised, how the two are matched.

A chain is data, as the filters of lm-evaluation-harness are: `rules.py` declares one for each form of each metric out of
the functions below. Strings in, strings and numbers out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from hide_llava.errors import UserError
from hide_llava.metrics.letters import ALPHABET, option_letters, option_texts, said_letter

Rule = Callable[[str, dict, dict], float]
"""(answer text, reference record, options) -> 0…1"""
Extract = Callable[[str, dict], str | None]
"""(answer text, reference record) -> the part that counts, None for an answer that is wrong in any case"""
Normalise = Callable[[str], str]
Match = Callable[[str, str], float]
"""(answer, gold answer), both normalised -> True, False or 0…1"""

NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|[-+]?\.\d+")
TOLERANCE = 0.05
_WORD = re.compile(r"\w+")


@dataclass(frozen=True, kw_only=True)
class Chain:
    """The filters of one rule, each stage a tuple of functions that run in order. A chain is called as a `Rule` is.

    extract: done to the answer alone. normalise: done to the answer and to the gold answer. match: compares the two. gold:
    the record's field that holds the gold answer, or the list of gold answers of which the best counts.
    """

    match: Match
    normalise: tuple[Normalise, ...] = ()
    extract: tuple[Extract, ...] = ()
    gold: str = "answer"

    def __call__(self, text: str, record: dict, options: dict) -> float:
        said: str | None = text
        for extract in self.extract:
            said = extract(said, record)
            if said is None:
                return 0
        gold = record[self.gold]
        said, *golds = (self._normalised(t) for t in (said, *([gold] if isinstance(gold, str) else gold)))
        best = max(self.match(said, g) for g in golds)
        return int(best) if isinstance(best, bool) else best

    def _normalised(self, text: str) -> str:
        for normalise in self.normalise:
            text = normalise(text)
        return text


@dataclass(frozen=True)
class ByRecord:
    """One of several rules, by the kind of the question. kind: record -> a key of `rules`."""

    kind: Callable[[dict], str]
    rules: dict[str, Rule]

    def __call__(self, text: str, record: dict, options: dict) -> float:
        return self.rules[self.kind(record)](text, record, options)


@dataclass(frozen=True)
class ByOption:
    """One of several rules, by a metric's option; the first one where the option is not given."""

    option: str
    rules: dict[str, Rule]

    def chosen(self, options: dict) -> Rule:
        """The rule that the options ask for; UserError where there is none for the option's value."""
        value = options.get(self.option, next(iter(self.rules)))
        if value not in self.rules:
            known = " or ".join(f'"{name}"' for name in self.rules)
            raise UserError(f"Option {self.option} is {value!r}; it may be {known}.")
        return self.rules[value]

    def __call__(self, text: str, record: dict, options: dict) -> float:
        return self.chosen(options)(text, record, options)


# ------------------------------------------------------------------------------------------------------------ extract


def answerable(text: str, record: dict) -> str | None:
    """The answer unless it contains "Unanswerable": several published scripts take that for wrong whatever the gold is."""
    return None if "Unanswerable" in text else text


def without_spaces_and_periods(text: str, record: dict) -> str:
    """The answer in lower case without spaces and periods; line feeds stay."""
    return text.lower().replace(" ", "").replace(".", "")


def named_option(text: str, record: dict) -> str | None:
    """The letter of the question's option that the answer names, by its letter or by its text."""
    return option_letter(text, option_letters(record), option_texts(record))


def yes_no(text: str, record: dict | None = None) -> str | None:
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


# ---------------------------------------------------------------------------------------------------------- normalise


def trim(text: str) -> str:
    """Lower case, single spaces, no period at the end: "No. " and "no" are the same answer."""
    return single_spaces(text.lower()).rstrip(".").rstrip()


def single_spaces(text: str) -> str:
    """No blanks around the text, and one space for each run of blanks within."""
    return " ".join(text.split())


def squeeze(text: str) -> str:
    """Lower case without outer blanks, spaces, line feeds and periods."""
    return text.lower().strip().replace(" ", "").replace("\n", "").replace(".", "")


def without_line_feeds(text: str) -> str:
    return text.strip().replace("\n", "")


def without_spaces(text: str) -> str:
    return text.replace(" ", "")


# -------------------------------------------------------------------------------------------------------------- match


def equal(text: str, gold: str) -> bool:
    return text == gold


def equal_not_empty(text: str, gold: str) -> bool:
    return bool(text) and text == gold


def contains(text: str, gold: str) -> bool:
    """Whether gold is a substring of text; the empty string is one of every text."""
    return gold in text


def either_contains(text: str, gold: str) -> bool:
    """Whether one of the two is a substring of the other."""
    return gold in text or text in gold


def filled(match: Match) -> Match:
    """The same match, but wrong where one of the two sides holds nothing besides blanks."""
    return lambda text, gold: match(text, gold) * (bool(text.strip()) and bool(gold.strip()))


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


def contains_wordish(text: str, gold: str) -> bool:
    """A published attempt at whole words, which finds "1" in "10" and "a" before every word that starts with it.

    A gold with a space: is it in the text? Else, without its periods: is it in a text without spaces, or with a space
    before or a space, period or comma behind it in any other text?
    """
    if " " in gold:
        return gold in text
    gold = gold.replace(".", "")
    if " " in text:
        return any(form in text for form in (f" {gold}", f"{gold} ", f"{gold}.", f"{gold},"))
    return gold in text


def share_of_items(text: str, gold: str) -> float:
    """The share of gold's comma-separated items among those of text, untrimmed; a repeated gold item counts twice."""
    items, said = gold.split(","), text.split(",")
    return sum(item in said for item in items) / len(items)


def overlap_of_items(text: str, gold: str) -> float:
    """|gold ∩ said| / |gold ∪ said| of the trimmed comma-separated items."""
    known, said = ({trim(item) for item in t.split(",")} - {""} for t in (gold, text))
    return len(known & said) / len(known | said) if known | said else 0


def within_five_percent(text: str, gold: str) -> bool:
    """|text − gold| / |gold| ≤ 0.05 where float() reads both and gold is not 0, else equality; "5%" is 0.05."""
    said, known = _float(text), _float(gold)
    if said is not None and known:
        return abs(said - known) / abs(known) <= TOLERANCE
    return text == gold


def _float(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def within_five_percent_unsigned(text: str, gold: str) -> bool:
    """|text − gold| ≤ 0.05·|gold| of numbers but for %, currency signs and thousands separators, else equality of texts."""
    said, known = (t.strip("%$€£ ") for t in (text, gold))
    if NUMBER.fullmatch(said) and NUMBER.fullmatch(known):
        said, known = float(said.replace(",", "")), float(known.replace(",", ""))
        return abs(said - known) <= TOLERANCE * abs(known)
    return equal_not_empty(text, gold)


def levenshtein(a: str, b: str) -> int:
    """Least number of insertions, deletions and substitutions that turn a into b."""
    before = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        row = [i]
        for j, y in enumerate(b, 1):
            row.append(min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (x != y)))
        before = row
    return before[-1]


def similarity(a: str, b: str) -> float:
    """1 − levenshtein / longer length; two empty strings are alike (1), one empty string is not (0)."""
    longest = max(len(a), len(b))
    return 1 - levenshtein(a, b) / longest if longest else 1.0


def similarity_from_a_half(a: str, b: str) -> float:
    """`similarity`, where less than 0.5 counts 0."""
    alike = similarity(a, b)
    return alike if alike >= 0.5 else 0.0
