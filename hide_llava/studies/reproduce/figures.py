"""What each ablation draws."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hide_llava.results.drawing import MARKERS, Theme, cut
from hide_llava.results.matrix import Cell
from hide_llava.studies.reproduce.paper import DOUBLE, SINGLE, SMALL, labelled, legend, panels
from hide_llava.studies.reproduce.variants import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEAST = 5.0  # points that an axis of scores is high at least, so that noise does not look like a trend


def by_task(theme: Theme, rows: list[Row]) -> Figure:
    """Grouped bars: a group for each task and one for the mean, a colour for each case."""
    figure, (axes,) = panels(theme, DOUBLE, 2.1)
    _bars(axes, theme, rows)
    return figure


def _bars(axes: Any, theme: Theme, rows: list[Row], letters: float = SMALL) -> None:
    run = rows[0].run
    tasks = run.matrix.tasks
    names = [*(cut(run.task_title(task), 14) for task in tasks), "mean"]
    width = 0.8 / len(rows)
    for k, row in enumerate(rows):
        heights = [*(row.cells[task].score if task in row.cells else None for task in tasks), row.last]
        places = [j + (k - (len(rows) - 1) / 2) * width + 0.3 * (j == len(tasks)) for j in range(len(names))]
        axes.bar(places, [value or 0.0 for value in heights], 0.92 * width, color=theme.series[k % len(theme.series)],
                 label=row.case.name)  # fmt: skip
    axes.set_xticks([j + 0.3 * (j == len(tasks)) for j in range(len(names))], names)
    axes.tick_params(axis="x", labelsize=letters)
    axes.grid(axis="y", color=theme.grid, linewidth=0.6)
    labelled(axes, theme, y="score (percent)")
    legend(axes, theme, loc="lower left", bbox_to_anchor=(0, 1), ncols=min(len(rows), 4))


def sweep(theme: Theme, rows: list[Row], axis: str, own: float | None) -> Figure:
    """The mean against what is swept, in one column; a broken line at the run's own value."""
    figure, (axes,) = panels(theme, SINGLE, 2.0)
    _curve(axes, theme, rows, axis, own)
    return figure


def _curve(axes: Any, theme: Theme, rows: list[Row], axis: str, own: float | None) -> None:
    places = [row.case.at for row in rows]
    series: list[tuple[str, list[Cell]]] = [("Last", [row.last for row in rows])]
    series += [("Avg", [row.avg for row in rows])] if all(row.avg is not None for row in rows) else []
    for k, (name, values) in enumerate(series):
        axes.plot(places, [float("nan") if v is None else v for v in values], color=theme.series[k], marker=MARKERS[k],
                  markersize=3.5, linewidth=1.2, label=name)  # fmt: skip
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, (low + high) / 2 - LEAST / 2), max(high, (low + high) / 2 + LEAST / 2))
    if own is not None:
        axes.axvline(own, color=theme.muted, linewidth=0.8, linestyle=(0, (4, 3)), label="this run")
    axes.set_xticks(places, [f"{place:.2g}" for place in places])
    axes.grid(axis="y", color=theme.grid, linewidth=0.6)
    labelled(axes, theme, axis, "score (percent)")
    legend(axes, theme, loc="lower left", bbox_to_anchor=(0, 1), ncols=3)


def routed_by(theme: Theme, rows: list[Row], axis: str, own: float | None) -> Figure:
    """Left: text, image and both for each task. Right: the mean against the weight of the image."""
    figure, (left, right) = panels(theme, DOUBLE, 2.3, (2.4, 1.0))
    named = [row for row in rows if not row.case.name.startswith("α")]
    _bars(left, theme, named, SMALL - 1)
    _curve(right, theme, rows, axis, own)
    return figure


def split(theme: Theme, rows: list[Row]) -> Figure:
    """Left: the mean for every set of layers. Right: how much is stored for it."""
    figure, (left, right) = panels(theme, SINGLE, 0.6 + 0.24 * len(rows), (1.6, 1.0))
    places, names = range(len(rows)), [row.case.name for row in rows]
    _across(left, theme, [row.last for row in rows], "{:.1f}", theme.series[0])
    _across(right, theme, [row.stored / 1e6 for row in rows], "{:.3g}", theme.series[1])
    left.set_yticks(places, names)
    right.set_yticks(places, [""] * len(rows))
    labelled(left, theme, "Last (percent)")
    labelled(right, theme, "stored (M numbers)")
    return figure


def _across(axes: Any, theme: Theme, values: list[Cell], form: str, colour: str) -> None:
    known = [value or 0.0 for value in values]
    axes.barh(range(len(values)), known, 0.7, color=colour)
    for place, value in enumerate(values):
        if value is not None:
            axes.text(value, place, f" {form.format(value)}", va="center", fontsize=SMALL, color=theme.ink)
    axes.set_ylim(len(values) - 0.4, -0.6)
    axes.set_xlim(0, 1.3 * max(known) or 1)
    axes.set_xticks([])
