"""The anchors that a run's tasks are known by: how alike they are, and how many training records one needs.

An anchor is the mean feature of a task's training pictures or questions (HiDe, arXiv 2503.12941; DISCO, arXiv 2503.12897).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from hide_llava.adapters.anchors import Anchors
from hide_llava.adapters.observe import sample
from hide_llava.benchmarks.files import with_suffix
from hide_llava.data.collator import Collator, moved
from hide_llava.data.dataset import QuestionDataset
from hide_llava.errors import UserError
from hide_llava.methods.base import Features
from hide_llava.methods.hide import HiDe
from hide_llava.progress import Bar
from hide_llava.results.run_reader import StoredRun
from hide_llava.storage import load_tensors
from hide_llava.training.run import Run
from hide_llava.training.run_folder import RunFolder
from hide_llava.training.sequence import dataset_of
from hide_llava.training.session import Session

KEY = re.compile(r"(image|text)_anchor\.(\d+)\.sum")
DRAWS = 10  # of the records that an anchor is computed from
BATCH = 16


@dataclass
class AnchorCurve:
    """counts: records that each anchor is the mean of; accuracy, deviation: mean and standard deviation over draws of the share
    (0…1, mean over tasks) of test questions routed right. stored: the same with the anchors that the run has."""

    counts: list[int]
    accuracy: list[float]
    deviation: list[float]
    stored: float
    records: dict[str, int]
    questions: dict[str, int]


def stored_similarities(run: StoredRun, stage: int) -> dict[str, tuple[list[str], list[list[float]]]]:
    """image, text → (titles of tasks, cosine of all pairs of their anchors) as stored after a stage; {} for other methods.

    The stored sums point where their means do. A task without pictures has no image anchor.
    """
    file = RunFolder(run.path).stage(run.matrix.stages[stage]) / "method.safetensors"
    if not file.is_file():
        return {}
    trained = [task["id"] for task in run.manifest["tasks"] if task["id"] in run.trained]
    sums: dict[str, dict[int, Tensor]] = {}
    for key, value in load_tensors(file).items():
        if (match := KEY.fullmatch(key)) and value.dim() == 1 and value.any():
            sums.setdefault(match[1], {})[int(match[2])] = value.double()
    found = {}
    for kind, anchors in sorted(sums.items()):
        order = sorted(anchors)
        stacked = torch.nn.functional.normalize(torch.stack([anchors[t] for t in order]), dim=1)
        names = [run.task_title(trained[t]) if t < len(trained) else f"task {t + 1}" for t in order]
        found[kind] = (names, (stacked @ stacked.T).tolist())
    return found


def anchor_curve(folder: Path, stage: int, samples: int) -> AnchorCurve:
    """Route test questions by anchors of 1, 4, 16, … and up to `samples` training records of each task learned up to a stage.

    Loads the model. Records are drawn DRAWS times from those `samples`, with another seed each time.

    Raises:
        UserError: a method without anchors, a stage that is not complete, data that cannot be read.
    """
    run = Run.at(folder)
    if not issubclass(run.method, HiDe):
        raise UserError(f"--anchors: '{run.method.name}' does not route by anchors; hide and disco do.")
    session = Session(run)
    session.restore(stage)
    method: HiDe = session.method
    trained, asked = {}, {}
    with Bar("features", 2 * len(method.learned), "task") as bar:
        for done, t in enumerate(method.learned):
            trained[t] = _of_records(session, t, samples)
            bar.at(2 * done + 1)
            asked[t] = _of_questions(session, t, samples)
            bar.at(2 * done + 2)
    least = min(len(features.text) for features in trained.values())
    counts = [*(4**k for k in range(20) if 4**k < least), least]
    draws = {count: range(DRAWS if count < least else 1) for count in counts}
    spread = [[_accuracy(method, trained, asked, count, draw) for draw in draws[count]] for count in counts]
    image = [method.image_anchors.mean(t) for t in method.learned]
    text = [method.text_anchors.mean(t) for t in method.learned]
    names = {t: session.run.tasks[t].title for t in method.learned}
    return AnchorCurve(counts, [float(np.mean(x)) for x in spread], [float(np.std(x)) for x in spread],
                       _routed_right(method, asked, image, text), {names[t]: len(f.text) for t, f in trained.items()},
                       {names[t]: len(f.text) for t, f in asked.items()})  # fmt: skip


def _of_records(session: Session, task: int, samples: int) -> Features:
    records = session.run.tasks[task].records()
    return _features(session, dataset_of(session, records.select(sample(len(records), samples, session.run.seed))), "right")


def _of_questions(session: Session, task: int, samples: int) -> Features:
    one = session.run.tasks[task]
    settings, (questions, _) = one.settings(), one.questions()
    chosen = [questions[i] for i in sample(len(questions), samples, session.run.seed)]
    data = QuestionDataset(with_suffix(chosen, settings["prompt_suffix"]), one.question_images,
                           session.reader(settings["image_transform"]), settings["image_orientation"])  # fmt: skip
    return _features(session, data, "left")


def _features(session: Session, data: Dataset, side: str) -> Features:
    """Routing features of all items, on the CPU."""
    parts: list[Features] = []
    for batch in DataLoader(data, batch_size=BATCH, collate_fn=Collator(side=side)):
        batch = moved(batch, session.core.llava.device)
        found = session.routed.features(batch, session.routed.see(batch))
        parts.append(Features(*(part.cpu() for part in (found.image, found.text, found.has_image))))
    return Features(*(torch.cat([getattr(part, name) for part in parts]) for name in ("image", "text", "has_image")))


def _accuracy(method: HiDe, trained: dict[int, Features], asked: dict[int, Features], count: int, draw: int) -> float:
    """With anchors of `count` records of each task, drawn by a seed."""
    kinds: dict[str, Any] = {"image": Anchors(), "text": Anchors()}
    zeros_count = method.config.text_only == "reference"
    for t, features in trained.items():
        rows = torch.randperm(len(features.text), generator=torch.Generator().manual_seed(1000 * draw + t))[:count]
        for kind, anchors in kinds.items():
            values = getattr(features, kind)[rows]
            anchors.start(t, values.shape[1], values.device)
            anchors.add(t, values if kind == "text" or zeros_count else values[features.has_image[rows]])
    image, text = ([anchors.mean(t) for t in trained] for anchors in kinds.values())
    return _routed_right(method, asked, image, text)


def _routed_right(method: HiDe, asked: dict[int, Features], image: list[Tensor | None], text: list[Tensor]) -> float:
    image, text = ([None if a is None else a.cpu() for a in anchors] for anchors in (image, text))
    shares = []
    for place, features in enumerate(asked.values()):
        chosen = method.similarity(features, image, text).argmax(1)
        shares.append(float((chosen == place).double().mean()))
    return sum(shares) / len(shares)
