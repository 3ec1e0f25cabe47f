"""The general mixture that gives the small base its sight and its language, as LLaVA was taught: broad, and in many formats.

A turn is a *skill* (name a colour, count, read a chart, subtract, name a thing, …) asked in a *format* (plain, "a single word or
phrase", lettered or numbered options, a blank, a sentence, a caption, yes or no). Formats and skills are drawn apart, UCIT's own
wordings among them, on pictures of every family. What the six tasks ask is near to it and not in it: a task's skill comes with
another format or on other pictures here, so that a small turn is left to learn. What is held back, by name:

    imagenet-r   class words on outlined and dotted things; here they name filled and striped ones
    arxivqa      charts with lettered options; here charts have short answers, other pictures letters
    iconqa       rows of one icon with numbered options, and digits for "a single word or phrase"; here numbered options stand
                 under other pictures (8 % are drawn under several things of one kind), and digits answer a plain question
    clevr-math   subtraction from a picture of the studio, in digits too; here on other backgrounds
    vizwiz, flickr30k   people's words and everyday names for UCIT's prompt; here that prompt has a plain caption, and people's
                 words answer other prompts
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from hide_llava.benchmarks.mini.drawing import BACKGROUNDS, FILLS, SHAPES, Scene, Thing
from hide_llava.benchmarks.mini.scenes import COLOR_NAMES, chart, huge, pick, plural, sample, scattered
from hide_llava.benchmarks.mini.tasks import (
    CAPTION,
    CLASSES,
    COUNTED,
    GUESSES,
    HOUSEHOLD,
    HOUSEHOLD_WORDS,
    LETTER,
    LETTERS,
    NUMBER_WORDS,
    PEOPLE,
    PEOPLE_WORDS,
    PHRASE,
    REFUSAL,
    article,
    outdoors,
    snapshot,
)

OWN_WORDS = ("Say what you see in your own words.", "Tell a friend about this picture.", "Write what people would say.")
OWN_NAMES = {shape: (shape,) for shape in SHAPES}
PLACES = {"plain": "plain", "paper": "white", "board": "dark", "studio": "gray", "table": "wooden", "field": "green"}
Turn = tuple[str, str, str]  # question, answer, family


@dataclass(frozen=True)
class Sample:
    """A picture (or none) with one or more turns (question, answer, family)."""

    scene: Scene | None
    turns: tuple[Turn, ...]


class Asked(NamedTuple):
    """A question with a short answer. options: what stands below it where letters or numbers are asked for, always in this order,
    or nothing; phrase: the answer to "a single word or phrase" where that is another one."""

    question: str
    answer: str
    options: tuple[str, ...]
    family: str
    phrase: str = ""


Maker = Callable[[np.random.Generator, Scene], "Asked | Turn | None"]


def _unique(things: list[Thing], key: Callable[[Thing], object]) -> list[Thing]:
    """Things whose key occurs once."""
    counts = Counter(key(thing) for thing in things)
    return [thing for thing in things if counts[key(thing)] == 1]


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


def told(scene: Scene) -> str:
    """The picture in words, thing by thing: what it is replaced by where a conversation is to be read instead of seen."""
    if scene.bars:
        return "A chart: " + ", ".join(f"{color} bar" for color, _ in scene.bars) + "."
    things = ", ".join(" ".join((t.size, *([t.fill] if t.size == "huge" else []), t.color, t.shape)) for t in scene.things)
    return f"A {PLACES[scene.background]} background: {things}."


# ------------------------------------------------------------------------------------------------------------ formats


def formatted(rng: np.random.Generator, asked: Asked) -> Turn:
    """The question in one of the formats."""
    kind, word = rng.random(), asked.phrase or asked.answer
    if kind < 0.35:
        return f"{asked.question}\n{PHRASE}", word, asked.family
    if kind < 0.7 or word not in asked.options:
        return asked.question, asked.answer, asked.family
    numbered = kind > 0.85
    labels = [str(n) for n in range(6)] if numbered else LETTERS
    mark = "." if numbered or rng.integers(2) else ")"
    listed = "\n".join(f"{label}{mark} {option}" for label, option in zip(labels, asked.options))
    return f"{asked.question}\n{listed}\n{LETTER}", labels[asked.options.index(word)], "numbered" if numbered else "lettered"


def counted(question: str, count: int, family: str) -> Asked:
    """A number: a digit to a plain question, a word to "a single word or phrase" and among options."""
    return Asked(question, str(count), COUNTED, family, NUMBER_WORDS[count])


# ------------------------------------------------------------------------------------------------------------- skills


def _attribute(rng: np.random.Generator, scene: Scene) -> Asked | None:
    """Colour, shape or size of a thing that the question identifies."""
    things = scene.things
    kind = int(rng.integers(5))
    if kind in (0, 1) and (found := _unique(things, lambda t: t.shape)):
        t = pick(rng, found)
        text = pick(rng, ("What color is the {}?", "What is the color of the {}?", "Name the color of the {}."))
        return Asked(text.format(t.shape), t.color, COLOR_NAMES, "color")
    if kind in (2, 3) and (found := _unique(things, lambda t: t.color)):
        t = pick(rng, found)
        text = pick(rng, ("What shape is {}?", "Which shape is {}?", "Name the {} shape."))
        return Asked(text.format(t.color), t.shape, SHAPES, "shape")
    found = _unique(things, lambda t: (t.shape, t.color))
    if not found or len(things) > 2:
        return None
    t = pick(rng, found)
    return Asked(f"Is the {t.color} {t.shape} small or large?", t.size, ("small", "large"), "size")


def _count(rng: np.random.Generator, scene: Scene) -> Asked:
    """How many things there are, or are of a kind."""
    things = scene.things
    kind = int(rng.integers(3))
    if kind == 0:
        text = pick(rng, ("How many objects are there?", "How many shapes do you see?", "Count the objects.",
                          "There are _ objects in the picture."))  # fmt: skip
        return counted(text, len(things), "count all")
    t = pick(rng, things)
    name, hits = _named(rng, t, things)
    text = pick(rng, ("How many {} are there?", "How many {} do you see?", "Count the {}.", "There are _ {} here."))
    return counted(text.format(name), hits, "count some")


def _named(rng: np.random.Generator, t: Thing, things: list[Thing]) -> tuple[str, int]:
    """A kind of things that `t` is of, and how many are of it."""
    if rng.integers(2):
        return plural(t.shape), sum(o.shape == t.shape for o in things)
    return f"{t.color} shapes", sum(o.color == t.color for o in things)


def _subtract(rng: np.random.Generator, scene: Scene) -> Asked | None:
    """What is left when some are taken away; the studio is held back."""
    if scene.background == "studio":
        return None
    name, gone = _named(rng, pick(rng, scene.things), scene.things)
    text = pick(rng, ("Take away the {}. How many are left?", "Without the {}, how many objects are there?",
                      "Remove all {}. How many remain?", "Subtract all {}. How many objects are left?"))  # fmt: skip
    return counted(text.format(name), len(scene.things) - gone, "subtract")


def _exists(rng: np.random.Generator, scene: Scene) -> Asked:
    t = pick(rng, scene.things) if rng.random() < 0.5 else Thing(pick(rng, SHAPES), pick(rng, COLOR_NAMES), "small")
    by_shape = bool(rng.integers(2))
    what = plural(t.shape) if by_shape else f"{t.color} shapes"
    there = any(o.shape == t.shape if by_shape else o.color == t.color for o in scene.things)
    question = pick(rng, ("Is there any of these: {}?", "Do you see {}?", "Are there {} in the image?")).format(what)
    return Asked(question, "yes" if there else "no", ("yes", "no"), "exists")


def _listed(rng: np.random.Generator, scene: Scene) -> Turn | None:
    """Name up to three things in reading order."""
    if len(scene.things) > 3:
        return None
    text = pick(rng, ("List the objects.", "Name everything in the picture.", "Describe the shapes you see."))
    return text, ", ".join(f"{t.color} {t.shape}" for t in scene.things), "list"


def _captioned(rng: np.random.Generator, scene: Scene) -> Turn | None:
    """A sentence, plain or in people's words; on tables and in fields the things have their everyday names one time in four."""
    if len(scene.things) > 3:
        return None
    named, unclear = rng.integers(4) == 0, scene.blur > 3
    if rng.integers(2):
        text = pick(rng, OWN_WORDS)
        if unclear:
            said = pick(rng, (REFUSAL, *GUESSES))
        elif rng.integers(2):
            said = outdoors(rng, scene, PEOPLE_WORDS if named and scene.background == "field" else OWN_NAMES)
        else:
            said = snapshot(rng, scene, HOUSEHOLD_WORDS if named and scene.background == "table" else OWN_NAMES)
        return text, said, "own words"
    names = {"table": HOUSEHOLD, "field": PEOPLE}.get(scene.background) if named and not unclear else None
    if names is PEOPLE:
        things = [f"{names[t.shape]} in {t.color}" for t in scene.things]
    else:
        things = ["blur"] if unclear else [f"{t.color} {names[t.shape] if names else t.shape}" for t in scene.things]
    where = f"on a {PLACES[scene.background]} background"
    text = pick(rng, ("Describe the image.", "Write a caption.", "What do you see?", "Give a short description of the image.",
                      CAPTION, CAPTION))  # fmt: skip
    form = pick(rng, ("The image shows a {} {}.", "There is a {} {}.", "A picture of a {} {}.", "A {} {}."))
    return text, article(form.format(" and a ".join(things), where)), "caption"


def _background(rng: np.random.Generator, scene: Scene) -> Asked:
    return Asked("What is the background like?", PLACES[scene.background], tuple(PLACES.values()), "background")


def _large(rng: np.random.Generator, scene: Scene) -> Asked | Turn:
    """What a huge thing is. Its class has a word where it is filled or striped; elsewhere it is a coloured shape."""
    t, kind = scene.things[0], int(rng.integers(6))
    if kind == 0:
        return Asked(pick(rng, ("What color is the big shape?", "Name the main color.")), t.color, COLOR_NAMES, "color")
    if kind == 1:
        return Asked(pick(rng, ("What shape is it?", "Name the big shape.")), t.shape, SHAPES, "shape")
    if kind == 2:
        return Asked("How is the shape drawn?", t.fill, FILLS, "fill")
    question = pick(rng, ("What is this?", "Name the big thing.", "What is the object in the image?"))
    word = CLASSES.get((t.shape, t.color))
    if word is None or t.fill not in ("filled", "striped"):
        said = f"{t.color} {t.shape}"
        return Asked(question, said, (), "whole")
    return Asked(question, word, (), "class")


def _charted(rng: np.random.Generator, scene: Scene) -> Turn:
    """Colours and number of bars, from left to right; never with options, which are held back."""
    colors, kind = [color for color, _ in scene.bars], int(rng.integers(6))
    if kind == 5:
        return "List the bars.", ", ".join(colors), "bar list"
    if kind == 4:
        asked = counted("How many bars are there?", len(colors), "bar count")
    elif kind == 3:
        color = pick(rng, colors if rng.integers(2) else COLOR_NAMES)
        asked = Asked(f"Is there a bar in {color}?", "yes" if color in colors else "no", (), "bar yes or no")
    else:
        place = int(rng.integers(2))
        texts = ("What is the color of the {} bar?", "Which bar is the {}?", "Name the {} bar.")
        asked = Asked(pick(rng, texts).format(("first", "last")[place]), colors[-place], (), "bar")
    return formatted(rng, asked._replace(options=()))


# ----------------------------------------------------------------------------------------------------------- pictures


def _scene(rng: np.random.Generator) -> Scene:
    """A random picture of any kind, in any background, some of them not square."""
    kind = rng.random()
    background = pick(rng, BACKGROUNDS)
    if kind < 0.2:
        return chart(rng, int(rng.integers(3, 5)))
    if kind < 0.23 and background != "table":
        return scattered(rng, 1, background, blur=6.0, noise=45.0)  # too bad to see anything
    if kind < 0.4:
        shape, color = pick(rng, list(CLASSES)) if rng.random() < 0.8 else (pick(rng, SHAPES), pick(rng, COLOR_NAMES))
        return huge(rng, shape, color, "filled" if rng.random() < 0.5 else pick(rng, FILLS), background)
    grid = pick(rng, ((4, 4), (4, 4), (4, 2), (2, 4)))
    blur = float(pick(rng, (0.0, 0.0, 0.0, 0.7)))
    colors = tuple(sample(rng, COLOR_NAMES, pick(rng, (1, 2, 3, 6, 6))))
    shapes = tuple(sample(rng, SHAPES, pick(rng, (1, 2, 3, 6, 6))))
    sizes = pick(rng, (("small", "large"), ("large",)))
    count = int(rng.integers(1, 4)) if rng.integers(3) == 0 else int(rng.integers(2, 6))
    return scattered(rng, count, background, grid, colors, shapes, sizes, blur, float(rng.uniform(1, 9)))


SCATTERED: tuple[Maker, ...] = (_attribute, _attribute, _count, _count, _subtract, _subtract, _subtract, _exists, _listed,
                                _captioned, _captioned, _background)  # fmt: skip


def _text_turn(rng: np.random.Generator, words: list[str], longest: int = 2) -> Turn:
    """Practice without a picture: up to `longest` words to repeat."""
    text = " ".join(sample(rng, words, int(rng.integers(1, longest + 1))))
    return pick(rng, ("Repeat: {}", "Say this again: {}", "Copy the words: {}")).format(text), text, "repeat"


def draw(rng: np.random.Generator, words: list[str], turns: int, read: float = 0.0) -> Sample:
    """One conversation of `turns` turns; one in 24 has no picture, and of the others the share `read` is told in words.

    `words` feed the repetition exercise.
    """
    if rng.integers(24) == 0:
        return practice(rng, words, turns)
    scene = _scene(rng)
    if scene.bars:
        makers: tuple[Maker, ...] = (_charted,)
    elif scene.blur > 3:
        makers = (_captioned,)
    elif scene.things[0].size == "huge":
        makers = (_large, _large, _large, _large, _background)
    else:
        makers = SCATTERED
    found: list[Turn] = []
    while len(found) < turns:
        if rng.random() < 0.02:
            found.append(_text_turn(rng, words))
        elif made := pick(rng, makers)(rng, scene):
            found.append(formatted(rng, made) if isinstance(made, Asked) else made)
    if read and scene.blur < 3 and rng.random() < read:
        (question, answer, family), *rest = found
        return Sample(None, ((f"{told(scene)}\n{question}", answer, family), *rest))
    return Sample(scene, tuple(found))


def practice(rng: np.random.Generator, words: list[str], turns: int, longest: int = 2) -> Sample:
    """A conversation without a picture."""
    return Sample(None, tuple(_text_turn(rng, words, longest) for _ in range(turns)))
