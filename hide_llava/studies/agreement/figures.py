"""Our scores over published ones, a point for each method."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hide_llava.results.aggregates import by_name
from hide_llava.results.drawing import LIGHT, Theme, new_figure
from hide_llava.results.point_labels import label_points
from hide_llava.results.tables import number
from hide_llava.studies.agreement.study import Agreed, AgreementStudy

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def scatter(found: AgreementStudy, agreed: Agreed, theme: Theme = LIGHT) -> Figure:
    """One quantity of one protocol: its percent across, ours up with one standard deviation over its runs.

    Bounds, where they are among the methods, are hollow. Only the order is compared, so there is no line to lie on.
    """
    theirs, standing = agreed.protocol.of(agreed.quantity, bounds=True), agreed.standing
    stats = {method: standing[method].stat(agreed.quantity) for method in agreed.methods}
    figure, axes = new_figure(theme, 7.6, 4.8)
    for method, own in stats.items():
        bound = method in agreed.protocol.bounds
        colour = theme.muted if bound else theme.series[0]
        if own.sd is not None:
            axes.errorbar(theirs[method], own.mean, own.sd, color=colour, linewidth=1, capsize=2, alpha=0.6)
        axes.plot(theirs[method], own.mean, "o", color=colour, markersize=6.5, markeredgewidth=1.2,
                  markerfacecolor=theme.paper if bound else colour)  # fmt: skip
    runs = {own.count for own in stats.values()}
    over = f", mean ± sd of {max(runs)} runs" if max(runs) > 1 else ""
    title = by_name(agreed.quantity).title
    across = f"{title} as published (percent): " if agreed.protocol.printed else f"{title} (percent): "
    axes.set_xlabel(across + agreed.protocol.title, color=theme.muted, fontsize=9)
    axes.set_ylabel(f"{title} on {found.ours.benchmark} (percent{over})", color=theme.muted, fontsize=9)
    axes.margins(0.12, 0.08)
    axes.grid(color=theme.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    if agreed.found is not None:
        axes.set_title(f"{agreed.found.n} methods: ρ = {number(agreed.found.rho.value)}, τ-b = "
                       f"{number(agreed.found.tau.value)}", color=theme.muted, fontsize=9, loc="left")  # fmt: skip
    label_points(figure, axes, [(theirs[method], own.mean) for method, own in stats.items()],
                 [own.sd or 0.0 for own in stats.values()], [standing[method].name for method in stats], theme)  # fmt: skip
    return figure
