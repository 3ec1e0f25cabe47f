"""The report of a run: tables, figures, a page and the samples that it shows, all under <run>/results/."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hide_llava.errors import UserError
from hide_llava.results import figures, html
from hide_llava.results.aggregates import to_json
from hide_llava.results.asked import asked_questions
from hide_llava.results.browser import write_browser
from hide_llava.results.comparison import write_comparison
from hide_llava.results.report_cells import details, mistakes, parts, score_matrix, side_table
from hide_llava.results.run_reader import StoredRun, read_run
from hide_llava.results.samples import samples
from hide_llava.results.sections import read_sections
from hide_llava.results.tables import aggregate_rows, facts, missing_notes, state_note, write_tables
from hide_llava.results.thumbnails import MOST

__all__ = ["write_comparison", "write_report"]


def write_report(run: Path, thumbnails: int = MOST) -> Path:
    """Write matrix.json, matrix.md/.csv/.tex, the figures (PNG), samples/ and report.html; returns the path of report.html.

    thumbnails: pictures of questions at most, which are copied to samples/.

    Works on an unfinished run: what is missing stays empty and is listed. Without matplotlib the figures are left out
    and the page says so. UserError when the folder is no run folder.
    """
    loaded = read_run(Path(run))
    folder = loaded.path / "results"
    content = {
        **to_json(loaded.matrix),
        "intervals": _intervals(loaded),
        "labels": loaded.labels(),
        "problems": loaded.problems,
    }
    html.write(folder / "matrix.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    write_tables(loaded, folder)
    drawn, undrawn = _draw(loaded, folder)
    asked = asked_questions(loaded, [cell.task for _, cell in loaded.all_cells()])
    browser = write_browser(loaded, asked, folder / "samples", thumbnails)
    return html.write(folder / "report.html", _page(loaded, drawn, undrawn, samples(loaded, asked), browser))


def _intervals(run: StoredRun) -> list[list[list[float] | None]]:
    """stages × tasks: [low, high] in percent, None where a cell has no interval."""
    cells = [[run.cells.get((stage, task)) for task in run.matrix.tasks] for stage in run.matrix.stages]
    found = [[cell.interval[0] if cell else None for cell in row] for row in cells]
    return [[[interval.low, interval.high] if interval else None for interval in row] for row in found]


def _draw(run: StoredRun, folder: Path) -> tuple[list[tuple[str, html.Picture]], str]:
    """(titles and figures of the page, why there are none). PNG files of figures that no longer exist are removed."""
    try:
        figures.require_matplotlib()
    except UserError as error:
        return [], str(error)
    drawn = []
    for name, (title, draw) in figures.FIGURES.items():
        light = draw(run, figures.LIGHT)
        if light is None:
            (folder / f"{name}.png").unlink(missing_ok=True)
            continue
        data = figures.png(light)
        html.write(folder / f"{name}.png", data)
        if name != "matrix":  # the page has it as a table
            width = round(light.get_size_inches()[0] * 100)
            drawn.append((title, html.picture(data, figures.png(draw(run, figures.DARK)), title, width)))
    return drawn, ""


def _page(
    run: StoredRun,
    drawn: list[tuple[str, html.Picture]],
    undrawn: str,
    few: list[dict[str, Any]],
    browser: dict[str, int] | None,
) -> str:
    manifest = run.manifest
    studies, damaged = read_sections(run.path)
    versions = {**(manifest.get("versions") or {}), **{k: manifest.get(k) for k in ("git", "device", "created")}}
    content: dict[str, Any] = {
        "lead": f"{run.title} on {manifest.get('benchmark')}, {manifest.get('model')}, seed {manifest.get('seed')}",
        "pairs": [(key, value) for key, value in facts(run) if key != "Labels"],
        "labels": [*filter(None, [state_note(run)]), *run.labels()],
        "aggregates": aggregate_rows(run.current),
        "missing": missing_notes(run.current),
        "scores": score_matrix(run),
        "unseen": side_table(run, run.unseen, run.cells),
        "general": side_table(run, [task["id"] for task in manifest.get("general") or []], run.general),
        "details": details(run),
        "parts": parts(run),
        "mistakes": mistakes(run),
        "samples": few,
        "browser": browser,
        "problems": [*run.problems, *damaged],
        "origin": [(str(key), str(value)) for key, value in versions.items() if value],
    }
    return html.render("report.html", run=run, drawn=drawn, undrawn=undrawn, studies=studies, **content)
