"""Figure of a comparison: the mean over the tasks seen so far, after each stage, one line per row of the table.

Up to eight rows share one panel; more, or such with long names, have a panel each, with all the others in grey behind. A label
says only what is not common to all rows. Repetitions are drawn as
their mean with a band of one standard deviation; joint runs, which have one stage, as dashed levels.
"""

from __future__ import annotations

import math
import textwrap
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from hide_llava.results.drawing import LETTER, LIGHT, MARKERS, Theme, end_labels, new_figure, new_panels, stage_ticks
from hide_llava.results.grouping import Row, Stat, stat
from hide_llava.results.matrix import row_means

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TOGETHER, LONGEST = 8, 30  # lines that one panel can hold, letters of a label beside it
WIDTH, COLUMNS = 7.6, 4
NOTHING = float("nan")


def mean_curves(rows: list[Row], theme: Theme = LIGHT) -> Figure | None:
    """Percent over stages. None when no row has two stages, or nothing was evaluated.

    A row that was asked only after a stage later than the first that has something to ask has no curve, and is left out.
    """
    curves = {row.name: (row, curve(row)) for row in rows}
    curves = {name: (row, values) for name, (row, values) in curves.items() if values[_first(row) :][:1] not in ([], [None])}
    stages = max((len(values) for _, values in curves.values()), default=0)
    if stages < 2:
        return None
    staged = [run for row, _ in curves.values() for run in row.runs if len(run.matrix.stages) > 1]
    longest = max(staged, key=lambda run: len(run.matrix.stages))
    one_order = len({tuple(run.matrix.tasks) for run in staged}) == 1
    titles = longest.matrix.stage_titles if one_order else [f"stage {t + 1}" for t in range(stages)]
    labels = short_names(list(curves))
    curves = {label: drawn for label, drawn in zip(labels, curves.values())}
    together = len(curves) <= TOGETHER and max(map(len, labels)) <= LONGEST
    return (_together if together else _apart)(curves, titles, theme)


def _first(row: Row) -> int:
    """The first stage after which every run has learned a task that counts; 0 where stages teach several."""
    return max(min((at for at in run.matrix.learned_at if at is not None), default=0) for run in row.finished)


def short_names(names: list[str]) -> list[str]:
    """Names of rows without the parts that all of them have: `hide, rank=4` and `hide, rank=8` → `rank=4`, `rank=8`."""
    parts = [name.split(", ") for name in names]
    common = set.intersection(*map(set, parts)) if len(names) > 1 else set()
    short = [", ".join(part for part in own if part not in common) for own in parts]
    return short if all(short) and len(set(short)) == len(names) else names


def curve(row: Row) -> list[Stat | None]:
    """After each stage, over the runs that count; None where one of them has no score yet."""
    return [stat(list(values)) for values in zip_longest(*(row_means(run.matrix) for run in row.finished))]


def _together(curves: dict[str, tuple[Row, list[Stat | None]]], titles: list[str], theme: Theme) -> Figure:
    width = WIDTH + LETTER * max(0, max(map(len, curves)) - 12)  # long labels take nothing from the curves
    figure, axes = new_figure(theme, width, 4.0)
    ends = []
    for k, (name, (row, values)) in enumerate(curves.items()):
        colour, marker = theme.series[k % len(theme.series)], MARKERS[k % len(MARKERS)]
        at = _draw(axes, row, values, colour, len(titles), marker=marker, markersize=5.5, linewidth=2)
        last = _last(values)
        ends.append([last, at, f"{name}  {last:.1f}", colour])
    stage_ticks(axes, titles, width - 0.6 - LETTER * max(len(end[2]) for end in ends))
    axes.set_xlim(-0.2, len(titles) - 0.8)
    axes.set_ylabel("mean over seen tasks (percent)", color=theme.muted, fontsize=9)
    axes.set_xlabel("after training on", color=theme.muted, fontsize=9)
    _grid(axes, theme)
    end_labels(axes, ends, theme)
    return figure


def _apart(curves: dict[str, tuple[Row, list[Stat | None]]], titles: list[str], theme: Theme) -> Figure:
    columns = max(1, min(COLUMNS, int((WIDTH - 0.6) / (LETTER * (max(map(len, curves)) + 8)))))  # 8: the value and a gap
    height = math.ceil(len(curves) / columns)
    figure, panels = new_panels(theme, WIDTH, 0.5 + 1.25 * height, height, columns)
    for axes, name in zip(panels, curves):
        for row, values in curves.values():
            _draw(axes, row, values, theme.grid, len(titles), linewidth=0.8, band=False)
        row, values = curves[name]
        _draw(axes, row, values, theme.series[0], len(titles), linewidth=2)
        axes.set_title(f"{name}  {_last(values):.1f}", color=theme.ink, fontsize=8.5, loc="left", pad=3)
        axes.set_xticks(range(len(titles)), [str(t + 1) for t in range(len(titles))])
        _grid(axes, theme)
    for axes in panels[len(curves) :]:
        axes.set_axis_off()
    order = ", ".join(f"{t} {title}" for t, title in enumerate(titles, 1))
    figure.supxlabel(f"after stage\n{textwrap.fill(order, 100)}", color=theme.muted, fontsize=8.5)
    figure.supylabel("mean over seen tasks (percent)", color=theme.muted, fontsize=8.5)
    return figure


def _draw(
    axes: Any, row: Row, values: list[Stat | None], colour: str, stages: int, band: bool = True, **style: Any
) -> int:
    """One row; returns the stage at which it ends."""
    if row.runs[0].matrix.joint:
        axes.axhline(_last(values), color=colour, linewidth=0.8 * style["linewidth"], linestyle=(0, (5, 3)))
        return stages - 1
    means = [value.mean if value else NOTHING for value in values]
    axes.plot(range(len(means)), means, color=colour, **style)
    if band and any(value and value.sd is not None for value in values):
        spread = [value.sd or 0.0 if value else NOTHING for value in values]
        low, high = ([m + sign * s for m, s in zip(means, spread)] for sign in (-1, 1))
        axes.fill_between(range(len(means)), low, high, color=colour, alpha=0.15, linewidth=0)
    return max(t for t, value in enumerate(values) if value)


def _last(values: list[Stat | None]) -> float:
    return [value.mean for value in values if value][-1]


def _grid(axes: Any, theme: Theme) -> None:
    axes.grid(axis="y", color=theme.grid, linewidth=0.8)
    axes.set_axisbelow(True)
