"""Variants of a run against the options in which they differ: a table, a figure, and a section of the run's report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hide_llava.results.aggregates import aggregates
from hide_llava.results.drawing import DARK, LIGHT, MARKERS, Theme, can_draw, heat_map, new_figure, png
from hide_llava.results.html import write
from hide_llava.results.matrix import Cell, last_row
from hide_llava.results.run_reader import StoredRun, read_run
from hide_llava.results.sections import write_section
from hide_llava.results.tables import csv_lines, number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MEANS = {"last": "Last", "avg": "Avg"}  # key of the aggregate → what the columns and the figures are called
NOTE = ("Inference options on the stages of this run: nothing was trained. Last: mean after the last stage; Avg: column mean, "
        "which needs every stage.")  # fmt: skip


@dataclass(frozen=True)
class Variant:
    """One variant. values: of the options that are varied, by name; means: of MEANS; tasks: score after the last stage by id."""

    run: StoredRun
    values: dict[str, Any]
    means: dict[str, Cell]
    tasks: dict[str, Cell]


def variant(path: Path, keys: list[str]) -> Variant:
    """Of a run folder, with its values of the options `keys`.

    Raises:
        UserError: no run folder, or a damaged one.
    """
    run = read_run(path)
    means = aggregates(run.matrix)
    method = run.config.get("method") or {}
    tasks = dict(zip(run.matrix.tasks, last_row(run.matrix)))
    return Variant(run, {key: method.get(key) for key in keys}, {key: means[key] for key in MEANS}, tasks)


def text(value: Any) -> str:
    """A value of an option as YAML says it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{','.join(map(str, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def write_variants(paths: list[Path], keys: list[str], folder: Path) -> None:
    """variants.csv, and with matplotlib a figure for one or two options, in that folder; both as a section of the report."""
    found = [variant(path, keys) for path in paths]
    tasks = list(found[0].tasks)
    rows = [[*map(text, v.values.values()), *(number(v.means[m]) for m in MEANS), *(number(v.tasks.get(t)) for t in tasks)]
            for v in found]  # fmt: skip
    table = [[*row, v.run.path.name] for row, v in zip(rows, found)]
    write(folder / "variants.csv", csv_lines([[*keys, *MEANS, *tasks, "run"], *table]))
    drawn = []
    if can_draw():
        for stem, draw in figures(found, keys).items():
            for theme in (LIGHT, DARK):
                write(folder / f"{stem}-{theme.name}.png", png(draw(theme)))
            drawn.append(stem)
    titles = [found[0].run.task_title(task) for task in tasks]
    write_section(folder, f"Variants: {' × '.join(keys)}", "", [*keys, *MEANS.values(), *titles], rows, drawn, NOTE)


def figures(found: list[Variant], keys: list[str]) -> dict[str, Any]:
    """{name: function of a theme}: a line for one option, a heat map of each mean for two, nothing for more.

    A mean that one variant alone has, as Avg where the others were asked after the last stage only, compares nothing.
    """
    known = [mean for mean in MEANS if sum(v.means[mean] is not None for v in found) > 1]
    if len(keys) == 1:
        return {"variants": lambda theme: line(theme, found, keys[0], known)} if known else {}
    if len(keys) == 2:
        return {f"variants-{mean}": lambda theme, mean=mean: grid(theme, found, keys, mean) for mean in known}
    return {}


def line(theme: Theme, found: list[Variant], key: str, means: list[str]) -> Figure:
    """The means against the values of one option: on a scale where all are numbers, else one beside the other."""
    values = [v.values[key] for v in found]
    scaled = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
    order = sorted(range(len(found)), key=values.__getitem__) if scaled else range(len(found))
    places = [values[i] for i in order] if scaled else list(range(len(found)))
    figure, axes = new_figure(theme, 7.6, 3.6)
    for colour, marker, mean in zip(theme.series, MARKERS, means):
        heights = [found[i].means[mean] for i in order]
        axes.plot(places, [float("nan") if h is None else h for h in heights], color=colour, marker=marker, markersize=5.5,
                  linewidth=2 if scaled else 0, label=MEANS[mean])  # fmt: skip
    axes.set_xticks(places, [text(values[i]) for i in order])
    axes.set_xlabel(key, color=theme.muted, fontsize=9)
    axes.set_ylabel("score (percent)", color=theme.muted, fontsize=9)
    axes.grid(axis="y", color=theme.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.legend(frameon=False, fontsize=9, labelcolor=theme.ink)
    return figure


def grid(theme: Theme, found: list[Variant], keys: list[str], mean: str) -> Figure:
    """One mean for every pair of values of two options: the first down, the second across."""
    down, across = (list(dict.fromkeys(text(v.values[key]) for v in found)) for key in keys)
    cells = {tuple(map(text, v.values.values())): v.means[mean] for v in found}
    rows = [[cells.get((row, column)) for column in across] for row in down]
    known = [value for value in cells.values() if value is not None]
    low, high = min(known), max(known)
    figure = heat_map(theme, rows, down, across, high if high > low else low + 1, 1, low)
    axes = figure.axes[0]
    axes.set_ylabel(keys[0], color=theme.muted, fontsize=9)
    axes.set_xlabel(f"{keys[1]} ({MEANS[mean]})", color=theme.muted, fontsize=9)
    axes.xaxis.set_label_position("top")
    return figure
