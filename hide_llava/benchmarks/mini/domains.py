"""Five small domains in the format of MLLM-DCL, on the same base as the six tasks and never used to calibrate it.

Questions are worded as in MLLM-DCL's sources (RSVQA, PathVQA, DriveLM, AI2D, FinVis); Medicine and Finance carry the
suffixes of its published evaluation. What a domain calls its shapes is new to the base, which knows the words only from
repeating them.
"""

from __future__ import annotations

import numpy as np

from hide_llava.benchmarks.mini.drawing import SHAPES
from hide_llava.benchmarks.mini.scenes import COLOR_NAMES, chart, huge, pick, plural, sample, scattered
from hide_llava.benchmarks.mini.tasks import Example, MiniTask

MEDICINE = "Answer the question with a single word (or phrase)."
FINANCE = "Answer with yes or no, or with the given letter directly, e.g., A, B, C, D."

SEEN_FROM_ABOVE = {"square": "building", "circle": "tree", "cross": "crossing", "triangle": "tent"}
FINDINGS = {("outlined", "purple"): "cyst", ("outlined", "red"): "hemorrhage", ("striped", "purple"): "fibrosis",
            ("striped", "red"): "muscle", ("dotted", "purple"): "lymphoma", ("dotted", "red"): "necrosis"}  # fmt: skip
ON_THE_ROAD = {"square": "car", "circle": "light", "triangle": "cone", "cross": "pedestrian"}


def remote_sensing(rng: np.random.Generator) -> Example:
    """A field seen from above: is something there, how many, more of one than of another. Words and numbers, no suffix."""
    kinds = list(SEEN_FROM_ABOVE)
    scene = scattered(rng, int(rng.integers(2, 7)), "field", shapes=tuple(sample(rng, kinds, 3)), sizes=("large",), blur=0.7)
    first, second = sample(rng, kinds, 2)
    counts = [sum(thing.shape == shape for thing in scene.things) for shape in (first, second)]
    kind = int(rng.integers(3))
    if kind == 0:
        return Example(scene, f"Is a {SEEN_FROM_ABOVE[first]} present?", ("yes" if counts[0] else "no",))
    if kind == 1:
        return Example(scene, f"What is the number of {SEEN_FROM_ABOVE[first]}s?", (str(counts[0]),))
    more = f"Are there more {SEEN_FROM_ABOVE[first]}s than {SEEN_FROM_ABOVE[second]}s?"
    return Example(scene, more, ("yes" if counts[0] > counts[1] else "no",))


def medicine(rng: np.random.Generator) -> Example:
    """A stained section: what is found is told by texture and stain, whatever its outline."""
    (fill, color), name = pick(rng, list(FINDINGS.items()))
    scene = huge(rng, pick(rng, SHAPES), color, fill, "paper")
    if rng.integers(2):
        return Example(scene, f"What is present in the section? {MEDICINE}", (name,))
    asked = name if rng.integers(2) else pick(rng, [other for other in FINDINGS.values() if other != name])
    return Example(scene, f"Does this section show {asked}? {MEDICINE}", ("yes" if asked == name else "no",))


def driving(rng: np.random.Generator) -> Example:
    """A road: the state of the light, who is there, and what to do. Somebody walking or a red light stops the car."""
    others = [shape for shape in ON_THE_ROAD if shape != "circle"]
    scene = scattered(rng, int(rng.integers(1, 4)), "studio", colors=COLOR_NAMES[2:], shapes=tuple(others), sizes=("large",))
    lamp = scattered(rng, 1, "studio", colors=("red", "green"), shapes=("circle",), sizes=("large",)).things[0]
    scene.things = [thing for thing in scene.things if thing.cell != lamp.cell] + [lamp]
    there = {thing.shape for thing in scene.things}
    kind = int(rng.integers(3))
    if kind == 0:
        return Example(scene, "What is the status of the traffic light?", (lamp.color,))
    if kind == 1:
        shape = pick(rng, others)
        question = f"Is there a {ON_THE_ROAD[shape]} in front of the ego vehicle?"
        return Example(scene, question, ("yes" if shape in there else "no",))
    stop = "cross" in there or lamp.color == "red"
    return Example(scene, "What should the ego vehicle do?", ("stop and wait" if stop else "keep going",))


def science(rng: np.random.Generator) -> Example:
    """A diagram on a board: what is there most often, how many kinds, which of several is missing. The answer is a word."""
    count = int(rng.integers(3, 6))
    while True:
        scene = scattered(rng, count, "board", shapes=tuple(sample(rng, SHAPES, 3)), sizes=("large",))
        shapes = [thing.shape for thing in scene.things]
        counts = sorted(((shapes.count(shape), shape) for shape in set(shapes)), reverse=True)
        if len(counts) > 1 and counts[0][0] > counts[1][0]:
            break
    kind = int(rng.integers(3))
    if kind == 0:
        return Example(scene, "Which part of the diagram appears most often?", (plural(counts[0][1]),))
    if kind == 1:
        return Example(scene, "How many different parts does the diagram show?", (str(len(counts)),))
    missing = pick(rng, [shape for shape in SHAPES if shape not in shapes])
    options = sample(rng, [missing, *sample(rng, sorted(set(shapes)), 2)], 3)
    return Example(scene, f"Which part is missing from the diagram: {', '.join(options)}?", (missing,))


def finance(rng: np.random.Generator) -> Example:
    """A chart of prices: did they rise, from the first bar to the last; which way do they go."""
    scene = chart(rng, int(rng.integers(3, 5)))
    rose = scene.bars[-1][1] > scene.bars[0][1]
    if rng.integers(2):
        up = bool(rng.integers(2))
        question = f"Did the price {'rise' if up else 'fall'} over the period? {FINANCE}"
        return Example(scene, question, ("Yes" if rose == up else "No",))
    options = ["rising", "falling"] if rng.integers(2) else ["falling", "rising"]
    question = f"What is the trend of the price? A. {options[0]} B. {options[1]} {FINANCE}"
    return Example(scene, question, ("AB"[options.index("rising" if rose else "falling")],))


DOMAINS: dict[str, MiniTask] = {
    "rs": MiniTask("RS", remote_sensing, source="RSVQA"),
    "med": MiniTask("Med", medicine, source="PathVQA"),
    "ad": MiniTask("AD", driving, source="DriveLM"),
    "sci": MiniTask("Sci", science, source="AI2D"),
    "fin": MiniTask("Fin", finance, source="FinVis"),
}
