"""Figures of a run: score matrix, task curves, routing, loss. Needs matplotlib (extra `report`).

Every function takes a Run and a theme and returns a figure, or None when the run holds nothing to draw. Colours are
safe for colour-blind readers: one-hue ramps for amounts, the Okabe-Ito set (with markers) for tasks. Empty cells are
left blank.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hide_llava.errors import UserError
from hide_llava.results.drawing import (
    DARK,
    LETTER,
    LIGHT,
    MARKERS,
    Theme,
    cut,
    end_labels,
    heat_map,
    new_figure,
    png,
    require_matplotlib,
    slant,
    stage_ticks,
)
from hide_llava.results.matrix import Cell
from hide_llava.results.routing import usable_weights
from hide_llava.results.run_reader import StoredRun

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["DARK", "FIGURES", "LIGHT", "png", "require_matplotlib", "routing_means"]


def matrix_heat_map(run: StoredRun, theme: Theme = LIGHT) -> Figure | None:
    """Score (percent, colour 0…100) of every task (columns) after every stage (rows)."""
    m = run.matrix
    if not run.cells:
        return None
    names = [f"{t}. {title}" for t, title in enumerate(m.stage_titles, 1)] if len(m.stages) > 1 else m.stage_titles
    return heat_map(theme, m.cells, names, m.task_titles, 100.0, 1)


def task_curves(run: StoredRun, theme: Theme = LIGHT) -> Figure | None:
    """Score of each task over the stages, from the first cell that was evaluated. None for fewer than two stages."""
    m = run.matrix
    asked = [t + 1 for t, row in enumerate(m.cells) if any(value is not None for value in row)]
    if len(m.stages) < 2 or not asked:
        return None
    figure, axes = new_figure(theme, 7.6, 4.0)
    n = max(2, *asked)  # an unfinished run ends at its last evaluated stage, but an axis needs two
    ends = []
    for j, title in enumerate(m.task_titles):
        points = [(t, row[j]) for t, row in enumerate(m.cells) if row[j] is not None]
        if not points:
            continue
        colour, marker = theme.series[j % len(theme.series)], MARKERS[j % len(MARKERS)]
        # A missing stage breaks the line instead of being bridged.
        axes.plot(
            range(n),
            [row[j] if row[j] is not None else float("nan") for row in m.cells[:n]],
            color=colour,
            marker=marker,
            markersize=5.5,
            linewidth=2,
        )
        ends.append([points[-1][1], points[-1][0], f"{cut(title)}  {points[-1][1]:.1f}", colour])
    stage_ticks(axes, m.stage_titles[:n], 7.0 - LETTER * max(len(end[2]) for end in ends))
    low, high = axes.get_ylim()
    # At least ten points high, so that noise does not look like a trend.
    low, high = min(low, (low + high) / 2 - 5), max(high, (low + high) / 2 + 5)
    axes.set(ylim=(low, high), xlim=(-0.2, n - 0.8))
    axes.set_ylabel("score (percent)", color=theme.muted, fontsize=9)
    axes.set_xlabel("after training on", color=theme.muted, fontsize=9)
    axes.grid(axis="y", color=theme.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    end_labels(axes, ends, theme)
    return figure


def routing_means(run: StoredRun) -> tuple[list[str], list[str], list[list[Cell]]] | None:
    """(tasks, experts, mean weight of each expert on each true task) from the last stage that stored routing."""
    for stage in reversed(run.matrix.stages):
        found = {task: [weights for row in _answers(run.cells.get((stage, task))) if (weights := usable_weights(row))]
                 for task in run.matrix.tasks}  # fmt: skip
        found = {task: rows for task, rows in found.items() if rows}
        if found:
            experts = list(dict.fromkeys(expert for rows in found.values() for weights in rows for expert in weights))
            # An expert a row does not mention has weight 0 there: that is a measured value, not a missing cell.
            values = [[sum(weights.get(expert, 0.0) for weights in rows) / len(rows) for expert in experts]
                      for rows in found.values()]  # fmt: skip
            return [run.task_title(task) for task in found], experts, values
    return None


def _answers(cell: Any) -> list[dict]:
    if cell is None:
        return []
    try:
        return cell.predictions()
    except UserError:
        return []


def routing_heat_map(run: StoredRun, theme: Theme = LIGHT) -> Figure | None:
    """Mean routing weight (0…1): true task (rows) × expert (columns), last stage. None for runs without routing."""
    means = routing_means(run)
    if means is None:
        return None
    tasks, experts, values = means
    titles = [run.expert_titles.get(expert, run.task_title(expert)) for expert in experts]
    figure = heat_map(theme, values, tasks, titles, 1.0, 2)
    figure.axes[0].set_ylabel("true task", color=theme.muted, fontsize=9)
    named = any(expert in run.expert_titles for expert in experts)
    figure.axes[0].set_xlabel("expert of" if named else "expert", color=theme.muted, fontsize=9)
    figure.axes[0].xaxis.set_label_position("top")
    return figure


def loss_curves(run: StoredRun, theme: Theme = LIGHT) -> Figure | None:
    """Training loss per logged step, the stages one after the other: raw (thin) and running mean (thick)."""
    logs = {name: [(r["step"], r["loss"]) for r in rows if _is_step(r)] for name, rows in run.logs().items()}
    logs = {name: points for name, points in logs.items() if points}
    if not logs:
        return None
    figure, axes = new_figure(theme, 7.6, 3.4)
    titles = dict(zip(run.matrix.stages, run.matrix.stage_titles))
    offset, middles = 0.0, []
    for k, (name, points) in enumerate(logs.items()):
        colour = theme.series[k % len(theme.series)]
        steps = [offset + step for step, _ in points]
        losses = [loss for _, loss in points]
        axes.plot(steps, losses, color=colour, linewidth=0.8, alpha=0.35)
        axes.plot(steps, _running_mean(losses), color=colour, linewidth=2)
        middles.append(((offset + steps[-1]) / 2, titles.get(name, name), colour))
        offset = steps[-1]
        axes.axvline(offset, color=theme.grid, linewidth=0.8)
    axes.set_xlim(0, offset)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("training loss", color=theme.muted, fontsize=9)
    axes.set_xlabel("optimiser steps, all stages", color=theme.muted, fontsize=9)
    axes.grid(axis="y", color=theme.grid, linewidth=0.8)
    top, widths = axes.get_ylim()[1], [LETTER * len(cut(title)) + LETTER for _, title, _ in middles]
    names = [axes.text(middle, 1.02 * top, cut(title), color=colour, fontsize=8.5, ha="center", va="bottom")
             for middle, title, colour in middles]  # fmt: skip
    room = [7.0 * (right[0] - left[0]) / offset for left, right in itertools.pairwise(middles)]
    if any(gap < (left + right) / 2 for gap, left, right in zip(room, widths, widths[1:])):
        slant(names, "left")
    return figure


def _is_step(row: dict) -> bool:
    return all(isinstance(row.get(key), (int, float)) and row[key] == row[key] for key in ("step", "loss"))


def _running_mean(values: list[float]) -> list[float]:
    """Centred mean over about a twentieth of the points; the window shrinks at both ends."""
    half = max(1, len(values) // 40)
    windows = (values[max(0, k - half) : k + half + 1] for k in range(len(values)))
    return [sum(window) / len(window) for window in windows]


FIGURES: dict[str, tuple[str, Callable[[StoredRun, Theme], Any]]] = {
    "matrix": ("Scores after each stage", matrix_heat_map),
    "curves": ("What happens to each task", task_curves),
    "routing": ("Which expert answers which task", routing_heat_map),
    "loss": ("Training loss", loss_curves),
}
