"""The tasks of a benchmark with all that is known about them: their files, how their questions are put, how they are scored.

They are resolved once, from the configuration of a run (`training/run.py`). Nobody asks the configuration for a path again.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hide_llava.benchmarks.selection import draw
from hide_llava.data.records import features, load_questions, load_records, readable
from hide_llava.data.sources import content_sha256
from hide_llava.errors import UserError
from hide_llava.metrics import get
from hide_llava.metrics.rows import read_jsonl
from hide_llava.schema import BenchmarkConfig, EvalConfig, RunConfig, TaskConfig

if TYPE_CHECKING:
    import datasets

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Common:
    """What the tasks of a run have in common.

    data: the folder that all others are relative to. limit, seed: of the records that are drawn. on_bad_sample: of
    training. tokenizer: of captions. several: whether the model reads several pictures of a record.
    """

    benchmark: BenchmarkConfig
    eval: EvalConfig
    data: Path
    limit: int | None
    seed: int
    on_bad_sample: str
    tokenizer: str
    several: bool = True

    @property
    def folder(self) -> Path:
        """Of the annotation files."""
        return self.data / self.benchmark.instructions

    @property
    def table_root(self) -> Path:
        """The folder that `image` is relative to in the tables of `BenchmarkTask.records`: one for all tasks, so they mix."""
        apart = any(task.images is not None for task in self.benchmark.tasks)
        return self.data if apart else self.data / self.benchmark.images

    def settings(self, entry: TaskConfig | None = None) -> dict[str, Any]:
        """What decides an answer besides the model; stored with every score, because scores of two settings differ.

        entry: None for questions from outside the benchmark, which get the benchmark's settings and no suffix.
        """
        own, legacy = entry or TaskConfig.model_construct(), entry is not None and self.is_legacy(entry)
        return {
            "image_transform": self.eval.image_transform or own.image_transform or self.benchmark.image_transform,
            "image_orientation": self.benchmark.image_orientation,
            "max_new_tokens": self.eval.max_new_tokens or own.max_new_tokens or self.benchmark.max_new_tokens,
            "split": self.eval.split,
            "prompt_suffix": own.legacy.suffix_by_answer or own.prompt_suffix if legacy else own.prompt_suffix,
            "protocol": "legacy" if legacy else "clean",
            "limit": self.limit,
        }

    def is_legacy(self, entry: TaskConfig) -> bool:
        return self.eval.protocol == "legacy" and entry.legacy is not None


@dataclass(frozen=True, eq=False)
class BenchmarkTask:
    """One task of a run. entry: what the benchmark's YAML says of it."""

    entry: TaskConfig
    common: Common

    @property
    def id(self) -> str:
        return self.entry.id

    @property
    def title(self) -> str:
        return self.entry.title

    @property
    def metric(self) -> str:
        """The name of its metric."""
        return self.entry.metric

    @property
    def trained(self) -> bool:
        """Whether it has a training file; a task without one is only asked."""
        return self.entry.train is not None

    @property
    def is_legacy(self) -> bool:
        """Whether it is asked or scored with the published code's fault."""
        return self.common.is_legacy(self.entry)

    def on(self, split: str) -> BenchmarkTask:
        """The same task with its questions of another split."""
        evaluation = self.common.eval.model_copy(update={"split": split})
        return replace(self, common=replace(self.common, eval=evaluation))

    # ---- training ----------------------------------------------------------------------------------------------------
    @property
    def train_file(self) -> Path:
        """Raises UserError for a task that is never trained."""
        if self.entry.train is None:
            raise UserError(f"task '{self.id}' of benchmark '{self.common.benchmark.name}' has no training file.")
        return self.common.folder / self.entry.train

    @property
    def images(self) -> Path:
        """The folder that `image` is relative to in its training file."""
        own = self.entry.images
        return self.common.data / (self.common.benchmark.images if own is None else own)

    def records(self, whole: bool = False) -> datasets.Dataset:
        """Training records {id, image, conversations}, those that `limit` keeps; images relative to `Common.table_root`.

        whole: with the records that cannot be read (train.on_bad_sample=skip), for the data set to list.

        Raises:
            UserError: the file is missing or damaged, or holds a bad record that is not to be skipped.
        """
        import numpy  # here, because answering questions needs none of them
        import pyarrow
        import pyarrow.compute

        root, on_bad = self.common.table_root, "error" if self.common.on_bad_sample == "error" else "keep"
        records = load_records(self.train_file, self.images, on_bad=on_bad, several=self.common.several)
        if self.images != root:
            prefix = os.path.relpath(self.images, root)
            rows = records.data.column("image").combine_chunks()
            names = pyarrow.compute.binary_join_element_wise(prefix, rows.flatten(), "/")
            lengths = pyarrow.compute.list_value_length(rows).to_numpy(zero_copy_only=False)
            ends = numpy.concatenate([[0], lengths.cumsum()]).astype("int32")
            records = records.remove_columns("image").add_column(
                "image", pyarrow.ListArray.from_arrays(ends, names), feature=features()["image"]
            )
        kept = draw(self.common.limit, self.common.seed, len(records))
        records = records if len(kept) == len(records) else records.select(kept)
        return records if whole or on_bad == "error" else readable(records, self.common.several)

    # ---- questions ---------------------------------------------------------------------------------------------------
    @property
    def question_images(self) -> Path:
        """The folder that `image` is relative to in its question files."""
        own = self.entry.images if self.entry.test_images is None else self.entry.test_images
        return self.common.data / (self.common.benchmark.images if own is None else own)

    @property
    def question_files(self) -> list[Path]:
        """The question file, or the files whose questions are asked together.

        Raises:
            UserError: the task has no file of the split that `eval.split` names.
        """
        split = self.common.eval.split
        name = self.entry.test if split == "test" else self.entry.val
        if name is None:
            raise UserError(f"task '{self.id}' of benchmark '{self.common.benchmark.name}' has no {split} file; "
                            f"set eval.split={'val' if split == 'test' else 'test'}.")  # fmt: skip
        return [self.common.folder / one for one in (name if isinstance(name, list) else [name])]

    @property
    def named_files(self) -> str:
        """The question files as errors name them."""
        return ", ".join(map(str, self.question_files))

    def questions_sha256(self) -> str:
        """The SHA-256 of the question file; of the hashes of all, one on a line, where there are several."""
        hashes = [content_sha256(file) for file in self.question_files]
        return hashes[0] if len(hashes) == 1 else hashlib.sha256("\n".join(hashes).encode()).hexdigest()

    def settings(self) -> dict[str, Any]:
        """What decides its answers besides the model."""
        return self.common.settings(self.entry)

    def all_questions(self) -> Rows:
        """Every question. Of several files each id begins with its file's name, which is also its category.

        POPE is three files whose ids overlap: question 1 of coco_pope_random.json becomes "coco_pope_random:1". A category
        that the question has itself stays.
        """
        files, images = self.question_files, self.question_images
        if len(files) == 1:
            return load_questions(files[0], images)
        return [
            {"category": file.stem, **question, "question_id": f"{file.stem}:{question['question_id']}"}
            for file in files
            for question in load_questions(file, images)
        ]

    def questions(self) -> tuple[Rows, int]:
        """The questions as the file has them, those that `limit` keeps, and how many the file holds.

        Caption references know a question by its place in the whole file, so a part keeps that as `image_id`.
        """
        questions = self.all_questions()
        kept = self._drawn(questions)
        if len(kept) < len(questions) and get(self.metric).needs == "coco":
            for i in kept:
                questions[i].setdefault("image_id", i + 1)
        return [questions[i] for i in kept], len(questions)

    def _drawn(self, questions: Rows) -> list[int]:
        """Places of the questions that `limit` keeps; the rotations of one, which share its `circle`, together."""
        places: dict[Any, list[int]] = {}
        for place, question in enumerate(questions):
            places.setdefault(question.get("circle", ("alone", place)), []).append(place)
        groups = [*places.values()]
        return sorted(place for i in draw(self.common.limit, self.common.seed, len(groups)) for place in groups[i])

    # ---- scoring -----------------------------------------------------------------------------------------------------
    @property
    def reference_file(self) -> Path | None:
        name = self.entry.references if self.common.eval.split == "test" else self.entry.val_references
        return None if name is None else self.common.folder / name

    @property
    def other_answers(self) -> Path | None:
        """The file of another model's answers that the legacy protocol needs, if it needs any."""
        if not self.is_legacy or self.entry.legacy.answers is None:
            return None
        return self.common.folder / self.entry.legacy.answers

    def score_options(self, partial: bool = False) -> dict[str, Any]:
        """Options of the metric. partial: the questions asked are not all of the file's."""
        return {"tokenizer": self.common.tokenizer, "allow_partial": partial, **self.entry.metric_options}

    def score_labels(self, asked: int, in_file: int) -> list[str]:
        """What must stand beside the score of a cell that is not the whole benchmark's."""
        labels = [f"partial: {asked} of {in_file} questions (limit={self.common.limit})"] if asked < in_file else []
        if self.common.eval.split == "test" and self.entry.n_test is not None and self.entry.n_test != in_file:
            labels.append(f"the question file holds {in_file} questions, the benchmark's {self.entry.n_test}")
        return labels

    def check_scoring(self, questions: Rows, in_file: int) -> None:
        """Everything that scoring these questions reads is there and fits, so that nothing is refused after they were asked.

        questions, in_file: of `questions()`.

        Raises:
            UserError: a question or a reference that the metric cannot use, or an answer of the other model's
                (`legacy.answers`) that is missing; file and record are named.
        """
        options = self.score_options(partial=len(questions) < in_file)
        get(self.metric).gold(questions, self.reference_file, options, self.named_files)
        if self.other_answers is not None:
            self._other_texts(questions)

    def mix_answers(self, rows: Rows) -> tuple[Rows, list[str]]:
        """Legacy protocol: all but the first of `workers` slices of the answers are replaced by another model's.

        Repeats what several workers made of MLLM-ACL's Math sheet. Returns rows and labels.

        Raises:
            UserError: the other model's file is missing or lacks an id.
        """
        if not self.is_legacy:
            return rows, []
        labels = [f"legacy protocol: {self.entry.legacy.reason}"]
        if self.other_answers is None:
            return rows, labels
        own, texts = self._other_texts(rows)
        mixed = [*rows[:own], *({**row, "text": text} for row, text in zip(rows[own:], texts))]
        return mixed, [*labels, f"{len(rows) - own} of {len(rows)} answers are another model's"]

    def _other_texts(self, rows: Rows) -> tuple[int, list[str]]:
        """How many of the rows, questions or answers to them, keep their own answer, and the other model's to the rest."""
        file = self.other_answers
        other = {json.dumps(row.get("question_id")): row.get("text") for row in read_jsonl(file)}
        own = -(-len(rows) // self.entry.legacy.workers)
        for row in rows[own:]:
            if not isinstance(other.get(json.dumps(row["question_id"])), str):
                raise UserError(f"{file}: has no answer to question {row['question_id']!r}.")
        return own, [other[json.dumps(row["question_id"])] for row in rows[own:]]


def stored_tasks(tree: dict[str, Any]) -> dict[str, BenchmarkTask]:
    """The tasks of a run by id, general ones too, from its stored configuration, without its method and model.

    Raises:
        ValidationError, KeyError, TypeError: it is no configuration of a run.
    """
    benchmark, evaluation = BenchmarkConfig.model_validate(tree["benchmark"]), EvalConfig.model_validate(tree["eval"])
    whole = RunConfig.model_construct(data_root=tree.get("data_root"))
    common = Common(benchmark, evaluation, whole.data_folder(), tree.get("limit"), tree["seed"],
                    tree["train"]["on_bad_sample"], tree["caption"]["tokenizer"])  # fmt: skip
    return {entry.id: BenchmarkTask(entry, common) for entry in [*benchmark.tasks, *benchmark.general]}


def with_suffix(questions: Rows, suffix: str | dict[str, str] | None) -> Rows:
    """The questions as they are put to the model: the suffix follows the text directly, separator included.

    A mapping chooses it by the gold answer ("*": any other), as the published code of MLLM-DCL's Finance task does.

    Raises:
        UserError: the suffix depends on an answer that a question does not have, or that the mapping lacks.
    """
    if not suffix:
        return questions
    asked = []
    for question in questions:
        added = suffix
        if isinstance(suffix, dict):
            added = suffix.get(str(question.get("answer")), suffix.get("*"))
            if added is None or "answer" not in question:
                raise UserError(
                    f"question {question['question_id']!r}: no suffix for the answer {question.get('answer')!r}."
                )
        asked.append({**question, "text": question["text"] + added})
    return asked
