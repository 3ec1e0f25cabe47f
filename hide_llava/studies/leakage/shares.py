"""How much of a benchmark the base model has already seen: the information-leakage audit of HiDe-LLaVA (ACL 2025).

LLaVA-1.5 was instruction-tuned on a mix of 665k records that holds parts of CoIN's data sets (docs/BENCHMARKS.md, Known issues).
An image of a task is "in the mix" when, in this order,

    its path names the same image of a public collection (studies/leakage/identity.py),
    its file is equal, byte for byte, to a file of the mix,
    it looks the same as one (studies/audit/pictures.py);

the last two need the mix's images. A question is in the mix when the same text is asked there (studies/audit/texts.py,
`bare_question`), a pair when it is asked there about the same image. Of a task, files are opened only for images that
their path did not find.
"""

from __future__ import annotations

import contextlib
import os
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hide_llava.data.hashing import NONE, Hashes, as_hashes, combine, hash64, join
from hide_llava.data.records import named_pictures
from hide_llava.data.stream import stream
from hide_llava.errors import BadRecord, UserError
from hide_llava.progress import watched
from hide_llava.results.comparison import last_cell
from hide_llava.results.run_reader import StoredRun
from hide_llava.studies.audit.check import places
from hide_llava.studies.audit.pictures import Pictures, look_alike, pictures, same_content
from hide_llava.studies.audit.scan import Place, together
from hide_llava.studies.audit.texts import bare_question, questions_of
from hide_llava.studies.leakage.identity import identity
from hide_llava.training.run import Run


@dataclass
class Asked:
    """The questions of one file. images and questions: one hash per question, image NONE where there is none, and of several
    pictures what they are together.

    distinct: the distinct pictures that are asked about. paths: picture hash -> (first) path of every distinct picture.
    """

    records: int
    images: Hashes
    questions: Hashes
    distinct: Hashes
    paths: dict[int, str]


@dataclass
class Overlap:
    """How much of one file is in the mix. Images are distinct ones; every image counts in one of the three kinds."""

    task: str
    title: str
    split: str
    images: int = 0
    by_path: int = 0
    by_content: int = 0
    by_look: int = 0
    questions: int = 0
    questions_in_mix: int = 0
    image_questions: int = 0
    pairs_in_mix: int = 0

    @property
    def images_in_mix(self) -> int:
        return self.by_path + self.by_content + self.by_look

    @property
    def image_share(self) -> float | None:
        """Percent of the images; None without images."""
        return _percent(self.images_in_mix, self.images)

    @property
    def question_share(self) -> float | None:
        return _percent(self.questions_in_mix, self.questions)

    @property
    def pair_share(self) -> float | None:
        """Percent of the questions about an image."""
        return _percent(self.pairs_in_mix, self.image_questions)


COUNTS = (
    "images",
    "by_path",
    "by_content",
    "by_look",
    "questions",
    "questions_in_mix",
    "image_questions",
    "pairs_in_mix",
)


def _percent(part: int, whole: int) -> float | None:
    return 100.0 * part / whole if whole else None


@dataclass
class Leakage:
    """The audit of one benchmark. `notes`: what was not compared, and how to read the numbers."""

    benchmark: str
    mix: str
    mix_records: int
    mix_images: int
    rows: list[Overlap]
    notes: list[str] = field(default_factory=list)

    def total(self, split: str | None = None) -> Overlap:
        """The sum over tasks, of one split or of both."""
        chosen = [row for row in self.rows if split in (None, row.split)]
        sums = {key: sum(getattr(row, key) for row in chosen) for key in COUNTS}
        return Overlap("total", "all tasks", split or "both", **sums)


def leakage(run: Run, mix_file: Path, mix_images: Path | None = None) -> Leakage:
    """Audit the training and test files of every task of the run's benchmark against an instruction mix.

    mix_file: LLaVA JSON, a list of {id, image?, conversations}. mix_images: the folder its paths are relative to.

    Raises:
        UserError: a file is missing or damaged.
    """
    run.prepare()
    jobs = [(task, place) for task in [*run.tasks, *run.all_general]
            for place in places(task) if place.split != "val"]  # fmt: skip
    for _, place in jobs:
        if not place.file.exists():
            raise UserError(f"{place.file} is missing; set data_root=, or choose tasks with tasks=[…].")
    if mix_images is not None and not mix_images.is_dir():
        raise UserError(f"--pretraining-images {mix_images}: no such folder.")
    mix = read(mix_file, None, mix_images)
    result = Leakage(run.benchmark.title or run.benchmark.name, mix_file.name, mix.records, len(mix.distinct), [])
    shown = Pictures()
    if mix_images is None:
        result.notes.append("Images were compared by path only; --pretraining-images compares contents, too.")
    else:
        shown, absent = look({key: mix_images / path for key, path in mix.paths.items()}, "images of the mix")
        if absent:
            result.notes.append(
                f"{absent:,} of the mix's images are missing or damaged and were compared by path only."
            )
    for task, place in jobs:
        row, absent = compare(place, task.title, run.data, mix, shown)
        result.rows.append(row)
        if absent:
            result.notes.append(f"{task.title}, {place.split}: {absent:,} images are missing or damaged and were "
                                "compared by path only.")  # fmt: skip
    return result


def image_key(path: str, owner: str) -> int:
    """A hash of what the path names; images that no rule identifies never share one between two owners."""
    return hash64(identity(path) or f"{owner}/{path}")


def read(file: Path, place: Place | None, folder: Path | None = None) -> Asked:
    """The questions and images of a training file, a test file, or (place None) the mix. folder: of the data, or of the mix's
    images."""
    records = stream(file, folder if place is None else place.images, asked=place is not None and place.split != "train")
    images, questions, shown, paths, count = array("Q"), array("Q"), array("Q"), {}, 0
    for count, record in enumerate(watched(records, f"reading {file.name}"), 1):
        if not isinstance(record, Mapping):
            raise UserError(f"{file}: record {count - 1} is not an object; run `hide-llava check` on the file.")
        keys: list[int] = []
        named: list[str] = []
        with contextlib.suppress(BadRecord):  # of another form; its questions are compared all the same
            named = named_pictures(record)
        for path in named:
            if place is not None:  # the folder may say which collection it is
                path = os.path.relpath(place.images / path, folder)
            keys.append(image_key(path, "mix" if place is None else "task"))
            paths.setdefault(keys[-1], path)
        asked = questions_of(record)
        shown.extend(keys if asked else [])
        for text in asked:
            images.append(together(keys))
            questions.append(hash64(bare_question(text)))
    return Asked(count, as_hashes(images), as_hashes(questions), np.unique(as_hashes(shown)), paths)


def look(files: dict[int, Path], what: str) -> tuple[Pictures, int]:
    """Decode these files; the pictures, and how many are missing or damaged."""
    shown, bad = Pictures(), 0
    for key, found in zip(watched(files, what, len(files), "image"), pictures(files.values())):
        if isinstance(found, str):
            bad += 1
        else:
            shown.add(key, found)
    return shown, bad


def compare(place: Place, title: str, data_folder: Path, mix: Asked, shown: Pictures) -> tuple[Overlap, int]:
    """One file of the benchmark against the mix, and how many images could not be opened."""
    asked = read(place.file, place, data_folder)
    distinct = asked.distinct
    by_path = np.intersect1d(distinct, mix.distinct)
    links = [np.stack([by_path, by_path], axis=1)]  # (picture here, picture of the mix)
    absent = 0
    if len(shown):
        found = set(by_path.tolist())
        files = {key: data_folder / path for key, path in asked.paths.items() if key not in found}
        mine, absent = look(files, f"{place.task} {place.split}")
        same = same_content(mine, shown)
        near = look_alike(mine, shown)
        links += [same, near[~np.isin(near[:, 0], same[:, 0])]]
    counts = [len(np.unique(link[:, 0])) for link in links] + [0, 0]
    several = np.intersect1d(asked.images, mix.images)  # the same pictures together, by path alone
    several = several[(several != NONE) & ~np.isin(several, by_path)]
    links.append(np.stack([several, several], axis=1))
    seen = np.isin(asked.questions, mix.questions)
    about = asked.images != NONE
    row = Overlap(
        place.task, title, place.split, len(distinct), *counts[:3], len(asked.questions), int(seen.sum()),
        int(about.sum()), _pairs(asked, np.concatenate(links), mix),
    )  # fmt: skip
    return row, absent


def _pairs(asked: Asked, links: Hashes, mix: Asked) -> int:
    """How many questions are asked in the mix about the same image, under any of its names there."""
    known = combine(mix.images, mix.questions)
    hits = [i[np.isin(combine(links[j, 1], asked.questions[i]), known)] for i, j in join(asked.images, links[:, 0])]
    return len(np.unique(np.concatenate(hits))) if hits else 0


def scores(runs: list[StoredRun], tasks: list[str]) -> tuple[dict[str, dict[str, list[float]]], list[str]]:
    """`{"zero_shot" | "multitask": {task: scores after the last stage}}` of these runs, and their labels.

    Raises:
        UserError: a run of another method, or with none of these tasks.
    """
    found: dict[str, dict[str, list[float]]] = {"zero_shot": {}, "multitask": {}}
    labels = []
    for run in runs:
        method = run.manifest.get("method")
        if method not in found:
            raise UserError(f"{run.path} is a run of '{method}'; --run takes zero_shot and multitask runs.")
        if not set(run.matrix.tasks) & set(tasks):
            raise UserError(
                f"{run.path} is a run of '{run.manifest.get('benchmark')}' and has none of the audited tasks."
            )
        labels += [f"{run.name}: {label}" for label in run.labels()]
        for task in run.matrix.tasks:
            cell = last_cell(run, task)
            if cell is not None:
                found[method].setdefault(task, []).append(cell.score)
    return found, labels
