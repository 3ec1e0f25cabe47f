"""Pages are jinja2 templates that escape what they are given.

A page is one file without scripts; that of a run has the sample browser beside it, in its own folder. Nothing is loaded from
anywhere else, and a browser that follows the page's policy would not load it.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hide_llava.storage import write_bytes

if TYPE_CHECKING:
    from jinja2 import Environment

HOT = 0.62  # from here on the light theme's cell is dark and the dark theme's cell is light, so the ink changes


@dataclass(frozen=True)
class Shown:
    """A table cell that is more than text. small: lines below it. mark: numbers of notes. heat: 0…1, its colour.

    kind: classes of the style sheet.
    """

    text: str
    small: Sequence[str] = ()
    kind: str = ""
    heat: float | None = None
    mark: str = ""


@dataclass(frozen=True)
class Grid:
    """A table: the first cell of a row is its heading. text: the columns that hold words. rule: rows above a line."""

    header: Sequence[str]
    rows: Sequence[Sequence[str | Shown]]
    text: Sequence[int] = ()
    note: str = ""
    rule: int | None = None


@dataclass(frozen=True)
class Picture:
    """A figure in both themes, as data URIs; width in pixels."""

    light: str
    dark: str
    alt: str
    width: int | None = None


def heat_cell(text: str, value: float | None, small: str = "") -> str | Shown:
    """A cell coloured by a value of 0…100; an empty one stays blank."""
    if value is None:
        return ""
    share = min(max(value / 100, 0.0), 1.0)
    return Shown(text, [small] if small else [], "heat hot" if share > HOT else "heat", share)


def picture(light: bytes, dark: bytes, alt: str, width: int | None = None) -> Picture:
    """Of two PNG files."""
    return Picture(*("data:image/png;base64," + base64.b64encode(data).decode() for data in (light, dark)), alt, width)


@cache
def _templates() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(Path(__file__).parent / "templates")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def render(template: str, **content: Any) -> str:
    """The document that a template makes of that content."""
    return _templates().get_template(template).render(**content)


def write(path: Path, text: str | bytes) -> Path:
    """A killed report leaves the old file intact. Half of a surrogate pair, which no file can hold, becomes a question mark."""
    write_bytes(path, text.encode("utf-8", "replace") if isinstance(text, str) else text)
    return path
