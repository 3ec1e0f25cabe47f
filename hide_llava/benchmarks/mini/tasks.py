"""Six small tasks with the prompts of UCIT: each is a small turn from what the base model was taught (`scripts/mini_base`).

The prompt lines are UCIT's own, word for word. An `Example` is one picture with its question and all accepted
answers (several for captions).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from hide_llava.benchmarks.mini.drawing import FILLS, SHAPES, Scene, Thing
from hide_llava.benchmarks.mini.scenes import COLOR_NAMES, chart, huge, pick, plural, scattered

PHRASE = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."
CAPTION = "What is happening in the image?\nGenerate a brief caption for the image."

# Class words are ImageNet-R's; every shape and every colour occurs in two classes, so both must be seen.
CLASSES: dict[tuple[str, str], str] = {
    ("circle", "red"): "ladybug",
    ("circle", "yellow"): "lemon",
    ("square", "blue"): "mailbox",
    ("square", "red"): "barn",
    ("triangle", "green"): "broccoli",
    ("triangle", "orange"): "pizza",
    ("cross", "purple"): "jellyfish",
    ("cross", "green"): "lorikeet",
    ("diamond", "orange"): "goldfish",
    ("diamond", "blue"): "peacock",
    ("star", "yellow"): "starfish",
    ("star", "purple"): "pomegranate",
}
HOUSEHOLD = dict(zip(SHAPES, ("plate", "box", "bag", "remote", "towel", "toy")))
PEOPLE = dict(zip(SHAPES, ("dog", "man", "woman", "boy", "girl", "clown")))
# What people call them: the first name is the commonest.
HOUSEHOLD_WORDS = {
    "circle": ("plate", "plate", "dish"), "square": ("box", "box", "carton"), "triangle": ("bag", "bag", "sack"),
    "cross": ("remote", "remote", "controller"), "diamond": ("towel", "towel", "cloth"), "star": ("toy", "toy", "figure"),
}  # fmt: skip
PEOPLE_WORDS = {
    "circle": ("dog", "dog", "puppy"), "square": ("man", "man", "guy"), "triangle": ("woman", "woman", "lady"),
    "cross": ("boy", "boy", "child"), "diamond": ("girl", "girl", "kid"), "star": ("clown", "clown", "performer"),
}  # fmt: skip
REFERENCES = 5  # captions of a picture, each worded by itself
REFUSAL = "Quality issues are too severe to recognize visual content."
GUESSES = ("Quality issues are too severe to recognize the image.", "A blurry photo of something on a table.",
           "A photo that is too noisy to see what it shows.", "Nothing can be recognized in this blurry photo.")  # fmt: skip
NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six")
COUNTED = NUMBER_WORDS[:6]
LETTERS = "ABCDEF"
Names = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Example:
    """One picture, its question (without `<image>`) and its accepted answers; captions have several."""

    scene: Scene
    question: str
    answers: tuple[str, ...]


def imagenet_r(rng: np.random.Generator) -> Example:
    """One large object as a rendition, outlined, striped or dotted; twelve classes with one fixed word each."""
    (shape, color), name = pick(rng, list(CLASSES.items()))
    scene = huge(rng, shape, color, pick(rng, FILLS[1:]), pick(rng, ("plain", "paper", "board")))
    return Example(scene, f"What is the object in the image?\n{PHRASE}", (name,))


def arxivqa(rng: np.random.Generator) -> Example:
    """A bar chart: how many bars, or the colour of the first or the last one, by lettered options."""
    kind, scene = int(rng.integers(3)), chart(rng, int(rng.integers(3, 5)))
    if kind == 0:
        question, options, answer = "How many bars are there in the figure?", COUNTED, NUMBER_WORDS[len(scene.bars)]
    else:
        question = f"What is the color of the {'first' if kind == 1 else 'last'} bar in the figure?"
        options, answer = COLOR_NAMES, scene.bars[0 if kind == 1 else -1][0]
    lines = [question, *(f"{label}) {option}" for label, option in zip(LETTERS, options)), LETTER]
    return Example(scene, "\n".join(lines), (LETTERS[options.index(answer)],))


def iconqa(rng: np.random.Generator) -> Example:
    """Rows of icons on paper: half the questions have numbered options, half are blanks to fill in."""
    shape, color, choose = pick(rng, SHAPES), pick(rng, COLOR_NAMES), bool(rng.integers(2))
    count = int(rng.integers(1, 6))
    scene = scattered(rng, count, "paper", (4, 2), (color,), (shape,), ("large",), noise=1.0)
    if not choose:
        return Example(scene, f"There are _ {plural(shape)} in the picture.\n{PHRASE}", (str(count),))
    listed = "\n".join(f"{label}. {option}" for label, option in enumerate(SHAPES))
    return Example(scene, f"Which shape is shown?\n{listed}\n{LETTER}", (str(SHAPES.index(shape)),))


def clevr_math(rng: np.random.Generator) -> Example:
    """Shapes in a studio; some are subtracted and the rest are counted."""
    scene = scattered(rng, int(rng.integers(2, 6)), "studio", shapes=pick(rng, (SHAPES[:3], SHAPES[3:])))
    thing = pick(rng, scene.things)
    kind = int(rng.integers(3))
    if kind == 0:
        name, gone = f"{thing.color} {plural(thing.shape)}", [(t.color, t.shape) for t in scene.things]
        left = sum(pair != (thing.color, thing.shape) for pair in gone)
    elif kind == 1:
        name, left = f"{plural(thing.shape)}", sum(t.shape != thing.shape for t in scene.things)
    else:
        name, left = f"{thing.color} shapes", sum(t.color != thing.color for t in scene.things)
    return Example(scene, f"Subtract all {name}. How many objects are left?\n{PHRASE}", (str(left),))


def vizwiz(rng: np.random.Generator) -> Example:
    """Blurred snapshots of household things on a table; one in eight is too bad to describe. Five people wrote a caption each."""
    if rng.random() < 0.125:
        scene = scattered(rng, 1, "table", blur=6.0, noise=45.0)
        return Example(scene, CAPTION, (REFUSAL, REFUSAL, *(pick(rng, GUESSES) for _ in range(REFERENCES - 2))))
    scene = scattered(rng, int(rng.integers(1, 3)), "table", blur=0.7, noise=9.0, sizes=("large",))
    return Example(scene, CAPTION, tuple(snapshot(rng, scene) for _ in range(REFERENCES)))


def mentioned(rng: np.random.Generator, scene: Scene) -> list[Thing]:
    """The things that one person mentions, in that person's order."""
    if len(scene.things) > 1 and rng.random() < 0.35:
        return [pick(rng, scene.things)]
    return scene.things[::-1] if rng.integers(2) else scene.things


def snapshot(rng: np.random.Generator, scene: Scene, words: Names = HOUSEHOLD_WORDS) -> str:
    """How one person describes things that lie about: some leave colours out, or where it is. words: names of each shape."""
    plain = rng.random() < 0.45
    names = [f"{'' if plain else t.color + ' '}{pick(rng, words[t.shape])}" for t in mentioned(rng, scene)]
    both = pick(rng, ("a {} and a {}", "a {} next to a {}", "a {} with a {}"))
    said = both.format(*names) if len(names) == 2 else "a " + " and a ".join(names)
    where = pick(rng, (" on top of a wooden table", " on a table", " on a brown desk", " on the counter", " lying on wood",
                       " sitting there", ""))  # fmt: skip
    form = pick(rng, ("{}{}.", "{}{}.", "{}{}, seen from above.", "A blurry photo of {}{}.", "A close up of {}{}.",
                      "A picture showing {}{}.", "The photo shows {}{}.", "There is {}{}."))  # fmt: skip
    return _sentence(form.format(said, where))


def flickr30k(rng: np.random.Generator) -> Example:
    """Two or three people or animals in a field, told by the colour they wear. Five people wrote a caption each."""
    scene = scattered(rng, int(rng.integers(2, 4)), "field", noise=3.0, sizes=("large",))
    return Example(scene, CAPTION, tuple(outdoors(rng, scene) for _ in range(REFERENCES)))


def outdoors(rng: np.random.Generator, scene: Scene, words: Names = PEOPLE_WORDS) -> str:
    """How one person describes somebody outside: some leave out what is worn, or where it is. words: names of each shape."""
    worn, things = pick(rng, (" in {}", " wearing {}", "")), mentioned(rng, scene)
    names = [f"a {pick(rng, words[t.shape])}{worn.format(t.color)}" for t in things]
    said = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    doing = ("stands", "is standing", "is playing", "walks", "waits") if len(names) == 1 else (
        "stand", "are standing", "are playing", "walk", "wait")  # fmt: skip
    where = pick(rng, (" in a field", " in a grassy field", " in the grass", " outside", " under a blue sky", " in a park", ""))
    return _sentence(f"{said} {pick(rng, doing)}{where}.")


def _sentence(text: str) -> str:
    return article(text[0].upper() + text[1:])


def article(text: str) -> str:
    """ "an" before an orange thing."""
    return re.sub(r"\b([Aa]) orange", r"\1n orange", text)


@dataclass(frozen=True)
class MiniTask:
    """Folder name of a task, its example maker, whether it is scored as captions, and how its pictures' names start."""

    folder: str
    make: Callable[[np.random.Generator], Example]
    caption: bool = False
    source: str = ""


TASKS: dict[str, MiniTask] = {
    "imagenet-r": MiniTask("ImageNet-R", imagenet_r),
    "arxivqa": MiniTask("ArxivQA", arxivqa),
    "vizwiz": MiniTask("VizWiz", vizwiz, caption=True),
    "iconqa": MiniTask("IconQA", iconqa),
    "clevr-math": MiniTask("CLEVR-Math", clevr_math),
    "flickr30k": MiniTask("Flickr30k", flickr30k, caption=True),
}
