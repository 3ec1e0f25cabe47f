"""Five small domains in the format of MLLM-DCL, on the same base as the six tasks and never used to calibrate it.

Questions are worded as in MLLM-DCL's sources (RSVQA, PathVQA, DriveLM, AI2D, FinVis); Medicine and Finance carry the
suffixes of its published evaluation. As in the six tasks, what is asked is what the base can do under another wording or on
other pictures.
"""

from __future__ import annotations

import numpy as np

from hide_llava.benchmarks.mini.drawing import FILLS, SHAPES
from hide_llava.benchmarks.mini.scenes import COLOR_NAMES, chart, huge, pick, sample, scattered
from hide_llava.benchmarks.mini.tasks import COUNTED, LETTERS, NUMBER_WORDS, Example, MiniTask

MEDICINE = "Answer the question with a single word (or phrase)."
FINANCE = "Answer with yes or no, or with the given letter directly, e.g., A, B, C, D."


def remote_sensing(rng: np.random.Generator) -> Example:
    """Buildings seen from above: how many there are, in words, or which colour the roof of a single one has."""
    if rng.integers(2):
        scene = scattered(rng, int(rng.integers(1, 6)), "field", shapes=("square",), sizes=("large",), blur=0.7)
        return Example(scene, "What is the number of buildings seen from above?", (NUMBER_WORDS[len(scene.things)],))
    scene = scattered(rng, 1, "field", shapes=("square",), sizes=("large",), blur=0.7)
    return Example(scene, "What is the roof of the building seen from above?", (scene.things[0].color,))


def medicine(rng: np.random.Generator) -> Example:
    """A stained section: its stain or its tissue, which is told by how the shape is drawn."""
    scene = huge(rng, pick(rng, SHAPES), pick(rng, COLOR_NAMES), pick(rng, FILLS), "paper")
    thing = scene.things[0]
    if rng.integers(2):
        return Example(scene, f"Which stain is present in this section? {MEDICINE}", (thing.color,))
    return Example(scene, f"Which tissue is present in this section? {MEDICINE}", (thing.fill,))


def driving(rng: np.random.Generator) -> Example:
    """A road: the state of the light, how many objects there are, or all of them."""
    others = [shape for shape in SHAPES if shape != "circle"]
    scene = scattered(rng, int(rng.integers(1, 3)), "studio", shapes=tuple(others), sizes=("large",))
    lamp = scene.things[0]
    while lamp.cell in {thing.cell for thing in scene.things}:
        lights = scattered(rng, 1, "studio", colors=("red", "green", "yellow"), shapes=("circle",), sizes=("large",))
        lamp = lights.things[0]
    scene.things = sorted([*scene.things, lamp], key=lambda thing: (thing.cell[1], thing.cell[0]))
    kind = int(rng.integers(3))
    if kind == 0:
        return Example(scene, "What is the status of the traffic light?", (lamp.color,))
    if kind == 1:
        return Example(scene, "How many objects are in front of the ego vehicle?", (NUMBER_WORDS[len(scene.things)],))
    listed = ", ".join(f"{thing.color} {thing.shape}" for thing in scene.things)
    return Example(scene, "What are the objects in front of the ego vehicle?", (listed,))


def science(rng: np.random.Generator) -> Example:
    """A diagram on a board: how many parts it shows, which of them is first or last. The answer is a word."""
    scene = scattered(rng, int(rng.integers(2, 5)), "board", shapes=tuple(sample(rng, SHAPES, 3)), sizes=("large",))
    kind = int(rng.integers(3))
    if kind == 0:
        return Example(scene, "How many parts does the diagram show?", (NUMBER_WORDS[len(scene.things)],))
    which = "first" if kind == 1 else "last"
    return Example(scene, f"Which part of the diagram is the {which}?", (scene.things[0 if kind == 1 else -1].shape,))


def finance(rng: np.random.Generator) -> Example:
    """A chart of a report: is a colour in it, how many periods are shown, which colour is the first or the last."""
    scene, kind = chart(rng, int(rng.integers(3, 5))), int(rng.integers(4))
    colors = [color for color, _ in scene.bars]
    if kind == 0:
        asked = pick(rng, colors if rng.integers(2) else COLOR_NAMES)
        return Example(scene, f"Does the report show {asked}? {FINANCE}", ("yes" if asked in colors else "no",))
    if kind == 1:
        question, options, answer = "How many periods does the report show?", COUNTED, NUMBER_WORDS[len(colors)]
    else:
        question, options = f"Which color is the {'first' if kind == 2 else 'last'} period of the report?", COLOR_NAMES
        answer = colors[0 if kind == 2 else -1]
    listed = " ".join(f"{label}. {option}" for label, option in zip(LETTERS, options))
    return Example(scene, f"{question} {listed} {FINANCE}", (LETTERS[options.index(answer)],))


DOMAINS: dict[str, MiniTask] = {
    "rs": MiniTask("RS", remote_sensing, source="RSVQA"),
    "med": MiniTask("Med", medicine, source="PathVQA"),
    "ad": MiniTask("AD", driving, source="DriveLM"),
    "sci": MiniTask("Sci", science, source="AI2D"),
    "fin": MiniTask("Fin", finance, source="FinVis"),
}
