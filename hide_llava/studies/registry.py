"""The studies that `hide-llava analyze` knows: our own, and those that installed packages announce.

A package adds one by the entry point `mine = "my_package.study:STUDY"` in the group `hide_llava.studies`, where STUDY is a
`Study` of that name. Its command is a function as typer takes it; what is heavy, it imports when it is called.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hide_llava import plugins
from hide_llava.errors import UserError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "hide_llava.studies"
BUILT_IN = ("leakage", "cka", "router", "forgetting", "weights", "agreement")


@dataclass(frozen=True)
class Study:
    """`hide-llava analyze NAME`: the docstring of `command` is its help, and the first line of it stands in the list."""

    name: str
    command: Callable[..., None]
    example: str = ""


def announced() -> dict[str, list[EntryPoint]]:
    """Where each study is, by name; nothing is loaded."""
    from importlib.metadata import EntryPoint  # 20 ms at the start of every other verb

    own = [EntryPoint(name, f"hide_llava.studies.{name}.command:STUDY", GROUP) for name in BUILT_IN]
    found: dict[str, list[EntryPoint]] = {}
    for entry in [*own, *plugins.announced(GROUP)]:
        found.setdefault(entry.name, []).append(entry)
    return found


def load(name: str, entries: list[EntryPoint]) -> Study:
    """The study of that name.

    Raises:
        UserError: two packages offer it, or it cannot be imported, or is no Study of that name.
    """
    study = plugins.loaded(f"study '{name}'", entries)
    if not isinstance(study, Study) or study.name != name:
        raise UserError(f"study '{name}': its plug-in {entries[0].value} is no Study of that name.")
    return study


def results_folder(run: Path, name: str) -> Path:
    """Where a study of a run writes, unless the user says otherwise."""
    return run / "results" / name
