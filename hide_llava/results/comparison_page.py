"""What the page of a comparison shows: the tables of every view, aggregates first, and its curves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
from hide_llava.results.general import H_SCORE, RETENTION
from hide_llava.results.general_tables import general_grid
from hide_llava.results.grouping import Stat
from hide_llava.results.html import Grid, Shown
from hide_llava.results.mean_curves import mean_curves
from hide_llava.results.tables import named
from hide_llava.results.view import View

LOWER = {a.key for a in AGGREGATES if a.lower_is_better}
PAIRED = (
    "Paired bootstrap over the questions after the last stage: difference, 95 % interval, two-sided p. Bold: the "
    "interval leaves zero out. Not corrected for the number of comparisons."
)
GLOSSARY = (
    "A[t][j]: score on task j after stage t of T; Z: zero-shot, M: multi-task run of the same table; "
    "g, b: general test after the last stage, and of the untouched model."
)


def comparison_page(views: list[View], page: Path, left_out: str = "") -> str:
    """The document; draws the mean curves of each table beside it (NAME.png, NAME-2.png, …).

    left_out: what was named and is no run.
    """
    runs = [run for view in views for run in view.table.runs]
    benchmarks = ", ".join(dict.fromkeys(view.table.benchmark for view in views))
    pictures = [page.with_name(f"{page.stem}{f'-{k}' if k > 1 else ''}.png") for k in range(1, len(views) + 1)]
    asked = any(view.general.titles for view in views)
    kept = [["Retention", RETENTION], ["H-score", H_SCORE]] if asked else []
    return html.render(
        "comparison.html",
        heading=f"{benchmarks}: {len(runs)} run{'s' * (len(runs) > 1)}",
        views=[_view(view, picture) for view, picture in zip(views, pictures)],
        left_out=left_out,
        formulas=Grid(["Aggregate", "Formula"], [*([named(a), a.formula] for a in AGGREGATES), *kept], (1,), GLOSSARY),
        problems=[f"{run.name}: {problem}" for run in runs for problem in run.problems],
    )


def _view(view: View, figure: Path) -> dict[str, Any]:
    """What the template shows of a view."""
    keys = [key for key in LAYOUT if key in view.keys]
    others = [key for key in view.keys if key not in LAYOUT]
    legend = "Bold: best of the column. Score after the last stage, percent; an empty cell was not evaluated."
    if any(interval for row in view.intervals for interval in row):
        legend += " Small: 95 % bootstrap interval over the questions; it says nothing about another training seed."
    tasks, first, count = view.table.task_titles, "Method preset", len(view.table.tasks)
    body = [[*(own[key] for key in keys), *last] for own, last in zip(view.aggregates, view.last)]
    small = [["" for _ in keys] + [interval_text(i).replace(" ", "\u00a0") for i in row] for row in view.intervals]
    spreads = [[_spread(text) for text in row] for row in published_rows(view, [*PUBLISHED])]
    theirs = [[n, *row[count:], *row[:count]] for n, row in zip(names_of_published(view), spreads)]
    sources = [[name, "; ".join(row.labels)] for name, row in zip(names_of_published(view), view.published)]
    conditions = [[row.name, *(row.conditions.get(key, "") for key in view.varied)] for row in view.table.rows]
    titles, costs = view.costs
    curves, undrawn = _curves(view, figure)
    return {
        "title": view.title,
        "reasons": view.table.reasons,
        "main": _ours(view, [TITLES[key] for key in keys] + tasks, body, [False] * (len(keys) + count), legend, small),
        "notes": list(view.notes),
        "others": _ours(view, [TITLES[key] for key in others], [[own[key] for key in others] for own in view.aggregates],
                        [key in LOWER for key in others]) if others else None,
        "conditions": Grid([first, *map(condition_title, view.varied)], conditions, range(1, 99)) if view.varied else None,
        "costs": Grid([first, *titles], [[n, *c] for n, c in zip(view.names, costs)], note=NOTE) if titles else None,
        "general": general_grid(view.general, view.names),
        "baseline": view.baseline,
        "uncompared": view.uncompared,
        "against": Grid(["Run", *tasks], [[row.name, *map(_difference, row.tasks)] for row in view.against], note=PAIRED)
        if view.against else None,
        "published_note": view.published_note,
        "published": Grid(["Method (model)", *(TITLES[key] for key in PUBLISHED), *tasks], theirs) if theirs else None,
        "sources": Grid(["Method (model)", "Protocol, table and Last"], sources, (1,)),
        "printed": sum(len(row.labels) for row in view.published),
        "curves": curves,
        "undrawn": undrawn,
    }  # fmt: skip


def _ours(
    view: View,
    titles: list[str],
    rows: list[list[Stat | None]],
    lower: list[bool],
    note: str = "",
    small: list[list[str]] | None = None,
) -> Grid:
    """Our rows: their notes' numbers beside the names, how many runs, the best of each column in bold, `small` below."""
    best = [_best([row[c] for row in rows], low) for c, low in enumerate(lower)]
    body = []
    for k, (name, row) in enumerate(zip(view.names, rows)):
        head = Shown(name, mark=", ".join(map(str, view.marks(k))))
        cells = [
            Shown(stat_text(value), [small[k][c]] if small and small[k][c] else [],
                  "best" if value is not None and value.mean == best[c] else "")
            for c, value in enumerate(row)
        ]  # fmt: skip
        body.append([head, *view.counts[k : k + 1], *cells])
    return Grid(["Method preset", *(["n"] if view.counts else []), *titles], body, note=note)


def _best(values: list[Stat | None], lower: bool) -> float | None:
    present = [value.mean for value in values if value is not None]
    if len(present) < 2:
        return None
    return min(present) if lower else max(present)


def _difference(value: Difference | str) -> Shown:
    text = difference_text(value)
    if not isinstance(value, Difference):
        return Shown("", [text], "none")
    first, _, rest = text.partition(" ")
    low_high, _, p = rest.rpartition(", ")
    return Shown(first, [low_high, p], "best" if value.interval.low > 0 or value.interval.high < 0 else "")


def _spread(text: str) -> Shown:
    """`62.29–67.69 (3)` with the count below, so that the columns stay narrow."""
    value, _, count = text.partition(" ")
    return Shown(value, [count] if count else [])


def _curves(view: View, path: Path) -> tuple[html.Picture | None, str]:
    """(the figure, why there is none)"""
    try:
        figures.require_matplotlib()
    except UserError as error:
        return None, str(error)
    light = mean_curves(view.table.rows, figures.LIGHT)
    if light is None:
        return None, ""
    data = figures.png(light)
    html.write(path, data)
    dark = figures.png(mean_curves(view.table.rows, figures.DARK))
    alt, width = "Mean score over the tasks seen so far, after each stage, for every method", light.get_size_inches()[0]
    return html.picture(data, dark, alt, round(100 * width)), ""
