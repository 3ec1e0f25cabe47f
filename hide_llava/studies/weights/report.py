"""Weight changes as tables, CSV and figures."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from hide_llava.results.drawing import LIGHT, MARKERS, Theme, cut, end_labels, heat_map, new_figure
from hide_llava.results.tables import number
from hide_llava.studies.findings import Findings
from hide_llava.studies.weights.across_layers import WeightReport, mean

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NOTE = (
    "Relative change: ‖Δ‖ / ‖W‖ (Frobenius) of all adapted linears of a layer taken together, in percent. Same columns, same "
    "rows: mean cosine of the principal angles between the spaces that two updates write to and read from; 0 at right "
    "angles, 1 the same space; of adapters that were begun anew. Cross terms: share of the fusion (Σ B)(Σ A) that no expert "
    "learned; 1 − 1/T of T unrelated experts of equal size. Sum: ‖Σ Δ‖ / Σ ‖Δ‖; 1 where all pull the same way, 1/√T at "
    "right angles."
)
LAYERS = ("Layer", "cross terms %", "sum", "same columns", "by chance", "same rows", "by chance")


def percent(value: float | None, digits: int = 2) -> str:
    return number(None if value is None else 100 * value, digits)


def findings(report: WeightReport) -> Findings:
    """All of a report as it is written and printed."""
    shown = [(f"Relative change of each layer, {what}", *table) for what, table in _changes(report)]
    tables = [*shown, ("How the updates lie to each other", *_filled(LAYERS, _layer_rows(report)))]
    figures = {"fusion": ("What fusing the updates does", lambda theme: fusion(report, theme))}
    if len(report.updates) < 2:
        tables, figures = shown, {}
    if report.relative(0) is not None:
        figures = {"change": ("Relative change of the weights", lambda theme: change(report, theme)), **figures}
    if any(v is not None for one in report.linears for v in _off_diagonal(one.columns)):
        for kind, title in (("columns", "Do updates write to the same space?"), ("rows", "Do updates read the same space?")):
            figures[kind] = (title, lambda theme, kind=kind: pairs(report, kind, theme))
    return Findings(
        f"Weight changes of {report.run}", _lines(report), tables, figures, _csv(report), dataclasses.asdict(report), NOTE
    )


def _lines(report: WeightReport) -> list[str]:
    lines = []
    for k, label in enumerate(report.updates):
        whole, typical = report.relative(k), report.typical(k)
        if whole is not None and typical is not None:
            lines.append(f"{label}: the weights change by {percent(whole)} % (median over linears {percent(typical)} %).")
    linears = report.linears
    if len(report.updates) > 1:
        ratio, cross = mean(one.ratio for one in linears), mean(one.cross for one in linears)
        columns, rows = (mean(v for one in linears for v in _off_diagonal(getattr(one, kind))) for kind in ("columns", "rows"))
        chance = [number(mean(one.by_chance[side] for one in linears), 3) for side in (0, 1)]
        if columns is not None:
            lines.append(f"Spaces of two updates, mean cosine: columns {number(columns, 3)} (by chance {chance[0]}), "
                         f"rows {number(rows, 3)} (by chance {chance[1]}).")  # fmt: skip
        alike = mean(v for one in linears for v in _off_diagonal(one.cosines))
        lines.append(f"Two updates as matrices, mean cosine: {number(alike, 3)} (at right angles 0).")
        lines.append(f"‖Σ Δ‖ is {percent(ratio, 1)} % of Σ ‖Δ‖; at right angles it would be "
                     f"{percent(len(report.updates) ** -0.5, 1)} %.")  # fmt: skip
        if cross is not None:
            lines.append(f"Factor-sum fusion: {percent(cross, 1)} % of it are cross terms; of unrelated experts it would be "
                         f"{percent(1 - 1 / len(report.updates), 1)} %.")  # fmt: skip
    return [*lines, *report.notes]


def _off_diagonal(matrix: list[list[float | None]]) -> list[float | None]:
    return [value for i, row in enumerate(matrix) for value in row[:i]]


def _changes(report: WeightReport) -> list[tuple[str, tuple]]:
    """Layers by updates: in percent of the base's weights where those are known, else the norms themselves."""
    if report.relative(0) is not None:
        rows = [[str(layer), *(percent(report.relative(k, report.of_layer(layer))) for k in range(len(report.updates)))]
                for layer in report.layers]  # fmt: skip
        return [("percent", (["Layer", *report.updates], rows))]
    rows = [[str(layer), *(number(_norm(report, layer, k), 4) for k in range(len(report.updates)))] for layer in report.layers]
    return [("norm, since the base's weights are not known", (["Layer", *report.updates], rows))]


def _norm(report: WeightReport, layer: int, update: int) -> float | None:
    found = [one.norms[update] for one in report.of_layer(layer) if one.norms[update] is not None]
    return sum(norm**2 for norm in found) ** 0.5 if found else None


def _layer_rows(report: WeightReport) -> list[list[str]]:
    rows = []
    for layer in report.layers:
        own = report.of_layer(layer)
        cross, ratio = mean(one.cross for one in own), mean(one.ratio for one in own)
        spaces = [value for side, kind in enumerate(("columns", "rows"))
                  for value in (mean(v for one in own for v in _off_diagonal(getattr(one, kind))),
                                mean(one.by_chance[side] for one in own))]  # fmt: skip
        rows.append([str(layer), percent(cross, 1), number(ratio, 3), *(number(value, 3) for value in spaces)])
    return rows


def _filled(head: tuple[str, ...], rows: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    """A table without the columns that are empty in every row."""
    kept = [k for k in range(len(head)) if any(row[k] for row in rows)]
    return [head[k] for k in kept], [[row[k] for k in kept] for row in rows]


def _csv(report: WeightReport) -> dict[str, tuple]:
    change = [
        [stage, label, adapter, one.layer, one.linear, one.module, one.norms[k], one.base,
         one.norms[k] / one.base if one.norms[k] is not None and one.base else None]
        for k, (stage, label, adapter) in enumerate(zip(report.stages, report.updates, report.adapters))
        for one in report.linears
    ]  # fmt: skip
    linears = [[one.layer, one.linear, one.module, one.cross, one.ratio, *one.by_chance] for one in report.linears]
    both = [
        [report.updates[j], report.updates[i], one.layer, one.linear, one.columns[i][j], one.rows[i][j], one.cosines[i][j]]
        for one in report.linears for i in range(len(report.updates)) for j in range(i)
    ]  # fmt: skip
    return {
        "change": (["stage", "update", "adapter", "layer", "linear", "module", "norm", "base_norm", "relative"], change),
        "linears": (["layer", "linear", "module", "cross_share", "sum_ratio", "columns_by_chance", "rows_by_chance"], linears),
        "pairs": (["first", "second", "layer", "linear", "column_cosine", "row_cosine", "update_cosine"], both),
    }


def change(report: WeightReport, theme: Theme = LIGHT) -> Figure:
    """Relative change in percent over the layers, a line for each update."""
    figure, axes = new_figure(theme, 7.6, 3.6)
    ends = []
    for k, label in enumerate(report.updates):
        points = [(layer, value) for layer in report.layers if (value := report.relative(k, report.of_layer(layer))) is not None]
        if points:
            colour = theme.series[k % len(theme.series)]
            axes.plot([x for x, _ in points], [100 * y for _, y in points], color=colour, linewidth=2, markersize=4.5,
                      marker=MARKERS[k % len(MARKERS)])  # fmt: skip
            ends.append([100 * points[-1][1], points[-1][0], cut(label), colour])
    axes.set_ylim(0, 1.06 * axes.get_ylim()[1])
    axes.set_xlim(right=report.layers[-1] + 0.2)
    _finish(axes, theme, "change of the weights (percent)")
    end_labels(axes, ends, theme)
    return figure


def fusion(report: WeightReport, theme: Theme = LIGHT) -> Figure:
    """Share of cross terms and length of the sum over the layers, with what unrelated updates of equal size would give."""
    count = len(report.updates)
    series = [("cross terms", "cross", 1 - 1 / count), ("length of the sum", "ratio", count**-0.5)]
    series = [one for one in series if mean(getattr(x, one[1]) for x in report.linears) is not None]
    figure, axes = new_figure(theme, 7.6, 3.4)
    for k, (label, kind, unrelated) in enumerate(series):
        values = [mean(getattr(one, kind) for one in report.of_layer(layer)) for layer in report.layers]
        points = [(layer, 100 * value) for layer, value in zip(report.layers, values) if value is not None]
        axes.plot([x for x, _ in points], [y for _, y in points], color=theme.series[k], marker=MARKERS[k], markersize=4.5,
                  linewidth=2, label=label)  # fmt: skip
        axes.axhline(100 * unrelated, color=theme.series[k], linewidth=1.2, linestyle=(0, (5, 3)),
                     label=f"{label}, unrelated updates")  # fmt: skip
    axes.set_ylim(0, 105)
    _finish(axes, theme, "percent")
    legend = axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, fontsize=9, borderpad=0.2)
    for text in legend.get_texts():
        text.set_color(theme.ink)
    return figure


def pairs(report: WeightReport, kind: str, theme: Theme = LIGHT) -> Figure:
    """Mean cosine of the principal angles between the updates of all pairs of stages, over the linears."""
    return heat_map(theme, report.mean_pairs(kind), report.updates, report.updates, 1.0, 2)


def _finish(axes: object, theme: Theme, label: str) -> None:
    axes.set_ylabel(label, color=theme.muted, fontsize=9)
    axes.set_xlabel("decoder layer", color=theme.muted, fontsize=9)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(axis="y", color=theme.grid, linewidth=0.8)
    axes.set_axisbelow(True)
