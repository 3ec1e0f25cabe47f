"""The general mixture that gives the small base its sight and language.

Questions about colours, shapes, counts, positions, comparisons and charts in plain phrasings, plus text-only
practice (repeating words, looking things up in a list, sums). None of the six tasks' prompts, option letters,
class words (outside of word repetition) or caption styles is used, so those remain to be learned.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from hide_llava.benchmarks.mini.drawing import BACKGROUNDS, FILLS, SHAPES, Scene, Thing
from hide_llava.benchmarks.mini.scenes import COLOR_NAMES, chart, huge, pick, plural, sample, scattered

NAMES = ("tom", "ann", "kim", "sam", "ben", "eva", "max", "lily", "leo", "mia", "jack", "rose")
ORDINALS = ("first", "second", "third", "fourth")
PLACES = {"plain": "plain", "paper": "white", "board": "dark", "studio": "gray", "table": "wooden", "field": "green"}
Turn = tuple[str, str, str]  # question, answer, family


@dataclass(frozen=True)
class Sample:
    """A picture (or none) with one or more turns (question, answer, family)."""

    scene: Scene | None
    turns: tuple[Turn, ...]


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _unique(things: list[Thing], key) -> list[Thing]:
    """Things whose key occurs once."""
    counts = Counter(key(thing) for thing in things)
    return [thing for thing in things if counts[key(thing)] == 1]


def place(thing: Thing, grid: tuple[int, int]) -> str:
    """Quadrant of a thing, such as "top left"."""
    vertical = "top" if thing.cell[1] < grid[1] / 2 else "bottom"
    return f"{vertical} {'left' if thing.cell[0] < grid[0] / 2 else 'right'}"


def describe(scene: Scene) -> str:
    """A plain sentence on the whole picture, for the contrastive loss."""
    if scene.bars:
        return "a chart with bars in " + ", ".join(color for color, _ in scene.bars)
    where = f"{PLACES[scene.background]} background"
    if scene.blur > 3:
        return f"a noisy picture of nothing on a {where}"
    kind = "a blurry picture" if scene.blur else "a picture"
    huge_fill = "".join(f"{t.fill} " for t in scene.things if t.size == "huge")
    names = [f"{t.size} {t.color} {t.shape}" for t in scene.things]
    if len(names) > 3:
        return f"{kind} of {len(names)} shapes on a {where}"
    return f"{kind} of a {huge_fill}{' and a '.join(names)} on a {where}"


def _lookup(rng: np.random.Generator, values: list[str], asked: str, hint: str) -> tuple[str, str]:
    """A list of names with values, and the question who has the value described by `hint`."""
    names = sample(rng, NAMES, len(values))
    mark = pick(rng, (": ", ") ", ". ", " has ", " - "))
    lines = [f"{name}{mark}{value}" for name, value in zip(names, values)]
    question = pick(rng, ("Who has {}?", "Which name goes with {}?", "Whose is {}?")).format(hint)
    parts = [question, *lines] if rng.integers(3) else [*lines, question]
    return "\n".join(parts), names[values.index(asked)]


def _attribute_turn(rng: np.random.Generator, scene: Scene) -> Turn | None:
    """Colour, shape, size or place of a thing that the question identifies."""
    things = scene.things
    kind = int(rng.integers(6))
    if kind == 0 and (found := _unique(things, lambda t: t.shape)):
        t = pick(rng, found)
        text = pick(rng, ("What color is the {}?", "What is the color of the {}?", "Name the color of the {}."))
        return text.format(t.shape), t.color, "color"
    if kind == 1 and (found := _unique(things, lambda t: t.color)):
        t = pick(rng, found)
        text = pick(rng, ("What shape is {}?", "Which shape is {}?", "Name the {} shape."))
        return text.format(t.color), t.shape, "shape"
    found = _unique(things, lambda t: (t.shape, t.color))
    if not found:
        return None
    t = pick(rng, found)
    if kind == 2:
        return f"Is the {t.color} {t.shape} small or large?", t.size, "size"
    if kind == 3:
        text = pick(rng, ("Where is the {}?", "In which corner of the picture is the {}?"))
        return text.format(f"{t.color} {t.shape}"), place(t, scene.grid), "place"
    corner = place(t, scene.grid)
    if kind == 4 and sum(place(other, scene.grid) == corner for other in things) == 1:
        text = pick(rng, ("What is at the {}?", "Which object is at the {}?"))
        return text.format(corner), f"{t.color} {t.shape}", "corner"
    other = pick(rng, found)
    if kind == 5 and other is not t:
        across = bool(rng.integers(2))
        a, b = (t.cell[0], other.cell[0]) if across else (t.cell[1], other.cell[1])
        if a != b:
            less, more = ("left of", "right of") if across else ("above", "below")
            word = pick(rng, (less, more))
            truth = (a < b) == (word == less)
            return f"Is the {t.color} {t.shape} {word} the {other.color} {other.shape}?", _yes(truth), "relation"
    return None


def _count_turn(rng: np.random.Generator, scene: Scene) -> Turn | None:
    """Counts of all, some, or all other things."""
    things, kind = scene.things, int(rng.integers(7))
    t = pick(rng, things) if rng.random() < 0.85 else Thing(pick(rng, SHAPES), pick(rng, COLOR_NAMES), "small")
    what, match = pick(
        rng,
        (
            (f"{t.color} {plural(t.shape)}", lambda o: (o.color, o.shape) == (t.color, t.shape)),
            (f"{plural(t.shape)}", lambda o: o.shape == t.shape),
            (f"{t.color} shapes", lambda o: o.color == t.color),
        ),
    )
    hits = sum(match(o) for o in things)
    if kind == 0:
        text = pick(rng, ("How many objects are there?", "How many shapes do you see?", "Count the objects."))
        return text, str(len(things)), "count all"
    if kind in (1, 2):
        text = pick(rng, ("How many {} are there?", "Count the {}.", "What is the number of {}?"))
        return text.format(what), str(hits), "count some"
    if kind in (3, 4):
        text = pick(rng, ("How many objects are there besides the {}?", "Ignore the {}. Count the others."))
        return text.format(what), str(len(things) - hits), "count others"
    if kind == 5:
        return pick(rng, ("Is there any of these: {}?", "Do you see {}?")).format(what), _yes(hits > 0), "exists"
    a, b = sample(rng, SHAPES, 2)
    counts = Counter(o.shape for o in things)
    if counts[a] == counts[b]:
        return None
    return f"Are there more {plural(a)} than {plural(b)}?", _yes(counts[a] > counts[b]), "more"


def _list_turn(rng: np.random.Generator, scene: Scene) -> Turn | None:
    """Name the things in reading order, or find one in a list."""
    things = scene.things
    if rng.integers(2) and len(things) <= 4:
        text = pick(rng, ("List the objects.", "Name everything in the picture.", "Describe the shapes you see."))
        return text, ", ".join(f"{t.color} {t.shape}" for t in things), "list"
    kind = int(rng.integers(3))
    if kind == 0 and (found := _unique(things, lambda t: t.shape)):
        t = pick(rng, found)
        values = [t.color, *sample(rng, [c for c in COLOR_NAMES if c != t.color], int(rng.integers(1, 4)))]
        asked, hint = t.color, f"the color of the {t.shape}"
    elif kind == 1 and (found := _unique(things, lambda t: t.color)):
        t = pick(rng, found)
        values = [t.shape, *sample(rng, [s for s in SHAPES if s != t.shape], int(rng.integers(1, 4)))]
        asked, hint = t.shape, f"the {t.color} shape"
    else:
        asked, hint = str(len(things)), "the number of objects"
        values = [asked, *sample(rng, [str(n) for n in range(1, 9) if n != len(things)], int(rng.integers(1, 4)))]
    question, answer = _lookup(rng, [values[int(i)] for i in rng.permutation(len(values))], asked, hint)
    return question, answer, "lookup image"


def _scene_turn(rng: np.random.Generator, scene: Scene) -> Turn | None:
    """The background, or the fill of a huge thing."""
    huge_things = [t for t in scene.things if t.size == "huge"]
    if not huge_things and rng.integers(3):
        return None
    if not huge_things or rng.integers(6) == 0:
        return "What is the background like?", PLACES[scene.background], "background"
    t, kind = huge_things[0], int(rng.integers(4))
    if kind == 0:
        return "How is the shape drawn?", t.fill, "fill"
    if kind == 1:
        return pick(rng, ("What color is the big shape?", "Name the main color.")), t.color, "color"
    if kind == 2:
        return pick(rng, ("What shape is it?", "Name the big shape.")), t.shape, "shape"
    return pick(rng, ("What is this?", "Name the big thing.")), f"{t.color} {t.shape}", "whole"


def _chart_turn(rng: np.random.Generator, scene: Scene) -> Turn | None:
    """Colours, heights and order of bars."""
    bars, kind = scene.bars, int(rng.integers(7))
    high = bool(rng.integers(2))
    extreme = (max if high else min)(bars, key=lambda bar: bar[1])[0]
    word = pick(rng, ("highest", "tallest") if high else ("lowest", "shortest"))
    color, level = pick(rng, bars)
    if kind in (0, 1):
        texts = ("What is the color of the {} bar?", "Which bar is the {}?", "Name the bar with the {} value.")
        text = pick(rng, texts)
        return text.format(word), extreme, "bar extreme"
    if kind == 2:
        text = pick(rng, ("How high is the {} bar?", "What is the value of {}?"))
        return text.format(color), str(level), "bar height"
    if kind == 3:
        other, height = pick(rng, bars)
        if other == color:
            return "How many bars are there?", str(len(bars)), "bar count"
        return f"Is {color} higher than {other}?", _yes(level > height), "bar compare"
    if kind == 4:
        return "List the bars.", ", ".join(c for c, _ in bars), "bar list"
    colors = [bars[int(i)][0] for i in rng.permutation(len(bars))]
    question, answer = _lookup(rng, colors, extreme, f"the color of the {word} bar")
    return question, answer, "lookup chart"


def _scene(rng: np.random.Generator) -> Scene:
    """A random picture of any kind, in any background, some of them not square."""
    kind = rng.random()
    background = pick(rng, BACKGROUNDS)
    if kind < 0.2:
        return chart(rng, int(rng.integers(3, 5)))
    if kind < 0.36:
        return huge(rng, pick(rng, SHAPES), pick(rng, COLOR_NAMES), pick(rng, FILLS), background)
    grid = pick(rng, ((4, 4), (4, 4), (4, 2), (2, 4)))
    blur = float(pick(rng, (0.0, 0.0, 0.0, 0.7)))
    colors = tuple(sample(rng, COLOR_NAMES, pick(rng, (1, 2, 3, 6, 6))))
    shapes = tuple(sample(rng, SHAPES, pick(rng, (1, 2, 3, 6, 6))))
    sizes = pick(rng, (("small", "large"), ("large",)))
    count = int(rng.integers(1, 4)) if rng.integers(3) == 0 else int(rng.integers(2, 8))
    return scattered(rng, count, background, grid, colors, shapes, sizes, blur, float(rng.uniform(1, 9)))


def _text_turn(rng: np.random.Generator, words: list[str]) -> Turn:
    """Practice without a picture."""
    kind = int(rng.integers(6))
    if kind <= 1:
        text = " ".join(sample(rng, words, int(rng.integers(1, 6))))
        return pick(rng, ("Repeat: {}", "Say this again: {}", "Copy the words: {}")).format(text), text, "repeat"
    if kind <= 3:
        pool = pick(rng, (COLOR_NAMES, SHAPES, tuple(str(n) for n in range(9)), tuple(words)))
        values = sample(rng, pool, int(rng.integers(2, 5)))
        asked = pick(rng, values)
        return (*_lookup(rng, values, asked, asked), "lookup text")
    if kind == 4:
        values = sample(rng, pick(rng, (COLOR_NAMES, SHAPES, tuple(words))), int(rng.integers(2, 5)))
        spot = int(rng.integers(len(values)))
        return f"Which is {ORDINALS[spot]} in this list: {', '.join(values)}?", values[spot], "ordinal"
    a = int(rng.integers(0, 9))
    b = int(rng.integers(0, a + 1))
    return pick(rng, ("What is {} minus {}?", "Take {1} away from {0}.")).format(a, b), str(a - b), "minus"


def draw(rng: np.random.Generator, words: list[str], turns: int) -> Sample:
    """One conversation of `turns` turns; one in twelve has no picture. `words` feed the repetition exercise."""
    if rng.integers(12) == 0:
        return practice(rng, words, turns)
    scene = _scene(rng)
    if scene.bars:
        makers = (_chart_turn,)
    elif scene.things[0].size == "huge":
        makers = (_scene_turn,)
    else:
        makers = (_attribute_turn, _attribute_turn, _count_turn, _count_turn, _list_turn, _scene_turn)
    found: list[Turn] = []
    while len(found) < turns:
        if rng.random() < 0.08:
            found.append(_text_turn(rng, words))
        elif turn := pick(rng, makers)(rng, scene):
            found.append(turn)
    return Sample(scene, tuple(found))


def practice(rng: np.random.Generator, words: list[str], turns: int) -> Sample:
    """A conversation without a picture."""
    return Sample(None, tuple(_text_turn(rng, words) for _ in range(turns)))
