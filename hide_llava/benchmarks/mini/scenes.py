"""Random scenes of the mini world. A seeded numpy Generator decides everything."""

from __future__ import annotations

import numpy as np

from hide_llava.benchmarks.mini.drawing import COLORS, SHAPES, Scene, Thing

COLOR_NAMES = tuple(COLORS)


def pick(rng: np.random.Generator, options):
    """One element of a sequence, uniformly."""
    return options[int(rng.integers(len(options)))]


def sample(rng: np.random.Generator, options, count: int) -> list:
    """`count` different elements, in random order."""
    return [options[int(i)] for i in rng.permutation(len(options))[:count]]


def plural(shape: str) -> str:
    """Several of a shape: circles, crosses."""
    return shape + ("es" if shape.endswith("s") else "s")


def scattered(
    rng: np.random.Generator,
    count: int,
    background: str,
    grid: tuple[int, int] = (4, 4),
    colors: tuple[str, ...] = COLOR_NAMES,
    shapes: tuple[str, ...] = SHAPES,
    sizes: tuple[str, ...] = ("small", "large"),
    blur: float = 0.0,
    noise: float = 4.0,
) -> Scene:
    """`count` shapes in different cells, in reading order."""
    cells = [(x, y) for y in range(grid[1]) for x in range(grid[0])]
    chosen = sorted(sample(rng, cells, count), key=lambda cell: (cell[1], cell[0]))
    things = [Thing(pick(rng, shapes), pick(rng, colors), pick(rng, sizes), cell) for cell in chosen]
    return Scene(background, grid, things, blur=blur, noise=noise)


def huge(rng: np.random.Generator, shape: str, color: str, fill: str, background: str) -> Scene:
    """One shape that fills most of a 48×48 picture."""
    radius = float(rng.uniform(15, 21))
    center = (24 + float(rng.uniform(-2, 2)), 24 + float(rng.uniform(-2, 2)))
    thing = Thing(shape, color, "huge", fill=fill, center=center, radius=radius)
    return Scene(background, things=[thing])


def chart(rng: np.random.Generator, count: int) -> Scene:
    """A bar chart: `count` bars of different colours and different heights (levels 1 to 5)."""
    colors = sample(rng, COLOR_NAMES, count)
    levels = sample(rng, (1, 2, 3, 4, 5), count)
    return Scene("paper", bars=list(zip(colors, levels)), noise=2.0)
