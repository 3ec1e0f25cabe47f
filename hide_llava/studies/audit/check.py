"""`hide-llava check`: are a benchmark's files there, complete, and sound?"""

from __future__ import annotations

import dataclasses
import itertools
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hide_llava.benchmarks.files import BenchmarkTask
from hide_llava.errors import UserError
from hide_llava.metrics import check_options, get
from hide_llava.preflight import check_references, join_questions
from hide_llava.studies.audit.findings import ORDER, Finding
from hide_llava.studies.audit.overlap import overlap
from hide_llava.studies.audit.scan import Place, Scan, findings, scan
from hide_llava.studies.audit.texts import FORMATS, AnswerRoom, PromptLengths
from hide_llava.training.run import Run

SPLITS = (("train", "test"), ("train", "val"), ("val", "test"))  # which are compared
# Faults of a question file that its reader would only name again.
READ_BEFORE = ("missing file", "broken JSON", "bad record", "duplicate id", "empty answer")


@dataclass
class FileSummary:
    """One annotation file in numbers. expected: None when nobody says how many records there should be."""

    task: str
    split: str
    file: str
    records: int
    expected: int | None
    questions: int
    images: int
    answers: dict[str, int]
    long_prompts: int
    constant_prompt: str | None


@dataclass
class CheckReport:
    """Findings, the most serious first, and the numbers of every file that could be read."""

    benchmark: str
    data_root: str
    deep: bool
    prompt_lengths: str
    answer_room: str
    files: list[FileSummary] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def count(self, level: str) -> int:
        return sum(finding.level == level for finding in self.findings)

    @property
    def sound(self) -> bool:
        return self.count("error") == 0

    @property
    def apart(self) -> bool:
        """Whether more than one split of a task was read, and none shares a picture or a question with another."""
        several = len({file.split for file in self.files}) > 1
        return several and not any(finding.kind.startswith(tuple(f"{a}/{b}" for a, b in SPLITS)) for finding in self.findings)

    def as_json(self) -> dict[str, Any]:
        rows = [{"level": f.level, **dataclasses.asdict(f)} for f in self.findings]
        return {**dataclasses.asdict(self), "sound": self.sound, "findings": rows}


def places(task: BenchmarkTask) -> list[Place]:
    """The annotation files of a task, train first; a task that is never trained has no train file."""
    entry, metric, result = task.entry, get(task.metric), []
    named = {"train": (entry.train, entry.n_train, None), "val": (entry.val, None, entry.val_references),
             "test": (entry.test, entry.n_test, entry.references)}  # fmt: skip
    for split, (name, expected, references) in named.items():
        for one in [] if name is None else name if isinstance(name, list) else [name]:
            expected = None if isinstance(name, list) else expected  # of all files together
            images = task.images if split == "train" else task.question_images
            answered = metric.needs == "questions" and references is None
            orientation, suffix = task.common.benchmark.image_orientation, entry.prompt_suffix or ""
            file = task.common.folder / one
            result.append(Place(task.id, split, file, images, expected, answered, suffix, orientation))
    return result


def check(run: Run, deep: bool = False) -> CheckReport:
    """Read every annotation file once and look at every image (deep: decode it and compare it by content).

    Raises:
        UserError: an unknown metric. Faults of the data are findings, not exceptions.
    """
    run.prepare()
    lengths = PromptLengths(run.model, run.model_root)
    room = AnswerRoom(run.model, run.model_root, run.train.max_length, run.train.label_masks)
    report = CheckReport(run.benchmark.name, str(run.data), deep, f"{lengths.how} (limit {lengths.limit})", room.how)
    prompts: dict[str, dict[str, list[str]]] = defaultdict(dict)  # constant prompt -> task -> splits
    for task in [*run.tasks, *run.all_general]:
        scans: dict[str, list[Scan]] = {}
        for place in places(task):
            if not place.file.exists():
                report.findings.append(_missing(place.task, place.split, place.file))
                continue
            found = scan(place, lengths, room, deep)
            report.files.append(_summary(found))
            report.findings += findings(found)
            scans.setdefault(place.split, []).append(found)
            if found.constant_prompt is not None:
                prompts[found.constant_prompt].setdefault(task.id, []).append(place.split)
        report.findings += [f for split in ("val", "test") for f in _scoring(task.on(split), report.findings)]
        for earlier, later in SPLITS:
            for train, test in itertools.product(scans.get(earlier, []), scans.get(later, [])):
                report.findings += overlap(train, test) if train.place.file != test.place.file else []
    report.findings += [finding for prompt, owners in prompts.items() for finding in _constant(prompt, owners)]
    report.findings.sort(key=lambda finding: ORDER.index(finding.level))
    return report


def _missing(task: str, split: str, file: Path) -> Finding:
    return Finding("missing file", task, split, 1, f"{file} is missing")


def _constant(prompt: str, owners: dict[str, list[str]]) -> list[Finding]:
    """Tasks whose prompts are all the same; two with the same one are separable by their images only."""
    result = [
        Finding("constant prompt", task, ", ".join(splits), 1, f"all prompts are the same: {prompt!r}")
        for task, splits in owners.items()
    ]
    if len(owners) > 1:
        first, *others = owners
        text = f"has the constant prompt of {', '.join(others)}, so only the images tell these tasks apart: {prompt!r}"
        result.append(Finding("shared prompt", first, ", ".join(owners[first]), len(owners), text))
    return result


def _summary(found: Scan) -> FileSummary:
    place = found.place
    answers = {form: found.formats[form] for form in FORMATS if found.formats[form]}
    return FileSummary(
        place.task, place.split, str(place.file), found.records, place.expected, len(found.questions),
        found.distinct_images, answers, found.long_prompts, found.constant_prompt,
    )  # fmt: skip


def _scoring(task: BenchmarkTask, found: list[Finding]) -> list[Finding]:
    """Whether the questions and their references can be joined, by the very function that a run calls first."""
    split = task.common.eval.split
    if (task.entry.test if split == "test" else task.entry.val) is None:
        return []
    references, legacy = task.reference_file, task.other_answers
    if split == "val" and references is None and get(task.metric).needs == "coco":
        return []  # a split that nobody can score; eval.split=val refuses it
    result = [_missing(task.id, f"{split} references", f) for f in (references, legacy) if f is not None and not f.exists()]
    known = [f for f in found if (f.task, f.split) == (task.id, split) and f.kind in READ_BEFORE]
    if not result and not known:
        try:
            check_options(task.metric, task.score_options())
            check_references(task)
            join_questions(task)
        except UserError as error:
            result.append(Finding("cannot be scored", task.id, split, 1, str(error)))
    if split == "test":
        try:
            get(task.metric).check(task.score_options())
        except UserError as error:
            result.append(Finding("metric not here", task.id, split, 1, str(error)))
    return result
