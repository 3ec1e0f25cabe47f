"""Can the task be told from a question's wording alone, or from the size of its picture alone?

Then a router that finds the right expert may have read no more than the template ("Answer with the option's letter"), and its
accuracy says little about routing by content; FLEX (arXiv 2608.01437) found that of the benchmarks in use. A multinomial naive
Bayes classifier with Laplace smoothing and equal priors learns from training records and is asked about the test questions, on

    text        words and pairs of neighbouring words of the prompt, in lower case
    content     the same, without the lines that at least half of a task's training prompts contain: its template
    size        width, height, both, the aspect ratio and the area of the picture, from the file's header
"""

from __future__ import annotations

import math
import random
import re
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hide_llava.benchmarks.files import BenchmarkTask, with_suffix
from hide_llava.data.images import size_of
from hide_llava.data.records import pictures
from hide_llava.data.turns import routing_text
from hide_llava.errors import UserError

BUCKETS = 1 << 16  # of hashed words; two that meet count as one
TEMPLATE = 0.5  # share of a task's training prompts that a line of its template is in
CUES = ("text", "content", "size")


@dataclass(frozen=True)
class Example:
    """What a classifier may look at. size: width and height of the first picture, None without one."""

    text: str
    size: tuple[int, int] | None


@dataclass
class Fingerprint:
    """accuracy: cue → task → share (0…1) of its questions that are told right; a question that fits k tasks equally well counts
    1/k. template: task → lines of its template. chance: 1 / number of tasks."""

    accuracy: dict[str, dict[str, float]]
    template: dict[str, list[str]]
    chance: float
    train: dict[str, int] = field(default_factory=dict)
    test: dict[str, int] = field(default_factory=dict)

    def mean(self, cue: str) -> float:
        return sum(self.accuracy[cue].values()) / len(self.accuracy[cue])


def fingerprint(tasks: list[BenchmarkTask], samples: int) -> Fingerprint:
    """Of up to `samples` training records and test questions of each task.

    Raises:
        UserError: fewer than two tasks, or a file that cannot be read.
    """
    if len(tasks) < 2:
        raise UserError("a single task cannot be mistaken for another")
    train = {task.id: train_examples(task, samples) for task in tasks}
    return measure(train, {task.id: test_examples(task, samples) for task in tasks})


def measure(train: dict[str, list[Example]], test: dict[str, list[Example]]) -> Fingerprint:
    """Train on the one, ask about the other, for each cue."""
    template = {task: template_of([example.text for example in examples]) for task, examples in train.items()}
    lines = {line for own in template.values() for line in own}
    cues: dict[str, Callable[[Example], list[str]]] = {
        "text": lambda example: words(example.text),
        "content": lambda example: words("\n".join(x for x in example.text.splitlines() if x.strip() not in lines)),
        "size": lambda example: size_words(example.size),
    }
    accuracy = {cue: told_right(train, test, read) for cue, read in cues.items()}
    counts = [{task: len(examples) for task, examples in part.items()} for part in (train, test)]
    return Fingerprint(accuracy, template, 1 / len(train), *counts)


def template_of(texts: list[str]) -> list[str]:
    """Lines that at least TEMPLATE of the texts contain."""
    counts = Counter(line for text in texts for line in {line.strip() for line in text.splitlines()} if line)
    return [line for line, count in counts.items() if count >= TEMPLATE * len(texts)]


def words(text: str) -> list[str]:
    """Words, marks and pairs of neighbours, in lower case."""
    single = re.findall(r"\w+|[^\w\s]", text.lower())
    return single + [f"{a} {b}" for a, b in pairwise(single)]


def size_words(size: tuple[int, int] | None) -> list[str]:
    if size is None:
        return ["none"]
    width, height = size
    shape, area = round(8 * math.log2(width / height)), round(2 * math.log2(width * height))
    return [f"{width}x{height}", f"width {width}", f"height {height}", f"shape {shape}", f"area {area}"]


def told_right(
    train: dict[str, list[Example]], test: dict[str, list[Example]], read: Callable[[Example], list[str]]
) -> dict[str, float]:
    """task → share of its test examples that the classifier gives to it."""
    logs = np.stack([_log_frequencies([read(example) for example in examples]) for examples in train.values()])
    places = {task: place for place, task in enumerate(train)}
    found = {}
    for task, examples in test.items():
        credits = [_credit(logs, places[task], _buckets(read(example))) for example in examples]
        found[task] = sum(credits) / len(credits)
    return found


def _log_frequencies(texts: list[list[str]]) -> NDArray[np.float64]:
    counts = np.bincount(np.concatenate([_buckets(text) for text in texts]), minlength=BUCKETS) + 1.0
    return np.log(counts / counts.sum())


def _buckets(text: list[str]) -> NDArray[np.int64]:
    return np.array([zlib.crc32(word.encode()) % BUCKETS for word in text], dtype=np.int64)


def _credit(logs: NDArray[np.float64], place: int, buckets: NDArray[np.int64]) -> float:
    scores = logs[:, buckets].sum(axis=1) if buckets.size else np.zeros(len(logs))
    best = scores >= scores.max() - 1e-9
    return float(best[place]) / best.sum()


def train_examples(task: BenchmarkTask, samples: int) -> list[Example]:
    records = task.records()
    records = records.select(sorted(random.Random(task.common.seed).sample(range(len(records)), min(samples, len(records)))))
    root, turn = task.common.table_root, task.common.benchmark.image_orientation
    return [_example(routing_text(record["conversations"]), [root / x for x in pictures(record)], turn) for record in records]


def test_examples(task: BenchmarkTask, samples: int) -> list[Example]:
    questions, _ = task.questions()
    chosen = sorted(random.Random(task.common.seed).sample(range(len(questions)), min(samples, len(questions))))
    root, turn = task.question_images, task.settings()["image_orientation"]
    asked = with_suffix([questions[i] for i in chosen], task.settings()["prompt_suffix"])
    return [_example(routing_text(question["text"]), [root / x for x in pictures(question)], turn) for question in asked]


def _example(text: str, images: list[Path], orientation: str) -> Example:
    return Example(text, size_of(images[0], orientation) if images else None)
