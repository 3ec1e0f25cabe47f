"""Figures at the size of a two-column paper, with the colours of Okabe and Ito, which colour-blind readers can tell apart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hide_llava.results.drawing import DARK, LIGHT, Theme, new_figure, png
from hide_llava.storage import write_bytes
from hide_llava.studies.findings import VECTOR, vector

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SINGLE, DOUBLE = 3.25, 6.75  # inches, the width of one column and of both
LETTERS, SMALL = 7.5, 6.5  # points
PAPER = Theme("paper", "#ffffff", "#000000", "#000000", "#d9d9d9", LIGHT.ramp,
              ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#f0e442", "#000000"))  # fmt: skip
DPI = 300
Draw = Callable[[Theme], "Figure"]


def panels(theme: Theme, width: float, height: float, ratios: tuple[float, ...] = (1.0,)) -> tuple[Figure, list[Any]]:
    """A figure of that size in inches, with axes side by side whose widths have those ratios."""
    figure, first = new_figure(theme, width, height)
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03, wspace=0.05)
    grid = figure.add_gridspec(1, len(ratios), width_ratios=ratios)
    first.set_subplotspec(grid[0])
    axes = [first, *(figure.add_subplot(grid[k], facecolor=theme.paper) for k in range(1, len(ratios)))]
    for one in axes:
        one.tick_params(colors=theme.ink, labelsize=SMALL, length=0)
        one.set_axisbelow(True)
        for spine in one.spines.values():
            spine.set_visible(False)
    return figure, axes


def labelled(axes: Any, theme: Theme, x: str = "", y: str = "", title: str = "") -> None:
    """Names of the axes, and lines across."""
    axes.set_xlabel(x, color=theme.ink, fontsize=LETTERS)
    axes.set_ylabel(y, color=theme.ink, fontsize=LETTERS)
    if title:
        axes.set_title(title, color=theme.ink, fontsize=LETTERS, loc="left", pad=4)


def legend(axes: Any, theme: Theme, **where: Any) -> None:
    axes.legend(frameon=False, fontsize=SMALL, labelcolor=theme.ink, handlelength=1.4, borderpad=0.2, **where)


def save(draw: Draw, folder: Path, stem: str) -> None:
    """STEM.png (300 dpi), .pdf and .svg for a paper; STEM-light.png and -dark.png for the page."""
    figure = draw(PAPER)
    write_bytes(folder / f"{stem}.png", png(figure, DPI))
    for form in VECTOR:
        write_bytes(folder / f"{stem}.{form}", vector(figure, form, stem))
    for theme in (LIGHT, DARK):
        write_bytes(folder / f"{stem}-{theme.name}.png", png(draw(theme), 200))
