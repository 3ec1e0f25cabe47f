"""How figures look: themes, heat maps, labels at the ends of lines. Needs matplotlib (extra `report`)."""

from __future__ import annotations

import importlib.util
import io
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hide_llava.errors import UserError
from hide_llava.results.matrix import Cell

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.text import Text

MARKERS = "osD^vPX*"
LETTER = 0.08  # inches, of the labels' 9 points


@dataclass(frozen=True)
class Theme:
    """Ink on paper; `ramp` runs from "little" to "much", `series` are the tasks' colours."""

    name: str
    paper: str
    ink: str
    muted: str
    grid: str
    ramp: tuple[str, ...]
    series: tuple[str, ...]


LIGHT = Theme(
    "light",
    "#ffffff",
    "#1b1f24",
    "#667080",
    "#e2e6eb",
    ("#f1f5fa", "#c3d7ec", "#7fb0d6", "#3b80b9", "#0f4c81"),
    ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#3f97d0", "#7a5195", "#404040"),
)
DARK = Theme(
    "dark",
    "#161a20",
    "#e8ebef",
    "#98a2b0",
    "#2d343e",
    ("#1c232d", "#1f3f5c", "#2668a0", "#4f9ad3", "#b5dcfa"),
    ("#56b4e9", "#e69f00", "#2bc79a", "#dd9cc2", "#f0e442", "#8ab8ff", "#b39ddb", "#d0d0d0"),
)


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def require_matplotlib() -> None:
    """UserError with the command to run when matplotlib is not installed."""
    if not can_draw():
        raise UserError("Figures need matplotlib: pip install -e '.[report]'.")


def new_figure(theme: Theme, width: float, height: float) -> tuple[Figure, Any]:
    """A figure of that size in inches and its bare axes."""
    figure = _figure(theme, width, height, 0.08)
    return figure, _bare(figure.add_subplot(facecolor=theme.paper), theme, 9)


def new_panels(theme: Theme, width: float, height: float, rows: int, columns: int) -> tuple[Figure, list[Any]]:
    """A figure of that size in inches with a grid of bare axes that share both scales, row by row."""
    figure = _figure(theme, width, height, 0.06)
    grid = figure.subplots(
        rows, columns, sharex=True, sharey=True, squeeze=False, subplot_kw={"facecolor": theme.paper}
    )
    return figure, [_bare(axes, theme, 8) for axes in grid.flat]


def _figure(theme: Theme, width: float, height: float, pad: float) -> Figure:
    require_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), facecolor=theme.paper, layout="constrained")
    figure.get_layout_engine().set(w_pad=pad, h_pad=pad)
    return figure


def _bare(axes: Any, theme: Theme, size: float) -> Any:
    axes.tick_params(colors=theme.ink, labelsize=size, length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return axes


def png(figure: Figure, dpi: int = 160) -> bytes:
    """The figure as PNG bytes."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=dpi, facecolor=figure.get_facecolor(), metadata={"Software": None})
    return out.getvalue()


def heat_map(
    theme: Theme, rows: list[list[Cell]], row_names: list[str], columns: list[str], top: float, digits: int,
    bottom: float = 0.0,
) -> Figure:  # fmt: skip
    """Coloured cells with their values printed on them, the lightest at `bottom`, the darkest at `top`; None is left blank."""
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.patches import Rectangle

    row_names, columns = [cut(name, 30) for name in row_names], [cut(name) for name in columns]
    longest = max(map(len, row_names))
    figure, axes = new_figure(theme, 1.0 + 0.085 * longest + 0.98 * len(columns), 0.95 + 0.46 * len(row_names))
    ramp = LinearSegmentedColormap.from_list(theme.name, theme.ramp)
    for i, row in enumerate(rows):
        for j, value in enumerate(row):
            if value is None:
                continue
            colour = ramp(min(max((value - bottom) / (top - bottom), 0.0), 1.0))
            axes.add_patch(Rectangle((j + 0.02, i + 0.03), 0.96, 0.94, facecolor=colour, linewidth=0))
            text = f"{value:.{digits}f}"
            axes.text(j + 0.5, i + 0.52, text, ha="center", va="center", fontsize=10, color=ink_on(colour))
    axes.set(xlim=(0, len(columns)), ylim=(len(row_names), 0))
    axes.set_xticks([j + 0.5 for j in range(len(columns))], columns)
    axes.set_yticks([i + 0.5 for i in range(len(row_names))], row_names)
    axes.xaxis.tick_top()
    if max(map(len, columns)) > 11:
        axes.tick_params(axis="x", labelrotation=20)
    return figure


def ink_on(colour: tuple[float, ...]) -> str:
    """Black or white, whichever reads better on that colour (WCAG relative luminance)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#ffffff" if 1.05 / (luminance + 0.05) > (luminance + 0.05) / 0.05 else "#10141a"


def cut(text: str, letters: int = 20) -> str:
    """A name that is too long for a figure: its beginning and its end."""
    return text if len(text) <= letters else f"{text[: letters - 6].rstrip()}…{text[-5:]}"


def stage_ticks(axes: Any, titles: list[str], width: float) -> None:
    """Names of the stages below `width` inches of axis: on two lines, or slanted, where they would touch side by side."""
    letters = max(1, int((width / max(1, len(titles)) - LETTER) / LETTER))
    lines = [textwrap.wrap(title, letters, break_long_words=False) for title in titles]
    upright = all(len(own) <= 2 and max(map(len, own), default=0) <= letters for own in lines)
    axes.set_xticks(range(len(titles)), ["\n".join(own) for own in lines] if upright else map(cut, titles))
    if not upright:
        slant(axes.get_xticklabels(), "right")


def slant(texts: Iterable[Text], side: str) -> None:
    """Turn names that would touch each other; `side` of a name stays where it was."""
    for text in texts:
        text.set(rotation=30, ha=side, rotation_mode="anchor")


def end_labels(axes: Any, ends: list[list], theme: Theme) -> None:
    """Names at the right margin at the height of the line's end, pushed apart so that none overlap."""
    low, high = axes.get_ylim()
    gap = (high - low) * 0.062
    ends.sort(key=lambda end: end[0])
    heights: list[float] = []
    for value, *_ in ends:
        heights.append(max(value, heights[-1] + gap) if heights else value)
    excess = heights[-1] - high if heights else 0.0
    if excess > 0:
        heights[-1] -= excess
        for k in range(len(heights) - 2, -1, -1):
            heights[k] = min(heights[k], heights[k + 1] - gap)
    right = axes.get_xlim()[1]
    for (value, at, text, colour), height in zip(ends, heights):
        axes.annotate(
            text,
            xy=(at, value),
            xytext=(right + 0.12, height),
            color=colour,
            fontsize=9,
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": theme.grid, "linewidth": 0.8, "shrinkB": 4},
        )
