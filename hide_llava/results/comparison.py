"""Runs side by side, one table for each kind of number, with published values beside them: page, Markdown, CSV, LaTeX."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from hide_llava.errors import UserError
from hide_llava.results import bootstrap, html, published
from hide_llava.results.comparison_page import comparison_page
from hide_llava.results.comparison_text import PUBLISHED, csv_text, latex_text, markdown_text
from hide_llava.results.costs import cost_table
from hide_llava.results.general_tables import general_table
from hide_llava.results.grouping import Row, Table, differences, row_notes, tables_of
from hide_llava.results.run_reader import CellScore, StoredRun, read_run
from hide_llava.results.view import BaselineRow, PublishedRow, View


def readable(
    paths: list[Path], baseline: Path | None = None, tasks: Collection[str] = ()
) -> tuple[list[StoredRun], str]:
    """The runs among those paths, and a sentence on what was left out, so that `runs/*` may hold other things.

    tasks: the only ones that count, in tables and in aggregates; the stages of the others stay.

    Raises:
        UserError: nothing is left, the baseline is no run, or a run has none of the tasks.
    """
    named = list(dict.fromkeys(Path(path).resolve() for path in paths))
    if baseline is not None:
        read_run(baseline)
        named += [path for path in [Path(baseline).resolve()] if path not in named]
    if not named:
        raise UserError("There is nothing to compare: name at least one run folder.")
    runs, others, damaged, empty = [], [], [], []
    for path in named:
        if not (path / "manifest.json").is_file():
            others.append(path)
            continue
        try:
            run = read_run(path)
        except UserError as error:
            damaged.append(str(error))
            continue
        if missing := sorted(set(tasks) - run.trained):
            raise UserError(f"{path} trains no task {', '.join(missing)}; it has {', '.join(sorted(run.trained))}.")
        run = replace(run, counted=frozenset(tasks)) if tasks else run
        if run.cells or run.general:
            runs.append(run)
        else:
            empty.append(path.name)
    if not runs and len(named) == 1:
        read_run(named[0])  # says what is wrong with it
    parts = [f"{', '.join(_names(others))} (no run folder)"] if others else []
    parts += [f"{', '.join(empty)} (nothing evaluated yet)"] if empty else []
    parts += [error.rstrip(".") for error in damaged]
    sentence = f"Left out: {'; '.join(parts)}." if parts else ""
    if tasks:
        sentence = f"Only {', '.join(tasks)} count here; the stages of the other tasks stay. {sentence}".strip()
    if not runs:
        raise UserError(f"There is nothing to compare. {sentence}")
    return runs, sentence


def _names(paths: list[Path]) -> list[str]:
    """Of folders and files; of more than three files only how many, since `runs/*` has the logs beside the runs."""
    files = [path for path in paths if path.is_file()]
    if len(files) <= 3:
        return [path.name for path in paths]
    return [path.name for path in paths if path not in files] + [f"{len(files)} files"]


def compare(runs: list[Path], baseline: Path | None = None, with_published: bool = False) -> list[View]:
    """The tables of those run folders; `baseline` is compared question by question with every other run of its table.

    Raises:
        UserError: see `readable`.
    """
    return _views(readable(runs, baseline)[0], baseline, with_published)


def _views(runs: list[StoredRun], baseline: Path | None, with_published: bool) -> list[View]:
    against = Path(baseline).resolve() if baseline else None
    tables = tables_of(runs)
    return [_view(table, tables, against, with_published) for table in tables]


def write_comparison(
    runs: list[Path], out: Path, baseline: Path | None = None, with_published: bool = False, tasks: Collection[str] = ()
) -> Path:
    """Compare run folders; returns the path of the page.

    `out` is a folder (comparison.html, .md, .csv, .tex and mean.png are written there) or a path ending in .html (the
    others get the same stem). CSV has one file per table: NAME.csv, NAME-2.csv, …. tasks, UserError: see `readable`.
    """
    if tasks and with_published:
        raise UserError("Published means are those of all tasks: name tasks, or ask for published values, not both.")
    found, left_out = readable(runs, baseline, tasks)
    views = _views(found, baseline, with_published)
    page = Path(out) if Path(out).suffix == ".html" else Path(out) / "comparison.html"
    html.write(page.with_suffix(".md"), markdown_text(views, left_out))
    html.write(page.with_suffix(".tex"), latex_text(views))
    for number, view in enumerate(views, 1):
        html.write(page.with_name(f"{page.stem}{'' if number == 1 else f'-{number}'}.csv"), csv_text(view))
    html.write(page, comparison_page(views, page, left_out))
    return page


def _view(table: Table, tables: list[Table], baseline: Path | None, with_published: bool) -> View:
    twins = [t for t in tables if t.benchmark == table.benchmark]
    title = table.benchmark if len(twins) == 1 else f"{table.benchmark} ({twins.index(table) + 1} of {len(twins)})"
    view = View(
        table,
        title,
        [row.aggregates(table.references) for row in table.rows],
        [[row.last(task) for task in table.tasks] for row in table.rows],
        [[_interval(row, task) for task in table.tasks] for row in table.rows],
        _notes(table),
        cost_table(table),
        general_table(table),
    )
    base = next((run for run in table.runs if run.path.resolve() == baseline), None)
    if base is not None:
        view.baseline = base.path.name
        view.against = [
            BaselineRow(
                row.name if len(row.runs) == 1 else f"{row.name} ({run.path.name})", against(run, base, table.tasks)
            )
            for row in table.rows
            for run in row.runs
            if run is not base
        ]
    elif baseline and (base := next((run for t in tables for run in t.runs if run.path.resolve() == baseline), None)):
        view.baseline, why = base.path.name, "; ".join(differences(table.runs[0], base))
        view.uncompared = f"Not compared with {view.baseline}, which stands in a table of its own ({why})."
    if with_published and table.reasons and len(twins) > 1:
        view.published_note = f"Published values stand beside the first table of {table.benchmark}."
    elif with_published:
        view.published, view.published_note = _published(table)
    return view


def _notes(table: Table) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for k, row in enumerate(table.rows):
        for note in row_notes(row, table):
            found.setdefault(note, []).append(k)
    return found


def last_cell(run: StoredRun, task: str) -> CellScore | None:
    """The cell of a task after the last stage of the run."""
    return run.cells.get((run.matrix.stages[-1], task)) if run.matrix.stages else None


def _interval(row: Row, task: str) -> bootstrap.Interval | None:
    """Only a single run has one: several have a standard deviation."""
    cell = last_cell(row.finished[0], task) if len(row.finished) == 1 else None
    return cell.interval[0] if cell else None


def against(run: StoredRun, base: StoredRun, tasks: list[str]) -> list[bootstrap.Difference | str]:
    """Per task: the paired difference after the last stage of both, or why there is none."""
    found: list[bootstrap.Difference | str] = []
    for task in tasks:
        cells = [last_cell(run, task), last_cell(base, task)]
        verdicts = [bootstrap.usable_verdicts(cell.data) if cell else (None, "not evaluated") for cell in cells]
        missing = next((why for values, why in verdicts if values is None), "")
        if not missing and verdicts[0][0].keys() != verdicts[1][0].keys():
            missing = "different questions"
        found.append(missing or bootstrap.paired(verdicts[0][0], verdicts[1][0]))
    return found


def _published(table: Table) -> tuple[list[PublishedRow], str]:
    """Published rows of the table's benchmark, methods that we ran first; and one sentence on how to read them."""
    name, groups = table.benchmark, published.of_benchmark(table.benchmark)
    while not groups and "-" in name:  # coin-official → coin
        name = name.rpartition("-")[0]
        groups = published.of_benchmark(name)
    if not groups:
        return [], f"No published values are known for {table.benchmark}."
    ours = {published.plain(str(run.manifest.get("method"))) for run in table.runs}
    printed = max(len(entry.tasks) for entries in groups.values() for entry in entries)
    alike = printed in (0, len(table.tasks))  # the means are over the same tasks
    rows = [
        PublishedRow(
            method,
            model,
            [published.task_spread(entries, {task, title}) for task, title in zip(table.tasks, table.task_titles)],
            {key: published.spread([entry.values.get(key) for entry in entries if alike]) for key in PUBLISHED},
            list(dict.fromkeys(_printed(entry) for entry in entries)),
        )
        for (method, model), entries in groups.items()
    ]
    rows = [row for row in rows if any([*row.tasks, *row.values.values()])]
    rows.sort(key=lambda row: published.plain(row.method) not in ours)  # stable
    note = (
        f"Published values for {name}: lowest to highest over the papers and reruns listed, each with its own protocol."
    )
    if not alike:
        note += f" Their means over {printed} tasks are left out: the runs of this table have {len(table.tasks)}."
    settings = sorted(
        {f"{key} {', '.join(v)}" for run in table.runs for key, v in run.settings().items() if key == "limit"}
    )
    return rows, note + (
        f" Runs of this table are partial ({'; '.join(settings)}) and compare with none." if settings else ""
    )


def _printed(entry: published.Entry) -> str:
    value = entry.values.get("last")
    shown = (
        ""
        if value is None
        else f": Last {value:.2f}" + (" (computed from its matrix)" if "last" in entry.computed else "")
    )
    return f"{entry.label}{shown}"
