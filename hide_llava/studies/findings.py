"""What a study of a run leaves behind: figures for a page and for a paper, tables, numbers, a report, a section of the run page.

`NAME.md` is the report, `NAME.json` has all numbers, each table is a CSV, each figure `FIGURE-light.png`, `-dark.png`, `.pdf`
and `.svg`.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hide_llava.errors import UserError
from hide_llava.results.drawing import DARK, LIGHT, Theme, can_draw, png
from hide_llava.results.html import write
from hide_llava.results.sections import write_section
from hide_llava.results.tables import csv_lines, markdown_table
from hide_llava.storage import read_json, write_json, write_text
from hide_llava.studies.registry import results_folder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

VECTOR = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}  # format → metadata without which two files are equal
ENDS = (f"-{LIGHT.name}.png", f"-{DARK.name}.png", *(f".{form}" for form in VECTOR))
UNDRAWN = "No figures: matplotlib is not installed (pip install -e '.[report]')."


@dataclass
class Findings:
    """What a study found out. `lines` are printed, stand first in the report, and in the section of the run page.

    tables: (title, header, rows as text) of the report; the first is also the section's. figures: file name → (title, how
    it is drawn). csv: file name → header and rows. data: all numbers, as JSON. note: how to read it.
    """

    title: str
    lines: list[str]
    tables: list[tuple[str, Sequence[str], Sequence[Sequence[str]]]] = field(default_factory=list)
    figures: dict[str, tuple[str, Callable[[Theme], Figure]]] = field(default_factory=dict)
    csv: dict[str, tuple[Sequence[str], Sequence[Sequence[object]]]] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    note: str = ""


def publish(run: Path, name: str, found: Findings, output: Path | None = None) -> None:
    """Write all files of a study of a run into `output`, or else RUN/results/NAME/, and print what it found."""
    folder = output or results_folder(run, name)
    write_findings(folder, name, found)
    print("\n".join([*found.lines, f"written: {folder}"]))


def write_findings(folder: Path, name: str, found: Findings) -> None:
    """Write all files of a study into `folder`; what it wrote there before and does not write now is removed.

    Without matplotlib the figures are left out, and the report says so.
    """
    drawn = write_figures(folder, {stem: draw for stem, (_, draw) in found.figures.items()})
    figures = [f"{stem}{end}" for stem in found.figures for end in ENDS] if drawn else []
    files = [*figures, *(f"{stem}.csv" for stem in found.csv)]
    for old in set(_written_before(folder / f"{name}.json")) - set(files):
        (folder / Path(old).name).unlink(missing_ok=True)
    for stem, (header, rows) in found.csv.items():
        write_text(folder / f"{stem}.csv", csv_lines([header, *rows]))
    write_json(folder / f"{name}.json", {**found.data, "files": files})
    lines = [f"# {found.title}", "", *(f"- {line}" for line in found.lines)]
    for title, header, rows in found.tables:
        lines += ["", f"## {title}", "", *markdown_table(list(header), [list(row) for row in rows])]
    for stem, (title, _) in found.figures.items() if drawn else ():
        lines += ["", f"![{title}]({stem}-light.png)"]
    lines += ["", *filter(None, [found.note, "" if drawn or not found.figures else UNDRAWN])]
    write_text(folder / f"{name}.md", "\n".join(lines) + "\n")
    _, header, rows = found.tables[0] if found.tables else ("", (), ())
    titles = {stem: title for stem, (title, _) in found.figures.items()}
    write_section(folder, found.title, "\n".join(found.lines), header, rows, titles if drawn else None, found.note)


def _written_before(file: Path) -> list[str]:
    """The files that a study says it wrote beside its JSON; none where that is not there, or not ours."""
    try:
        files = read_json(file).get("files")
        return [str(name) for name in files]
    except (UserError, AttributeError, TypeError):
        return []


def write_figures(folder: Path, figures: dict[str, Callable[[Theme], Figure]]) -> bool:
    """Each figure for light and dark pages (PNG) and for papers (PDF, SVG); False where matplotlib is not installed."""
    if not can_draw():
        return False
    for stem, draw in figures.items():
        light = draw(LIGHT)
        write(folder / f"{stem}-{LIGHT.name}.png", png(light))
        light.set_layout_engine("none")  # everything stays where it is now; laying it out again takes most of the time
        write(folder / f"{stem}-{DARK.name}.png", png(draw(DARK)))
        for form in VECTOR:
            write(folder / f"{stem}.{form}", vector(light, form))
    return True


def vector(figure: Figure, form: str, salt: str = "hide-llava") -> bytes:
    """The figure as a PDF whose letters stay letters, or as an SVG; the same bytes whenever it is drawn.

    salt: of the names inside an SVG, where several stand on one page.
    """
    from matplotlib import rc_context

    out = io.BytesIO()
    with rc_context({"pdf.fonttype": 42, "svg.hashsalt": salt}):
        figure.savefig(out, format=form, facecolor=figure.get_facecolor(), metadata=VECTOR[form])
    return out.getvalue()
