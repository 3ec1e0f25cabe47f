"""Figures of a router study."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hide_llava.results.drawing import LIGHT, MARKERS, Theme, cut, heat_map, new_figure
from hide_llava.studies.router.fingerprint import CUES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from hide_llava.studies.router.study import RouterStudy


def confusion(found: RouterStudy, theme: Theme = LIGHT) -> Figure:
    """Percent of each task's questions (rows) whose top expert is that of a column."""
    matrix = found.confusion
    shares = [[100 * count / sum(row) for count in row] for row in matrix.counts]
    figure = heat_map(theme, shares, list(found.titles.values()), [found.experts[e] for e in matrix.experts], 100.0, 1)
    axes = figure.axes[0]
    axes.set_ylabel("true task", color=theme.muted, fontsize=9)
    axes.set_xlabel("percent of its questions go to the expert of", color=theme.muted, fontsize=9)
    axes.xaxis.set_label_position("top")
    return figure


def reliability(found: RouterStudy, theme: Theme = LIGHT) -> Figure:
    """Above: share routed right over the weight of the top expert, a point for each bin. Below: how many answers it holds."""
    bins = found.calibration.bins
    figure, above = new_figure(theme, 4.6, 4.6)
    grid = figure.add_gridspec(2, 1, height_ratios=(3, 1))
    above.set_subplotspec(grid[0])
    below = figure.add_subplot(grid[1], facecolor=theme.paper, sharex=above)
    above.plot([0, 100], [0, 100], color=theme.muted, linewidth=1.2, linestyle=(0, (5, 3)), label="calibrated")
    above.plot([100 * weight for weight, _, _ in bins], [100 * right for _, right, _ in bins], color=theme.series[0], linewidth=2,
               marker=MARKERS[0], markersize=5.5, label="router")  # fmt: skip
    below.bar([100 * weight for weight, _, _ in bins], [count for _, _, count in bins], width=5, color=theme.series[0])
    above.set(xlim=(0, 103), ylim=(0, 103))
    _finish(above, theme, "routed right (percent)", "")
    _finish(below, theme, "questions", "weight of the top expert (percent)")
    above.tick_params(labelbottom=False)
    below.tick_params(colors=theme.ink, labelsize=9, length=0)
    for spine in below.spines.values():
        spine.set_visible(False)
    _legend(above, theme, 2)
    return figure


def anchors(found: RouterStudy, kind: str, theme: Theme = LIGHT) -> Figure:
    """Cosine of the anchors of all pairs of tasks; the colours run from the least alike pair to 1."""
    names, cosines = found.anchors[kind]
    least = min(map(min, cosines))
    return heat_map(theme, cosines, names, names, 1.0, 3, least if least < 1 else 0.0)


def cues(found: RouterStudy, theme: Theme = LIGHT) -> Figure:
    """Bars for each task: told right by the prompt's text, by the text without its template, by the picture's size, and routed
    right by the router."""
    print_ = found.fingerprint
    tasks = list(print_.test)
    series = [(name, [100 * print_.accuracy[cue][task] for task in tasks])
              for cue, name in zip(CUES, ("prompt text", "without its template", "picture size"))]  # fmt: skip
    routed = [found.agreement[task].routed for task in tasks]
    if all(value is not None for value in routed):
        series.append(("router", [100 * value for value in routed]))
    figure, axes = new_figure(theme, 7.6, 3.4)
    wide = 0.8 / len(series)
    for k, (name, values) in enumerate(series):
        places = [task + (k - (len(series) - 1) / 2) * wide for task in range(len(tasks))]
        colour = theme.muted if name == "router" else theme.series[k]
        axes.bar(places, values, width=0.92 * wide, color=colour, label=name)
    axes.axhline(100 * print_.chance, color=theme.ink, linewidth=1.0, linestyle=(0, (5, 3)), label="by chance")
    axes.set_xticks(range(len(tasks)), [cut(found.titles[task], 14) for task in tasks])
    axes.set_ylim(0, 103)
    _finish(axes, theme, "told right (percent)", "")
    _legend(axes, theme, len(series) + 1)
    return figure


def records(found: RouterStudy, theme: Theme = LIGHT) -> Figure:
    """Share routed right over the number of records that each anchor is the mean of, with the spread over draws."""
    curve = found.curve
    figure, axes = new_figure(theme, 5.6, 3.2)
    axes.errorbar(curve.counts, [100 * x for x in curve.accuracy], [100 * x for x in curve.deviation], color=theme.series[0],
                  linewidth=2, marker=MARKERS[0], markersize=5.5, capsize=3, label="anchors of so many records")  # fmt: skip
    axes.axhline(100 * curve.stored, color=theme.series[1], linewidth=1.4, linestyle=(0, (5, 3)), label="stored anchors")
    axes.set_xscale("log")
    axes.set_xticks(curve.counts, [str(count) for count in curve.counts])
    axes.minorticks_off()
    axes.set_ylim(bottom=max(0.0, min(axes.get_ylim()[0], 100 * min(curve.accuracy) - 5)), top=103)
    _finish(axes, theme, "routed right (percent)", "training records of each task")
    _legend(axes, theme, 2)
    return figure


def _finish(axes: Any, theme: Theme, y: str, x: str) -> None:
    axes.set_ylabel(y, color=theme.muted, fontsize=9)
    if x:
        axes.set_xlabel(x, color=theme.muted, fontsize=9)
    axes.grid(axis="y", color=theme.grid, linewidth=0.8)
    axes.set_axisbelow(True)


def _legend(axes: Any, theme: Theme, columns: int) -> None:
    legend = axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, frameon=False, fontsize=8.5, borderpad=0.2,
                         columnspacing=1.2, handlelength=1.4)  # fmt: skip
    for text in legend.get_texts():
        text.set_color(theme.ink)
