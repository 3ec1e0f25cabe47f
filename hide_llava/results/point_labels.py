"""Names beside the points of a scatter plot, none on another, none on a point or on its error bar."""

from __future__ import annotations

from collections.abc import Sequence
from math import cos, hypot, pi, sin
from typing import TYPE_CHECKING, Any

from hide_llava.results.drawing import Theme

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

MARK = 5.0  # half of what a marker takes, in points
NEAR, FARTHEST, STEP = 2.0, 90.0, 6.0  # from a marker's edge to the name, in points
DIRECTIONS = 24
LONG = 8.0  # a name farther away is joined to its point by a line
ON_A_NAME, ON_A_POINT, ON_A_LINE = 100.0, 60.0, 20.0  # what it costs, against one per point of distance


def label_points(
    figure: Figure, axes: Any, points: Sequence[tuple[float, float]], errors: Sequence[float], names: Sequence[str],
    theme: Theme, size: float = 8.5,
) -> list[Any]:  # fmt: skip
    """Write each name near its point (x, y in data); returns matplotlib's texts. errors: half the height of the bars, in data.

    The crowded ones choose first: of places around the point, nearer ones before farther ones, the first that is free. Call
    it when all else is drawn: it lays the figure out once and for all, as places are only known then.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    scale = figure.dpi / 72
    middles = [tuple(axes.transData.transform(point)) for point in points]
    texts = [axes.annotate(name, point, (0, 0), textcoords="offset points", ha="center", va="center", fontsize=size,
                           color=theme.ink, annotation_clip=False) for name, point in zip(names, points)]  # fmt: skip
    boxes = [text.get_window_extent(renderer) for text in texts]
    room, marks = axes.get_window_extent(renderer), [_around(x, y, MARK * scale, MARK * scale) for x, y in middles]
    placed: dict[int, Bbox] = {}
    lines = [tuple(tuple(axes.transData.transform((x, y + sign * error))) for sign in (-1, 1))
             for (x, y), error in zip(points, errors) if error]  # fmt: skip
    for k in sorted(range(len(texts)), key=lambda k: _room_around(middles, k)):
        width, height = boxes[k].width / 2 + scale, boxes[k].height / 2
        places = _places(middles[k], width, height, scale)
        distance, box = min(places, key=lambda place: place[0] + _cost(place[1], middles[k], marks, placed, lines, room))
        placed[k] = box
        x, y = (box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2
        texts[k].set_position(((x - middles[k][0]) / scale, (y - middles[k][1]) / scale))
        if distance > LONG:
            lines.append((middles[k], (x, y)))
            end = (min(max(middles[k][0], box.x0), box.x1), min(max(middles[k][1], box.y0), box.y1))
            line = {"arrowstyle": "-", "color": theme.muted, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3}
            axes.annotate("", points[k], tuple((e - m) / scale for e, m in zip(end, middles[k])), textcoords="offset points",
                          annotation_clip=False, zorder=1, arrowprops=line)  # fmt: skip
    return texts


def _around(x: float, y: float, width: float, height: float) -> Bbox:
    from matplotlib.transforms import Bbox

    return Bbox.from_extents(x - width, y - height, x + width, y + height)


def _room_around(middles: list[tuple[float, float]], k: int) -> float:
    return min((hypot(x - middles[k][0], y - middles[k][1]) for i, (x, y) in enumerate(middles) if i != k), default=0.0)


def _places(middle: tuple[float, float], width: float, height: float, scale: float) -> list[tuple[float, Bbox]]:
    """(distance in points, box) around a point, on rings that grow; in each direction the box begins at that distance."""
    found, distance = [], NEAR
    while distance <= FARTHEST:
        for k in range(DIRECTIONS):
            x, y = cos(2 * pi * k / DIRECTIONS), sin(2 * pi * k / DIRECTIONS)
            reach = (MARK + distance) * scale
            found.append((distance, _around(middle[0] + x * (reach + width), middle[1] + y * (reach + height), width, height)))
        distance += STEP
    return found


def _cost(
    box: Bbox, middle: tuple[float, float], marks: list[Bbox], placed: dict[int, Bbox],
    lines: list[tuple[tuple[float, float], tuple[float, float]]], room: Bbox,
) -> float:  # fmt: skip
    from matplotlib.path import Path

    centre = ((box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2)
    own = Path([middle, centre])
    inside = box.x0 >= room.x0 and box.x1 <= room.x1 and box.y0 >= room.y0 and box.y1 <= room.y1
    names = sum(box.overlaps(other) for other in placed.values()) + (not inside)
    crossed = sum(own.intersects_bbox(other, filled=False) for other in placed.values())
    crossed += sum(Path(line).intersects_bbox(box, filled=False) for line in lines)
    return ON_A_NAME * names + ON_A_POINT * sum(box.overlaps(mark) for mark in marks) + ON_A_LINE * crossed
