"""Several values in one word of the command line: `method.rank=8,16`, `method.expanded_layers=[-1],[0,1]`."""

from __future__ import annotations

from collections.abc import Callable


def values_of(word: str, words: list[str], composes: Callable[[list[str]], bool]) -> list[str]:
    """`method.rank=8,16` → `["method.rank=8", "method.rank=16"]`; [] for a word that says one value.

    A value may have a comma of its own (a text, say). So these are several values only where the word as it stands is refused
    among the other `words`, and each part alone is accepted. composes: whether words are a configuration.
    """
    parts = _parts(word)
    if len(parts) < 2:
        return []
    others = [_parts(other)[0] for other in words if other is not word]
    return parts if not composes([*others, word]) and all(composes([*others, part]) for part in parts) else []


def _parts(word: str) -> list[str]:
    """The word with each of its values: what stands between commas outside brackets, unless the value begins with a quote."""
    key, equals, value = word.partition("=")
    if not equals or value[:1] in ("\"", "'"):
        return [word]
    parts, depth = [""], 0
    for letter in value:
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [f"{key}={part.strip()}" for part in parts]
