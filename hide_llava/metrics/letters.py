"""Option letters: those that a question offers, and the one that an answer says. `filters.option_letter` reads with it.

It reads what a person would read and nothing else, a letter that stands for an option: "B", "(b)", "B. rises", "Answer:
**D**", "C is correct", "It's C", "B because …". An article, a pronoun or the letter of a word is no option, two options at
once are none, and so is a letter that the question does not offer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from hide_llava.errors import UserError
from hide_llava.metrics.rows import is_number, where

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

_TAG = re.compile(r"<[^<>]*>")
_BOX = re.compile(r"\\(?:boxed|text|mathrm|mathbf)\s*\{([^{}]*)\}")
_MARKUP = str.maketrans("", "", '*`$"“”„«»')
_QUOTED = re.compile(r"(?<!\w)['‘]([A-Za-z])['’](?!\w)")

_WHOLE = re.compile(r"[(\[]?\s*([A-Za-z])\s*[)\]]?\s*[.:,;!]?")
# "B. rises", "b) rises", "(B) rises" at the start of a line; "U.S. exports" is none of them
_LABEL = re.compile(r"^[ \t]*[(\[]?[ \t]*([A-Za-z])[ \t]*(?:[)\]]|[.:](?!\w\.))", re.MULTILINE)
_LETTER = r"[(\[]?\s*(?P<letter>[A-Za-z])(?![\w'’])(?=(?P<after>.*))"
# What may stand between "the answer" and its letter. No "not": "the answer is not B" says no letter.
_BETWEEN = (
    r"(?:[\s:=,\-–—]|\b(?:is|are|was|be|would|should|must|will|could|may|might|probably|likely|most|definitely|clearly|"
    r"therefore|thus|so|the|correct|right|best|final|option|choice|letter|answer|i|think|believe|guess|choose|pick|"
    r"select|say|it|it['’]s|that|to)\b)*"
)
_ANSWER = re.compile(rf"\banswers?\b{_BETWEEN}{_LETTER}", re.IGNORECASE)
_OPTION = re.compile(rf"(?<!not )(?<!n't )\b(?:option|choice|letter)\b{_BETWEEN}{_LETTER}", re.IGNORECASE)
_START = re.compile(_LETTER)
_CLAIM = re.compile(
    r"(?<![\w'’])(?P<letter>[A-Z])[)\]]?\s+(?:is|seems|looks|would be|must be|should be)\s+(?:to be\s+)?(?:the\s+)?"
    r"(?:most\s+)?(?:correct|right|best|true|likely|answer)\b"
)
_NAMED = re.compile(
    r"(?<!n['’]t )(?<!not )(?:\b(?:is|be|are|choose|pick|select|say|guess|think|with)|(?<=\w)['’]s)\s+"
    r"[(\[]?(?P<letter>[A-Zb-hj-z])[)\]]?\s*(?:[.,;!?\n]|$)"
)
_ALONE = re.compile(r"(?:^|[.!?:\n])\s*[(\[]?([A-Z])[)\]]?\s*[.!]?\s*(?=\n|$)")
_REASON = re.compile(r"\s+(?:because|since|as|due|given|for|which)\b")
_ENDS = re.compile(r"\s*(?:$|[)\]}.:,;!?]|[-–—]\s)")
_MORE = re.compile(r"[)\].]?\s*(?:,|/|&|\bor\b|\band\b)\s*(?:or\s+|and\s+)?[(\[]?[A-Z](?![\w'’])")
_WRONG = re.compile(r"[)\]]?\s+(?:is|are|was)(?:\s+not|n['’]t|\s+(?:wrong|incorrect|false))\b")
_ABBREVIATION = re.compile(r"\.\w\.")


def said_letter(text: str, letters: Iterable[str] = ALPHABET) -> str | None:
    """The letter by which an answer names one of its question's options (`letters`), upper case, or None."""
    letters = [*letters]
    for said in _said(_cleared(text), letters):
        if said in letters:
            return said
        if said == "":
            break
    return None


def _cleared(text: str) -> str:
    """The text without markup and quotation marks around letters."""
    text, boxes = _TAG.sub("\n", text), 1
    while boxes:
        text, boxes = _BOX.subn(r"\1", text)
    text = text.translate(_MARKUP)
    return _QUOTED.sub(r"\1", text).strip()


def _said(text: str, letters: list[str]) -> Iterable[str | None]:
    """What each rule reads, the surest rule first; "" where one finds several letters, so that no later one guesses."""
    whole = _WHOLE.fullmatch(text)
    yield whole.group(1).upper() if whole else None
    yield _one(match.group("letter") for match in _ANSWER.finditer(text) if _names(match))
    labels = [letter.upper() for letter in _LABEL.findall(text)]
    if len({letter for letter in labels if letter in letters}) < 2:  # else it copies the question's options
        yield labels[0] if labels and _LABEL.match(text) else None
        yield _one(match.group("letter") for match in _OPTION.finditer(text) if _names(match))
        start = _START.match(text)
        yield _one([start.group("letter")] if start and start.group("letter").isupper() and _starts(start) else [])
    yield _one(match.group("letter") for match in _CLAIM.finditer(text))
    yield _one(match.group("letter") for match in _NAMED.finditer(text) if match.group("letter") != "I")
    yield _one(match.group(1) for match in _ALONE.finditer(text))


def _one(found: Iterable[str]) -> str | None:
    distinct = {letter.upper() for letter in found}
    return None if not distinct else distinct.pop() if len(distinct) == 1 else ""


def _names(match: re.Match) -> bool:
    """Whether the letter behind "the answer is" stands for an option, not for a word ("a", "A", "I") or one of several."""
    letter, after = match.group("letter"), match.group("after")
    if _ABBREVIATION.match(after) or _MORE.match(after) or _WRONG.match(after):
        return False
    if _ENDS.match(after) or _REASON.match(after):
        return True
    return letter.isupper() and letter not in "AI"


def _starts(match: re.Match) -> bool:
    """Whether the letter that a text begins with stands for an option: "B because …", "B, the price rises", "B" and a line."""
    after = match.group("after")
    if _ABBREVIATION.match(after) or _MORE.match(after) or _WRONG.match(after):
        return False
    return bool(_REASON.match(after) or _ENDS.match(after)) and not (match.group("letter") == "I" and after[:1] == ",")


def option_letters(record: dict) -> str:
    """The letters of a question's options.

    As many as its `choices` or `options` (their keys, where that is a mapping of letters), else those that its text
    lists ("A. …" on lines of their own, or "(A) … (B) …"), else A to Z. Letters that the text lists without the right
    answer are not trusted.
    """
    given = record.get("choices") or record.get("options")
    if isinstance(given, dict) and given:
        return "".join(sorted(str(key).strip().upper() for key in given))
    if isinstance(given, list) and given:
        return ALPHABET[: len(given)]
    text, answer = str(record.get("text", "")), str(record.get("answer", "")).strip().upper()
    for pattern in (_LABEL, re.compile(r"\(([A-Z])\)")):
        listed = _run([letter.upper() for letter in pattern.findall(text)])
        if len(listed) > 1 and (answer in listed or len(answer) != 1):
            return listed
    return ALPHABET


def check_options(record: dict) -> None:
    """Raises UserError when `choices` or `options` is neither a list of texts nor a mapping of letters to texts."""
    given = record.get("choices") or record.get("options")
    if given is None or given in ("", [], {}):
        return
    values = list(given.values()) if isinstance(given, dict) else given
    letters = not isinstance(given, dict) or all(str(key).strip().upper() in [*ALPHABET] for key in given)
    if not letters or not isinstance(values, list) or not all(isinstance(v, str) or is_number(v) for v in values):
        raise UserError(f"{where(record)}: choices are {given!r}, expected a list of texts.")
    if len(values) > len(ALPHABET):
        raise UserError(f"{where(record)}: has {len(values)} choices, and there are {len(ALPHABET)} letters.")


def option_texts(record: dict) -> list[str]:
    """The texts of a question's options in the order of `option_letters`; none where the record does not hold them."""
    given = record.get("choices") or record.get("options")
    if isinstance(given, dict):
        given = [value for _, value in sorted(given.items(), key=lambda item: str(item[0]).strip().upper())]
    return [str(choice) for choice in given] if isinstance(given, list) else []


def _run(found: list[str]) -> str:
    """A, B, C … as far as the list holds them in order."""
    run = ""
    for letter in found:
        if len(run) < len(ALPHABET) and letter == ALPHABET[len(run)]:
            run += letter
    return run
