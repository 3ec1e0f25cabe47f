"""The questions that a run was asked: what was expected, and which pictures belong to them, where they can still be read.

A run folder holds answers, not questions. They lie where its configuration says, and may have been moved since: then whatever
shows them does without. Nothing here complains, because what is wrong with a file is told where a run uses it.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hide_llava.benchmarks.files import BenchmarkTask, stored_tasks
from hide_llava.data.records import pictures
from hide_llava.metrics import get
from hide_llava.metrics.error_profile import gold_answers
from hide_llava.results.run_reader import CellScore, StoredRun

LONGEST = 400  # letters of what is expected
ABOVE = 5  # folders above a run in which the data are looked for: a variant lies four below the folder of `runs`


@dataclass(frozen=True)
class Asked:
    """The questions of one task, as the files hold them now.

    sha256: of the question files. expected: question id → answers that count, with repeats; empty where the references cannot
    be read. shown: the same as one text. pictures: question id → the paths of its pictures, relative to `images`. place:
    `images` relative to the data folder. orientation: how the pictures were turned.
    """

    sha256: str
    expected: dict[str, list[str]]
    shown: dict[str, str]
    pictures: dict[str, list[str]]
    images: Path
    place: str
    orientation: str

    def belongs_to(self, cell: CellScore) -> bool:
        """Whether these are the questions that the cell's answers are to. Old scores do not say."""
        return cell.data.get("questions_sha256") in (None, self.sha256)


def asked_questions(run: StoredRun, tasks: Iterable[str]) -> dict[str, Asked]:
    """Of the tasks whose question files lie where the run's configuration says, from here or from above the run."""
    found: dict[str, Asked] = {}
    with contextlib.suppress(Exception):  # of a configuration that is missing, damaged or of another version
        known = stored_tasks(run.config)
        for name in dict.fromkeys(tasks):
            with contextlib.suppress(Exception):
                found[name] = _asked(_found(known[name], run.path))
    return found


def _found(task: BenchmarkTask, run: Path) -> BenchmarkTask:
    """The task with its files where the run was started, if that was above the run folder: the data's place may be relative."""
    places = [task.common.data, *(above / task.common.data for above in run.resolve().parents[:ABOVE])]
    tasks = (replace(task, common=replace(task.common, data=place)) for place in places)
    return next((one for one in tasks if one.question_files[0].exists()), task)


def _asked(task: BenchmarkTask) -> Asked:
    questions, gold = task.all_questions(), []
    with contextlib.suppress(Exception):
        gold = get(task.metric).gold(questions, task.reference_file, task.score_options())
    return Asked(
        task.questions_sha256(),
        {str(record["question_id"]): expected_texts(record) for record in gold},
        {str(record["question_id"]): shown_answer(record) for record in gold},
        {str(question["question_id"]): pictures(question) for question in questions},
        task.question_images,
        os.path.relpath(task.question_images, task.common.data),
        task.settings()["image_orientation"],
    )


def expected_texts(record: dict[str, Any]) -> list[str]:
    """The gold answers or the captions of a reference record; boxes are one text."""
    boxes = isinstance(record.get("answer"), list) and not all(isinstance(part, str) for part in record["answer"])
    return [str(record["answer"])] if boxes else gold_answers(record) or [str(c) for c in record.get("captions") or []]


def shown_answer(record: dict[str, Any]) -> str:
    """The expected texts in a line, the most frequent first."""
    return cut(" · ".join(text for text, _ in Counter(expected_texts(record)).most_common()), LONGEST)


def cut(text: str, longest: int) -> str:
    """The text, or its beginning."""
    return text if len(text) <= longest else text[:longest] + " …"
