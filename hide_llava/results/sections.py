"""What a study of a run adds to its report: RUN/results/NAME/section.json, and figures beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hide_llava.errors import UserError
from hide_llava.results.html import Grid, Picture, picture
from hide_llava.storage import read_json, write_json

FILE = "section.json"
PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Section:
    """As the page shows it: a title, and below it whatever the study has of the rest. figures: title and picture."""

    title: str
    text: str
    table: Grid | None
    figures: list[tuple[str, Picture]]
    note: str


def write_section(
    folder: Path,
    title: str,
    text: str = "",
    header: Sequence[str] = (),
    rows: Sequence[Sequence[str]] = (),
    figure: str | Sequence[str] | Mapping[str, str] | None = None,
    note: str = "",
    width: int | None = None,
) -> Path | None:
    """Let the study in that folder take part in the report of its run; None where the folder does not lie in RUN/results/.

    figure: the stem of FIGURE-light.png and FIGURE-dark.png in the folder, or the stems of several, with their titles or
    without. width: in pixels, at most; None: as large as they were drawn. The report shows them when it is written next.
    """
    results = next((above for above in folder.resolve().parents if above.name == "results"), None)
    if results is None or not (results.parent / "manifest.json").is_file():
        return None
    table = {"header": list(header), "rows": [list(row) for row in rows]} if rows else None
    drawn = dict(figure) if isinstance(figure, Mapping) else figure
    data = {"title": title, "text": text, "table": table, "figure": drawn, "note": note, "width": width}
    write_json(folder / FILE, data)
    return folder / FILE


def read_sections(run: Path) -> tuple[list[Section], list[str]]:
    """(the sections of that run by the names of their folders, why others are left out)."""
    sections, problems = [], []
    for file in sorted((run / "results").rglob(FILE)):
        try:
            sections.append(_read(file))
        except (UserError, KeyError, TypeError, ValueError, AttributeError, OSError) as error:
            problems.append(f"{file.parent.name}: {FILE} cannot be shown ({error}); run the study again.")
    return sections, problems


def _read(file: Path) -> Section:
    data = read_json(file)
    table, named = data.get("table"), data.get("figure") or {}
    shown = None
    if table:
        rows = [[str(cell) for cell in row] for row in table["rows"]]
        if any(len(row) != len(table["header"]) or not row for row in rows):
            raise ValueError("a row of the table has not one cell for each column")
        shown = Grid([str(cell) for cell in table["header"]], rows)
    names = [named] if isinstance(named, str) else named
    titles = dict(names) if isinstance(names, dict) else dict.fromkeys(names, "")
    drawn = [(str(title), _drawn(file, stem, str(title or data["title"]), data.get("width"))) for stem, title in titles.items()]
    return Section(str(data["title"]), str(data.get("text") or ""), shown, drawn, str(data.get("note") or ""))


def _drawn(file: Path, stem: str, alt: str, width: int | None) -> Picture:
    if Path(stem).name != stem:
        raise ValueError(f"the figure {stem!r} lies in another folder")
    pair = [file.with_name(f"{stem}-{theme}.png").read_bytes() for theme in ("light", "dark")]
    wide = int.from_bytes(pair[0][16:20], "big") if pair[0].startswith(PNG) else 0  # pixels, 1.6 to one of the page
    return picture(*pair, alt, int(width or min(760, round(wide / 1.6)) or 760))
