"""General ability as tables: of a run's page and its files, and of a comparison in all its formats."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from hide_llava.results.aggregates import last
from hide_llava.results.general import (
    H_SCORE,
    RETENTION,
    Ability,
    Bases,
    abilities,
    asked,
    at_the_end,
    base_of,
    kept_of,
    otherwise,
    reasons,
    retention,
)
from hide_llava.results.grouping import SETTINGS, Row, Stat, Table, stat
from hide_llava.results.html import Grid, Shown, heat_cell, write
from hide_llava.results.matrix import Cell
from hide_llava.results.run_reader import StoredRun
from hide_llava.results.tables import BOOKTABS, csv_lines, latex_table, markdown_table, number

NOTE = "Small: change from the untouched model. Retention: mean share of its score that is kept, percent."
UNTOUCHED = "Untouched model"


def signed(value: Cell) -> str:
    """`+1.30`, `-2.00`, `0.00`, "" when there is none."""
    text = number(value)
    return f"+{text}" if value is not None and float(text) > 0 else text


# ---------------------------------------------------------------------------------------------------------- of one run


def with_changes(run: StoredRun, grid: Grid | None) -> Grid | None:
    """The page's table of general tests with the untouched model above it, each change below its score, and the retention.

    grid: of `report_cells.side_table`, a row for each stage that has a cell.
    """
    tasks = [task["id"] for task in run.manifest.get("general") or []]
    stages = {title: stage for stage, title in zip(run.matrix.stages, run.matrix.stage_titles)}
    if grid is None or not run.base:
        return grid
    first = [heat_cell(number(c.score), c.score) if (c := run.base.get(task)) else "" for task in tasks]
    rows: list[list[str | Shown]] = [[UNTOUCHED, *first, ""]]
    for title, *cells in grid.rows:
        found = {ability.task: ability for ability in abilities(run, stages[title])}
        shown = [_changed(cell, found[task].delta) if task in found else cell for task, cell in zip(tasks, cells)]
        rows.append([title, *shown, number(retention([*found.values()]))])
    return Grid([*grid.header, "Retention"], rows, note=f"{NOTE} {grid.note}", rule=1)


def _changed(cell: str | Shown, delta: Cell) -> str | Shown:
    if isinstance(cell, str) or delta is None:
        return cell
    return Shown(cell.text, [signed(delta), *cell.small], cell.kind, cell.heat, cell.mark)


def numbers(run: StoredRun) -> list[tuple[str, str, str]]:
    """(title, value, formula) of retention and H; [] where nothing is known of the untouched model."""
    _, kept, both = at_the_end(run)
    named = (("Mean retention", kept, RETENTION), ("H-score", both, H_SCORE))
    return [(title, number(value), formula) for title, value, formula in named if value is not None]


def notes(run: StoredRun) -> list[str]:
    """Why a run with general tests has no Δ or no retention."""
    return reasons(at_the_end(run)[0]) if asked(run) and run.manifest.get("method") != "zero_shot" else []


def write_general(run: StoredRun, folder: Path) -> None:
    """general.csv, .md and .tex beside the matrix: each test before and after, then retention, Last and H."""
    if not asked(run):
        return
    found, kept, both = at_the_end(run)
    header = ["Test", UNTOUCHED, "After the last stage", "Change", "Retention"]
    rows = [[a.title, number(a.base), number(a.score), signed(a.delta), number(a.retention)] for a in found]
    below = [["Mean retention", number(kept)], ["Last", number(last(run.matrix))], ["H-score", number(both)]]
    told = [f"- {note}" for note in notes(run)]
    text = [f"# {run.name}: general ability", "", *markdown_table(header, rows), "", *markdown_table(["", "Value"], below)]
    write(folder / "general.md", "\n".join([*text, "", *told]).rstrip() + "\n")
    write(folder / "general.csv", csv_lines([header, *rows]) + csv_lines(below))
    caption = f"{run.manifest.get('benchmark', '')}, {run.title}, {run.manifest.get('model', '')}: general ability (percent). "
    caption += " ".join(notes(run))
    padded = [[title, "", "", "", value] for title, value in below]
    write(folder / "general.tex", f"{BOOKTABS}\n{latex_table(header, [rows, padded], caption)}")


# ----------------------------------------------------------------------------------------------------- of a comparison


@dataclass
class GeneralRow:
    """Means over the runs of a row; None where a run lacks the number."""

    scores: list[Stat | None]
    changes: list[Stat | None]
    retention: Stat | None
    h_score: Stat | None


@dataclass
class GeneralTable:
    """General tests of all rows of a table; without tests it shows nothing."""

    tasks: list[str] = field(default_factory=list)
    titles: list[str] = field(default_factory=list)
    rows: list[GeneralRow] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def general_table(table: Table) -> GeneralTable:
    """After the last stage of every row, against the untouched model as far as a run of the table knows it."""
    titles = {task: run.task_title(task) for run in table.runs for task in asked(run)}
    made, told = GeneralTable([*titles], [*titles.values()]), {}
    left_out = _left_out(table.runs)
    for row in table.rows if titles else ():
        base = base_of(table.runs, str(row.runs[0].manifest.get("model")))
        tests = [_tests(run, titles, base, left_out) for run in row.finished]
        made.rows.append(_general_row(row, tests))
        untrained = row.runs[0].manifest.get("method") == "zero_shot"  # has no retention
        said = [[a for a in found if a.why or not untrained] for run, found in zip(row.finished, tests) if asked(run)]
        for note in dict.fromkeys(note for found in said for note in reasons(found)):
            told.setdefault(note, []).append(row.name)
    made.notes = [note if len(names) == len(table.rows) else f"{', '.join(names)}: {note}" for note, names in told.items()]
    return made


def _left_out(runs: list[StoredRun]) -> dict[tuple[Path, str], str]:
    """(run, test) → how that run was asked it otherwise than the first run of the table that was."""
    found, first = {}, {}
    for run in runs:
        for (_, task), cell in run.general.items():
            name, there = first.setdefault(task, (run.name, cell))
            if keys := otherwise(cell, there, SETTINGS):
                named = ", ".join(key.removesuffix("_sha256").replace("_", " ") for key in keys)
                found[run.path, task] = f"left out, since {name} was asked it with another {named}"
    return found


def _tests(run: StoredRun, titles: dict[str, str], base: Bases, left_out: dict[tuple[Path, str], str]) -> list[Ability]:
    """All tests of the table after the last stage of a run, so that a mean over them is one over the same for every row."""
    own = {ability.task: ability for ability in at_the_end(run, base)[0]}
    for task, title in titles.items():
        if task not in own:
            own[task] = Ability(task, title, None, None, "none of the tests of this run, which has no retention over all")
        elif why := left_out.get((run.path, task)):
            own[task] = Ability(task, title, None, None, why)
    return [own[task] for task in titles]


def _general_row(row: Row, found: list[list[Ability]]) -> GeneralRow:
    kept = [kept_of(run, tests) for run, tests in zip(row.finished, found)]
    untrained = row.runs[0].manifest.get("method") == "zero_shot"  # its change is 0 by definition

    def of(name: str) -> list[Stat | None]:
        return [stat([getattr(one, name) for one in test]) for test in zip(*found)]

    changes = [None] * len(found[0]) if untrained else of("delta")
    return GeneralRow(of("score"), changes, stat([one for one, _ in kept]), stat([both for _, both in kept]))


def stated(value: Stat | None, sign: bool = False) -> str:
    """`64.19`, `+1.20` with `sign`, `64.19 ± 1.20` for several runs."""
    if value is None:
        return ""
    text = signed(value.mean) if sign else number(value.mean)
    return text if value.sd is None else f"{text} ± {number(value.sd)}"


def general_grid(made: GeneralTable, names: list[str]) -> Grid | None:
    """For the page: the change below each score."""
    if not made.titles:
        return None
    rows = [
        [name, *(Shown(stated(score), [stated(change, True)] if change else []) for score, change in zip(r.scores, r.changes)),
         stated(r.retention), stated(r.h_score)]
        for name, r in zip(names, made.rows)
    ]  # fmt: skip
    note = f"After the last stage. {NOTE} H-score: harmonic mean of retention and Last. {' '.join(made.notes)}"
    return Grid(["Method preset", *made.titles, "Retention", "H-score"], rows, note=note.strip())


def general_lines(made: GeneralTable, names: list[str]) -> tuple[list[str], list[list[str]]]:
    """(header, rows) as text, a change in brackets behind its score: for Markdown and LaTeX."""
    header = ["Method", *made.titles, "Retention", "H-score"]
    rows = []
    for name, row in zip(names, made.rows):
        cells = [f"{stated(s)} ({stated(c, True)})" if c else stated(s) for s, c in zip(row.scores, row.changes)]
        rows.append([name, *cells, stated(row.retention), stated(row.h_score)])
    return header, rows


def general_columns(made: GeneralTable) -> tuple[list[str], list[list[str]]]:
    """(titles, rows) of the columns of a CSV: score and change of each test, retention and H, means alone."""
    if not made.titles:
        return [], []
    titles = [f"general: {title}{what}" for title in made.titles for what in ("", " change")]
    rows = []
    for row in made.rows:
        values = [value for pair in zip(row.scores, row.changes) for value in pair]
        rows.append([number(value.mean if value else None) for value in (*values, row.retention, row.h_score)])
    return [*titles, "general: retention", "general: H-score"], rows
