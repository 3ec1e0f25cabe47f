"""CKA across layers as Markdown, JSON and a figure."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hide_llava.results.drawing import LIGHT, Theme, new_figure
from hide_llava.results.sections import write_section
from hide_llava.results.tables import csv_lines, markdown_table, number
from hide_llava.storage import write_json, write_text
from hide_llava.studies.cka.across_layers import CkaReport
from hide_llava.studies.findings import UNDRAWN, write_figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEGACY = (
    "Published procedure: every model saw other inputs (its own task's), so the population value is 0 in every layer and "
    "the biased estimate shows the effective dimension, not similarity."
)
READ = "Mean over pairs of models; permuted: the same after shuffling prompts."
HEADER = ["Layer", "mean CKA", "95 % low", "high", "permuted", "effective dimension"]


def rows(report: CkaReport) -> list[list[str]]:
    """A layer each, in the columns of HEADER."""
    return [
        [str(x.layer), *(number(value, 3) for value in (x.mean, x.low, x.high, x.null)), number(x.dimension, 1)]
        for x in report.layers
    ]


def markdown(report: CkaReport) -> str:
    """The table of layers, with what was compared."""
    prompts = ", ".join(f"{title}: {count}" for title, count in report.prompts.items())
    estimator = f"{'biased' if report.legacy else 'debiased'} {report.kernel} CKA"
    lines = [f"# CKA of {report.run}", "", f"- Models after: {', '.join(report.models)}", f"- Prompts: {prompts}"]
    lines += [f"- Activation: {report.activation}, pooled: {report.pooling}, {estimator}", ""]
    lines += markdown_table(HEADER, rows(report), "r" * len(HEADER))
    lines += ["", LEGACY if report.legacy else READ]
    return "\n".join(lines) + "\n"


def figure(report: CkaReport, theme: Theme = LIGHT) -> Figure:
    """Above: mean CKA of each layer with its interval and the permutation null. Below: effective dimension."""
    drawn, above = new_figure(theme, 7.6, 4.6)
    grid = drawn.add_gridspec(2, 1, height_ratios=(2.2, 1.0))
    above.set_subplotspec(grid[0])
    below = drawn.add_subplot(grid[1], facecolor=theme.paper, sharex=above)
    layers = [x.layer for x in report.layers]
    blue, orange, green = theme.series[:3]
    if not report.legacy:
        above.fill_between(layers, [x.low for x in report.layers], [x.high for x in report.layers], color=blue, alpha=0.2,
                           linewidth=0)  # fmt: skip
        above.plot(layers, [x.null for x in report.layers], color=orange, linewidth=1.6, linestyle=(0, (5, 3)),
                   label="prompts permuted")  # fmt: skip
    above.plot(layers, [x.mean for x in report.layers], color=blue, marker="o", markersize=4.5, linewidth=2,
               label="mean over pairs of models")  # fmt: skip
    above.set_ylim(min(-0.05, *(x.mean for x in report.layers)), 1.05)
    below.plot(layers, [x.dimension for x in report.layers], color=green, marker="s", markersize=4.5, linewidth=2)
    below.set_ylim(0, 1.2 * max(x.dimension for x in report.layers))
    drawn.get_layout_engine().set(hspace=0.06)
    _finish(above, theme, "CKA (biased)" if report.legacy else "CKA")
    _finish(below, theme, "effective\ndimension")
    above.tick_params(labelbottom=False)
    below.set_xlabel("decoder layer", color=theme.muted, fontsize=9)
    below.xaxis.get_major_locator().set_params(integer=True)
    legend = above.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, fontsize=9, borderpad=0.2)
    for text in legend.get_texts():
        text.set_color(theme.ink)
    return drawn


def _finish(axes: Any, theme: Theme, label: str) -> None:
    axes.set_ylabel(label, color=theme.muted, fontsize=9)
    axes.grid(axis="y", color=theme.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=theme.ink, labelsize=9, length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def write_cka(report: CkaReport, folder: Path) -> str:
    """cka.md, cka.csv, cka.json (with the matrices) and, with matplotlib, the figure `cka` in four files; the Markdown text."""
    text = markdown(report)
    drawn = write_figures(folder, {"cka": lambda theme: figure(report, theme)})
    text += "" if drawn else f"\n{UNDRAWN}\n"
    write_text(folder / "cka.md", text)
    write_json(folder / "cka.json", dataclasses.asdict(report))
    named = ("layer", "mean", "low", "high", "null", "dimension")
    write_text(folder / "cka.csv", csv_lines([named, *([getattr(x, name) for name in named] for x in report.layers)]))
    write_section(folder, "Similarity of the layers (CKA)", f"Models after: {', '.join(report.models)}", HEADER, rows(report),
                  "cka" if drawn else None, LEGACY if report.legacy else READ)  # fmt: skip
    return text
