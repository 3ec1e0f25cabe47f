"""A comparison as one self-contained page."""

from __future__ import annotations

from html import escape
from pathlib import Path

from hide_llava.errors import UserError
from hide_llava.results import figures, html
from hide_llava.results.aggregates import AGGREGATES
from hide_llava.results.bootstrap import Difference
from hide_llava.results.comparison_text import (
    LAYOUT,
    PUBLISHED,
    TITLES,
    difference_text,
    interval_text,
    names_of_published,
    published_rows,
    stat_text,
)
from hide_llava.results.conditions import condition_title
from hide_llava.results.costs import NOTE
from hide_llava.results.grouping import Stat
from hide_llava.results.mean_curves import mean_curves
from hide_llava.results.tables import named
from hide_llava.results.view import View

LOWER = {a.key for a in AGGREGATES if a.lower_is_better}


def comparison_page(views: list[View], page: Path, left_out: str = "") -> str:
    """The document; draws the mean curves of each table beside it (NAME.png, NAME-2.png, …).

    left_out: what was named and is no run.
    """
    runs = [run for view in views for run in view.table.runs]
    benchmarks = ", ".join(dict.fromkeys(view.table.benchmark for view in views))
    heading = f"{benchmarks}: {len(runs)} run{'s' * (len(runs) > 1)}"
    formulas = html.table(["Aggregate", "Formula"], [[named(a), a.formula] for a in AGGREGATES], text_columns=(1,))
    problems = [f"{run.name}: {problem}" for run in runs for problem in run.problems]
    parts = [f'<header><h1>{escape(heading)}</h1><p class="lead">Aggregates and last scores of each method</p></header>']
    for number, view in enumerate(views, 1):
        parts += _view(view, page.with_name(f"{page.stem}{'' if number == 1 else f'-{number}'}.png"), len(views) > 1)
    parts += [f'<p class="note">{escape(left_out)}</p>'] if left_out else []
    parts += [
        html.section("Formulas", formulas, '<p class="note">A[t][j]: score on task j after stage t of T; Z: zero-shot, '
                     "M: multi-task run of the same table.</p>"),
        html.section("Problems", html.warning("Found while reading", problems)),
    ]  # fmt: skip
    return html.page(f"{heading} · hide-llava", "\n".join(part for part in parts if part))


def _view(view: View, figure: Path, several: bool) -> list[str]:
    keys = [key for key in LAYOUT if key in view.keys]
    others = [key for key in view.keys if key not in LAYOUT]
    items = "".join(f"<li>{escape(note)}</li>" for note in view.notes)
    legend = "Bold: best of the column. Score after the last stage, percent; an empty cell was not evaluated."
    if any(interval for row in view.intervals for interval in row):
        legend += " Small: 95 % bootstrap interval over the questions; it says nothing about another training seed."
    tasks = [[values[k] for values in view.last] for k in range(len(view.table.tasks))]
    small = [[interval_text(row[k]) for row in view.intervals] for k in range(len(view.table.tasks))]
    shown = [[values[key] for values in view.aggregates] for key in keys]
    titles = [*(TITLES[key] for key in keys), *view.table.task_titles]  # what one looks for first stands first
    blank = [[""] * len(view.names)] * len(keys)
    parts = [
        f"<h2>{escape(view.title)}</h2>" if several else "",
        html.warning("A table of its own, because of", view.table.reasons),
        _table(view, titles, [*shown, *tasks], [False] * len(titles), [*blank, *small]),
        f'<p class="note">{legend}</p>',
        f'<ol class="note">{items}</ol>' if items else "",
    ]
    if others:
        columns = [[values[key] for values in view.aggregates] for key in others]
        aggregates = _table(view, [TITLES[key] for key in others], columns, [key in LOWER for key in others])
        parts.append(html.section("Other aggregates", aggregates))
    parts += [
        _conditions(view),
        _costs(view),
        _against(view),
        _published(view),
        html.section("Mean over the tasks seen so far", _curve(view, figure)),
    ]
    return parts


def _table(
    view: View,
    titles: list[str],
    columns: list[list[Stat | None]],
    lower: list[bool],
    small: list[list[str]] | None = None,
) -> str:
    """Our rows: one list of values per column, the best in bold, `small` text below a value."""
    best = [_best(values, low) for values, low in zip(columns, lower)]
    body = ""
    for k, name in enumerate(view.names):
        refs = ", ".join(map(str, view.marks(k)))
        cells = ""
        for c, values in enumerate(columns):
            mark = " class=best" if values[k] is not None and values[k].mean == best[c] else ""
            below = f"<small>{escape(small[c][k])}</small>" if small and small[c][k] else ""
            cells += f"<td{mark}>{stat_text(values[k])}{below}</td>"
        head = escape(name) + (f" <sup>{refs}</sup>" if refs else "")
        count = f"<td>{view.counts[k]}</td>" if view.counts else ""
        body += f'<tr><th scope="row">{head}</th>{count}{cells}</tr>\n'
    heads = ["Method preset", *(["n"] if view.counts else []), *titles]
    top = "".join(f'<th scope="col">{escape(title)}</th>' for title in heads)
    return f'<div class="scroll"><table class="full rows"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _best(values: list[Stat | None], lower: bool) -> float | None:
    present = [value.mean for value in values if value is not None]
    if len(present) < 2:
        return None
    return min(present) if lower else max(present)


def _conditions(view: View) -> str:
    """What else differs between the rows, as a table: a reader must not take it for the method's work."""
    if not view.varied:
        return ""
    body = [[row.name, *(row.conditions.get(key, "") for key in view.varied)] for row in view.table.rows]
    return html.section("Not the same in every row", html.table(["Method preset", *map(condition_title, view.varied)], body))


def _costs(view: View) -> str:
    titles, rows = view.costs
    if not titles:
        return ""
    body = [[name, *row] for name, row in zip(view.names, rows)]
    return html.section("Costs", html.table(["Method preset", *titles], body), f'<p class="note">{NOTE}</p>')


def _against(view: View) -> str:
    if not view.against:
        return ""
    body = ""
    for row in view.against:
        cells = ""
        for value in row.tasks:
            text = difference_text(value)
            if isinstance(value, Difference):
                first, _, rest = text.partition(" ")
                low_high, _, p = rest.rpartition(", ")
                clear = " class=best" if value.interval.low > 0 or value.interval.high < 0 else ""
                cells += f"<td{clear}>{escape(first)}<small>{escape(low_high)}</small><small>{escape(p)}</small></td>"
            else:
                cells += f'<td class="none"><small>{escape(text)}</small></td>'
        body += f'<tr><th scope="row">{escape(row.name)}</th>{cells}</tr>\n'
    top = "".join(f'<th scope="col">{escape(title)}</th>' for title in ["Run", *view.table.task_titles])
    table = f'<div class="scroll"><table class="full"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'
    note = (
        "Paired bootstrap over the questions after the last stage: difference, 95 % interval, two-sided p. Bold: the "
        "interval leaves zero out. Not corrected for the number of comparisons."
    )
    return html.section(f"Difference to {view.baseline} on the same questions", table, f'<p class="note">{note}</p>')


def _published(view: View) -> str:
    if not view.published_note:
        return ""
    note = f'<p class="note">{escape(view.published_note)}</p>'
    if not view.published:
        return html.section("Published values", note)
    names, count = names_of_published(view), len(view.table.tasks)
    titles = ["Method (model)", *(TITLES[key] for key in PUBLISHED), *view.table.task_titles]
    body = [[name, *row[count:], *row[:count]] for name, row in zip(names, published_rows(view, list(PUBLISHED)))]
    table = html.table(titles, body, full=True)
    sources = html.table(
        ["Method (model)", "Protocol, table and Last"],
        [[name, "; ".join(row.labels)] for name, row in zip(names, view.published)],
        text_columns=(1,),
    )
    count = sum(len(row.labels) for row in view.published)
    return html.section(
        "Published values", note, table, html.details("Where they come from", f"{count} tables", sources)
    )


def _curve(view: View, path: Path) -> str:
    try:
        figures.require_matplotlib()
    except UserError as error:
        return f'<p class="note">{escape(str(error))}</p>'
    light = mean_curves(view.table.rows, figures.LIGHT)
    if light is None:
        return ""
    data = figures.png(light)
    html.write(path, data)
    dark = figures.png(mean_curves(view.table.rows, figures.DARK))
    return html.picture(data, dark, "Mean score over the tasks seen so far, after each stage, for every method", 760)
