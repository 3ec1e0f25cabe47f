"""What a search leaves: `METHOD.json` with every trial and what was chosen, and `search.md`, the table of all methods."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hide_llava.errors import UserError
from hide_llava.storage import read_json, write_json, write_text

Values = dict[str, float | None]  # key of the configuration → the value that a trial gave it; None: the key's null
SCHEMA = 1
HEAD = """# Search

Every trial of every method, in the order in which they were run: Last on the validation split, seed 0. The test split was not
read. **Bold**: what was chosen. A training that diverged counts as a trial.

| method | trial | values | Last |
|---|---:|---|---:|
"""


@dataclass(frozen=True)
class Trial:
    """One run of a search. last: in percent; None: it diverged, and `failed` says how."""

    values: Values
    last: float | None
    failed: str = ""


@dataclass
class Search:
    """The search of one method.

    method: its preset. trials: how many it gets. words: what all of them have in common, as words of a command line.
    chosen: the values of the best trial; None while the search is not finished. {}: there is nothing to choose.
    """

    method: str
    trials: int
    words: list[str]
    tried: list[Trial] = field(default_factory=list)
    chosen: Values | None = None


def words_of(values: Values) -> list[str]:
    """The values as words of a command line: `train.learning_rate=0.005`, `method.weight=null`."""
    return [f"{key}={json.dumps(value)}" for key, value in values.items()]


def write_search(file: Path, search: Search) -> None:
    """Write a search, finished or not. Raises UserError for a disk that is full or forbidden."""
    tried = [{"values": t.values, "last": t.last, **({"failed": t.failed} if t.failed else {})} for t in search.tried]
    write_json(file, {"schema": SCHEMA, "method": search.method, "trials": search.trials, "words": search.words,
                      "tried": tried, "chosen": search.chosen})  # fmt: skip


def read_search(file: Path) -> Search:
    """The search in that file.

    Raises:
        UserError: there is none, or it is not what `write_search` writes.
    """
    tree = read_json(file)
    try:
        if tree["schema"] != SCHEMA:
            raise UserError(f"{file} has schema {tree['schema']!r}, this version reads {SCHEMA}; use the matching release.")
        tried = [Trial(_values(one["values"]), _number(one["last"]), str(one.get("failed", ""))) for one in tree["tried"]]
        chosen = tree["chosen"] if tree["chosen"] is None else _values(tree["chosen"])
        return Search(str(tree["method"]), int(tree["trials"]), [str(w) for w in tree["words"]], tried, chosen)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"{type(error).__name__}: {error}"
        raise UserError(f"{file}: is no record of a search ({what}); delete it and search again.") from None


def _number(value: Any) -> float | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
        raise ValueError(f"{value!r} is no number")
    return value


def _values(tree: dict[str, Any]) -> Values:
    return {str(key): _number(value) for key, value in tree.items()}


def best(tried: list[Trial]) -> Trial | None:
    """The trial with the highest Last, of equal ones the first, so that the usual values win; None: all diverged."""
    return max((t for t in tried if t.last is not None), key=lambda t: t.last, default=None)


def table(searches: list[Search]) -> str:
    """The page of some searches, in Markdown."""
    rows = []
    for search in searches:
        for number, trial in enumerate(search.tried, 1):
            last = "diverged" if trial.last is None else f"{trial.last:.2f}"
            cells = [f"{number} of {search.trials}", " ".join(f"`{word}`" for word in words_of(trial.values)), last]
            if trial.values == search.chosen:
                cells = [f"**{cell}**" for cell in cells]
            rows.append("| " + " | ".join([search.method, *cells]) + " |\n")
    return HEAD + "".join(rows)


def write_table(folder: Path) -> Path:
    """The table of every search in a folder, beside it and under its name; returns its path.

    Raises:
        UserError: there is none, or one is damaged.
    """
    files = sorted(folder.glob("*.json"))
    if not files:
        raise UserError(f"{folder}: holds no METHOD.json; search first.")
    page = folder.with_name(f"{folder.name}.md")
    write_text(page, table([read_search(file) for file in files]))
    return page
