"""Several runs of one benchmark side by side: one page, one Markdown table, one CSV file."""

from __future__ import annotations

import csv
import io
from html import escape
from pathlib import Path

from hide_llava.errors import UserError
from hide_llava.results import figures, html
from hide_llava.results.matrix import AGGREGATES, Cell, aggregates, last_row
from hide_llava.results.run_reader import Run, read_run
from hide_llava.results.tables import number


def load_runs(paths: list[Path]) -> list[Run]:
    """The runs; UserError when there are none or they are of different benchmarks or task orders."""
    if not paths:
        raise UserError("There is nothing to compare: name at least one run folder.")
    runs = [read_run(Path(path)) for path in paths]
    first = runs[0]
    for run in runs[1:]:
        for key, get in (("benchmark", _benchmark), ("tasks", _tasks)):
            if get(run) != get(first):
                raise UserError(
                    f"{run.path} and {first.path} have different {key} ({get(run)} and {get(first)}); numbers of "
                    "different benchmarks do not share a table."
                )
    return runs


def _benchmark(run: Run) -> str:
    return str(run.manifest.get("benchmark"))


def _tasks(run: Run) -> list[str]:
    return [task["id"] for task in run.manifest["tasks"]]


def row_names(runs: list[Run]) -> list[str]:
    """The preset of each run, with the model, seed or folder name where presets repeat."""
    titles = [run.title for run in runs]
    names = []
    for run, title in zip(runs, titles):
        if titles.count(title) == 1:
            names.append(title)
        else:
            names.append(f"{title}, {run.manifest.get('model')}, seed {run.manifest.get('seed')}")
    return [n if names.count(n) == 1 else f"{n} ({run.path.name})" for n, run in zip(names, runs)]


def notes(run: Run, runs: list[Run]) -> list[str]:
    """Why this run's numbers differ in kind from its neighbours': unfinished, labels, settings that are not shared."""
    done, total = run.evaluated_stages, len(run.manifest["stages"])
    found = [f"unfinished, {done} of {total} stages evaluated"] if done < total else []
    for key in ("model", "global_batch"):
        if len({str(other.manifest.get(key)) for other in runs}) > 1:
            found.append(f"{key.replace('_', ' ')}: {run.manifest.get(key)}")
    for key in ("image_transform", "max_new_tokens", "split", "limit", "headline"):
        if len({str(other.settings().get(key)) for other in runs}) > 1:
            found.append(f"{key.replace('_', ' ')}: {', '.join(run.settings().get(key, ['none']))}")
    return found + run.labels()


def _values(run: Run) -> tuple[list[Cell], list[Cell]]:
    """(aggregates in their order, last score per task in manifest order). Those of an unfinished run stay empty."""
    whole = aggregates(run.matrix)
    last = dict(zip(run.matrix.tasks, last_row(run.matrix)))
    return [whole[a.key] for a in AGGREGATES], [last.get(task) for task in _tasks(run)]


def _grid(runs: list[Run]) -> tuple[list[str], list[list[Cell]], list[bool]]:
    """(column titles, values, lower is better per column); columns that are empty for every run are dropped."""
    titles = [a.title for a in AGGREGATES] + [runs[0].task_title(task) for task in _tasks(runs[0])]
    lower = [a.lower_is_better for a in AGGREGATES] + [False] * (len(titles) - len(AGGREGATES))
    rows = [[*values, *last] for values, last in map(_values, runs)]
    keep = [k for k in range(len(titles)) if any(row[k] is not None for row in rows)]
    return [titles[k] for k in keep], [[row[k] for k in keep] for row in rows], [lower[k] for k in keep]


def write_comparison(runs: list[Path], out: Path) -> Path:
    """Compare runs of the same benchmark; returns the path of the page.

    `out` is a folder (comparison.html, .md, .csv and mean.png are written there) or a path ending in .html (the others
    get the same stem). Aggregates come from the whole matrix, so an unfinished run has none. UserError when the
    benchmarks differ or a folder is no run.
    """
    loaded = load_runs([Path(run) for run in runs])
    page = Path(out) if Path(out).suffix == ".html" else Path(out) / "comparison.html"
    titles, values, lower = _grid(loaded)
    names = row_names(loaded)
    html.write(page.with_suffix(".md"), _markdown(loaded, names, titles, values))
    html.write(page.with_suffix(".csv"), _csv(loaded, names, titles, values))
    return html.write(page, _html(loaded, names, titles, values, lower, page))


def _footnotes(runs: list[Run]) -> list[tuple[int, str]]:
    """(row, note) in order; the position in this list is the footnote's number."""
    return [(k, note) for k, run in enumerate(runs) for note in notes(run, runs)]


def _markdown(runs: list[Run], names: list[str], titles: list[str], values: list[list[Cell]]) -> str:
    marks = _footnotes(runs)
    lines = [f"# {_benchmark(runs[0])}: {len(runs)} runs", ""]
    lines.append("| Method preset | " + " | ".join(titles) + " |")
    lines.append("|---|" + "---:|" * len(titles))
    for k, (name, row) in enumerate(zip(names, values)):
        refs = "".join(f"[{i}]" for i, (owner, _) in enumerate(marks, 1) if owner == k)
        lines.append(f"| {name.replace('|', '/')}{' ' + refs if refs else ''} | " + " | ".join(map(number, row)) + " |")
    lines += ["", "Task columns: score after the last stage (percent). An empty cell was not evaluated.", ""]
    lines += [f"[{i}] {names[owner]}: {note}" for i, (owner, note) in enumerate(marks, 1)]
    return "\n".join(lines).rstrip() + "\n"


def _csv(runs: list[Run], names: list[str], titles: list[str], values: list[list[Cell]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["Method preset", *titles, "Run", "Notes"])
    for run, name, row in zip(runs, names, values):
        writer.writerow([name, *map(number, row), run.path.name, "; ".join(notes(run, runs))])
    return out.getvalue()


def _html(
    runs: list[Run], names: list[str], titles: list[str], values: list[list[Cell]], lower: list[bool], page: Path
) -> str:
    marks = _footnotes(runs)
    heads = []
    for k, name in enumerate(names):
        refs = ", ".join(str(i) for i, (owner, _) in enumerate(marks, 1) if owner == k)
        heads.append(escape(name) + (f" <sup>{refs}</sup>" if refs else ""))
    # Two narrow tables read better than one wide one: what is computed from the matrix, and its last row.
    known = {a.title for a in AGGREGATES}
    split = sum(title in known for title in titles)
    items = "".join(f"<li>{escape(names[owner])}: {escape(note)}</li>" for owner, note in marks)
    legend = "Bold: best of the column. Percent; an empty cell was not evaluated or is not defined for that run."
    formulas = html.table(["Aggregate", "Formula"], [[a.title, a.formula] for a in AGGREGATES], text_columns=(1,))
    title = f"{_benchmark(runs[0])}: {len(runs)} runs"
    problems = [f"{run.name}: {problem}" for run in runs for problem in run.problems]
    parts = [
        f'<header><h1>{escape(title)}</h1><p class="lead">Aggregates and last scores of each method</p></header>',
        _table(heads, titles, values, lower, range(split)),
        f'<p class="note">{legend}</p>',
        f'<ol class="note">{items}</ol>' if items else "",
        html.section("Each task after the last stage", _table(heads, titles, values, lower, range(split, len(titles)))),
        html.section("Mean over the tasks seen so far", _curve(runs, page)),
        html.section("Formulas", formulas),
        html.section("Problems", html.warning("Found while reading", problems)),
    ]
    return html.page(f"{title} · hide-llava", "\n".join(part for part in parts if part))


def _table(heads: list[str], titles: list[str], values: list[list[Cell]], lower: list[bool], columns: range) -> str:
    """The chosen columns of every run; `heads` are already markup."""
    best = {k: _best([row[k] for row in values], lower[k]) for k in columns}
    body = ""
    for head, row in zip(heads, values):
        cells = "".join(
            f"<td{' class=best' if row[k] is not None and row[k] == best[k] else ''}>{number(row[k])}</td>"
            for k in columns
        )
        body += f'<tr><th scope="row">{head}</th>{cells}</tr>\n'
    top = "".join(f'<th scope="col">{escape(title)}</th>' for title in ["Method preset", *(titles[k] for k in columns)])
    return f'<div class="scroll"><table class="full"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _best(values: list[Cell], lower: bool) -> Cell:
    present = [value for value in values if value is not None]
    if len(present) < 2:
        return None
    return min(present) if lower else max(present)


def _curve(runs: list[Run], page: Path) -> str:
    try:
        figures.require_matplotlib()
    except UserError as error:
        return f'<p class="note">{escape(str(error))}</p>'
    light = figures.mean_curves(runs, figures.LIGHT)
    if light is None:
        return ""
    data = figures.png(light)
    html.write(page.with_suffix(".png"), data)
    dark = figures.png(figures.mean_curves(runs, figures.DARK))
    return html.picture(data, dark, "Mean score over the tasks seen so far, after each stage, for every run", 760)
