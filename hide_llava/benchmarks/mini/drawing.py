"""Pictures of the mini world: coloured shapes on a grid of 12-pixel cells, and bar charts.

Everything is drawn by Pillow at four times the size and reduced, so that small shapes keep smooth edges.
A cell is as large as one patch of the small vision tower, which makes sight cheap to learn on a CPU.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import cos, pi, sin

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

CELL = 12
SIDE = 48
_UP = 4

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 44),
    "green": (44, 150, 66),
    "blue": (44, 84, 214),
    "yellow": (244, 214, 48),
    "purple": (146, 60, 190),
    "orange": (246, 138, 32),
}
SHAPES = ("circle", "square", "triangle", "cross", "diamond", "star")
SIZES = {"small": 4.0, "large": 5.8}  # radius in pixels
FILLS = ("filled", "outlined", "striped", "dotted")
BACKGROUNDS = ("plain", "paper", "board", "studio", "table", "field")


@dataclass(frozen=True)
class Thing:
    """One shape. `cell` = (column, row); a "huge" thing has its own centre and radius in pixels instead."""

    shape: str
    color: str
    size: str
    cell: tuple[int, int] = (0, 0)
    fill: str = "filled"
    center: tuple[float, float] = (0.0, 0.0)
    radius: float = 0.0


@dataclass
class Scene:
    """What is in one picture: things or bars (colour, level 1–5), and the background.

    `grid` = (columns, rows) of 12-pixel cells, so the picture is 12·columns × 12·rows pixels.
    """

    background: str
    grid: tuple[int, int] = (4, 4)
    things: list[Thing] = field(default_factory=list)
    bars: list[tuple[str, int]] = field(default_factory=list)
    blur: float = 0.0
    noise: float = 4.0


def _backdrop(name: str, width: int, height: int, rng: np.random.Generator) -> np.ndarray:
    """Background of shape (height, width, 3), float 0–255."""
    y = np.linspace(0, 1, height)[:, None, None]
    x = np.arange(width)[None, :, None]
    if name == "plain":
        tone = np.full(3, rng.uniform(165, 210)) + rng.uniform(-8, 8, 3)
    elif name == "paper":
        tone = np.full(3, rng.uniform(244, 255))
    elif name == "board":
        tone = np.array([34.0, 40.0, 48.0]) + rng.uniform(-8, 8)
    elif name == "studio":
        tone = 110 + 90 * y + rng.uniform(-12, 12) + np.zeros(3)
    elif name == "table":
        tone = np.array([196.0, 160.0, 122.0]) + rng.uniform(-10, 10) - 26 * ((x + int(rng.integers(6))) % 6 < 1)
    else:  # field: sky above, meadow below
        sky, meadow = np.array([176.0, 214.0, 244.0]), np.array([168.0, 206.0, 138.0])
        tone = np.where(y < rng.uniform(0.25, 0.45), sky, meadow) + rng.uniform(-8, 8)
    return np.broadcast_to(tone, (height, width, 3)).astype(float)


def _outline(shape: str, cx: float, cy: float, r: float) -> list[tuple[float, float]]:
    """Corner points of a polygon shape with radius r."""
    if shape == "square":
        corners = [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)]
    elif shape == "triangle":
        corners = [(0, -1), (1, 0.85), (-1, 0.85)]
    elif shape == "diamond":
        corners = [(0, -1.05), (0.8, 0), (0, 1.05), (-0.8, 0)]
    elif shape == "cross":
        a = 0.36
        corners = [(-a, -1), (a, -1), (a, -a), (1, -a), (1, a), (a, a), (a, 1), (-a, 1), (-a, a), (-1, a), (-1, -a)]
        corners.append((-a, -a))
    else:  # star
        radii = [1.08 if i % 2 == 0 else 0.45 for i in range(10)]
        corners = [(q * sin(i * pi / 5), -q * cos(i * pi / 5)) for i, q in enumerate(radii)]
    return [(cx + r * px, cy + r * py) for px, py in corners]


def _mask(thing: Thing, center: tuple[float, float], radius: float, size: tuple[int, int]) -> Image.Image:
    """Coverage of one thing on the enlarged canvas, mode L."""
    cx, cy, r = center[0] * _UP, center[1] * _UP, radius * _UP
    mask = Image.new("L", size, 0)
    draw = ImageDraw.Draw(mask)

    def shape(scale: float, value: int) -> None:
        if thing.shape == "circle":
            draw.ellipse([cx - r * scale, cy - r * scale, cx + r * scale, cy + r * scale], fill=value)
        else:
            draw.polygon(_outline(thing.shape, cx, cy, r * scale), fill=value)

    shape(1.0, 255)
    if thing.fill == "outlined":
        shape(0.62, 0)
    elif thing.fill == "striped":
        for y in range(int(cy - 2 * r), int(cy + 2 * r), 6 * _UP):
            draw.rectangle([0, y, size[0], y + 2 * _UP - 1], fill=0)
    elif thing.fill == "dotted":
        step = 7 * _UP
        for y in range(int(cy - 2 * r), int(cy + 2 * r), step):
            for x in range(int(cx - 2 * r), int(cx + 2 * r), step):
                draw.ellipse([x, y, x + 2.6 * _UP, y + 2.6 * _UP], fill=0)
    return mask


def render(scene: Scene, rng: np.random.Generator) -> Image.Image:
    """Draw the scene; `rng` moves the things by less than a pixel and adds sensor noise. RGB picture."""
    width, height = scene.grid[0] * CELL, scene.grid[1] * CELL
    back = _backdrop(scene.background, width, height, rng)
    canvas = Image.fromarray(back.clip(0, 255).astype(np.uint8)).resize((width * _UP, height * _UP), Image.NEAREST)
    for thing in scene.things:
        center, radius = thing.center, thing.radius
        if thing.size != "huge":
            slack = 0.8 if thing.size == "small" else 0.2
            shift = rng.uniform(-slack, slack, 2)
            center = (CELL * (thing.cell[0] + 0.5) + shift[0], CELL * (thing.cell[1] + 0.5) + shift[1])
            radius = SIZES[thing.size]
        ink = np.clip(np.array(COLORS[thing.color]) + rng.integers(-12, 13, 3), 0, 255)
        canvas.paste(tuple(int(v) for v in ink), mask=_mask(thing, center, radius, canvas.size))
    draw = ImageDraw.Draw(canvas)
    for column, (color, level) in enumerate(scene.bars):
        left = CELL * column + 2 + rng.uniform(-1, 1)
        box = [left, height - 2 - 9 * level, left + 8, height - 2]
        draw.rectangle([v * _UP for v in box], fill=COLORS[color])
    if scene.bars:
        draw.line([0, (height - 1.5) * _UP, width * _UP, (height - 1.5) * _UP], fill=(30, 30, 30), width=_UP)
    image = canvas.reduce(_UP)
    if scene.blur:
        image = image.filter(ImageFilter.GaussianBlur(scene.blur))
    pixels = np.asarray(image, dtype=float) + rng.normal(0, scene.noise, (height, width, 3))
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))


def patch_labels(scene: Scene) -> np.ndarray:
    """What each patch of the padded 48×48 picture shows: (16, 4) ints = shape, colour, size (0 = nothing), place.

    Used only to teach the vision tower. Bars are shape 7 and their level sits in the size column (3 + level). The
    place is the patch's own number: without it the patch features hardly say where they are.
    """
    labels = np.zeros((4, 4, 3), dtype=np.int64)
    left, top = (4 - scene.grid[0]) // 2, (4 - scene.grid[1]) // 2
    names = list(COLORS)
    for thing in scene.things:
        row = [1 + SHAPES.index(thing.shape), 1 + names.index(thing.color)]
        if thing.size != "huge":
            labels[top + thing.cell[1], left + thing.cell[0]] = [*row, 1 + list(SIZES).index(thing.size)]
            continue
        for y in range(4):
            for x in range(4):
                distance = np.hypot(CELL * (x + 0.5 - left) - thing.center[0], CELL * (y + 0.5 - top) - thing.center[1])
                if distance < 0.75 * thing.radius:
                    labels[y, x] = [*row, 3]
    for column, (color, level) in enumerate(scene.bars):
        for y in range(4):
            if 46 - 9 * level < CELL * (y + 0.75):
                labels[y, column] = [7, 1 + names.index(color), 3 + level]
    return np.column_stack([labels.reshape(16, 3), np.arange(16)])


LABEL_SIZES = (8, 7, 9, 16)  # number of classes in the four columns of `patch_labels`
