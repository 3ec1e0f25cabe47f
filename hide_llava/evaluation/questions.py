"""What a task asks and how: its files, the settings that decide an answer, the text of every question."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from hide_llava.benchmarks.places import image_root
from hide_llava.benchmarks.selection import draw
from hide_llava.config import RunConfig, TaskConfig
from hide_llava.data.records import load_questions
from hide_llava.errors import UserError
from hide_llava.metrics import get
from hide_llava.metrics.rows import read_jsonl
from hide_llava.storage import sha256

Rows = list[dict[str, Any]]


def question_files(config: RunConfig, task: TaskConfig) -> list[Path]:
    """The task's question file, or the files whose questions are asked together.

    Raises:
        UserError: the task has no file of the split that `eval.split` names.
    """
    name = task.test if config.eval.split == "test" else task.val
    if name is None:
        raise UserError(f"task '{task.id}' of benchmark '{config.benchmark.name}' has no {config.eval.split} file; "
                        f"set eval.split={'val' if config.eval.split == 'test' else 'test'}.")  # fmt: skip
    folder = config.data_folder() / config.benchmark.instructions
    return [folder / one for one in (name if isinstance(name, list) else [name])]


def named_files(config: RunConfig, task: TaskConfig) -> str:
    """The question files as errors name them."""
    return ", ".join(map(str, question_files(config, task)))


def questions_sha256(config: RunConfig, task: TaskConfig) -> str:
    """The SHA-256 of the question file; of the hashes of all, one on a line, where there are several."""
    hashes = [sha256(file) for file in question_files(config, task)]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def all_questions(config: RunConfig, task: TaskConfig) -> Rows:
    """Every question of the task. Of several files each id begins with its file's name, which is also its category.

    POPE is three files whose ids overlap: question 1 of coco_pope_random.json becomes "coco_pope_random:1". A category
    that the question has itself stays.
    """
    files, images = question_files(config, task), image_root(config, task, test=True)
    if len(files) == 1:
        return load_questions(files[0], images)
    return [
        {"category": file.stem, **question, "question_id": f"{file.stem}:{question['question_id']}"}
        for file in files
        for question in load_questions(file, images)
    ]


def reference_file(config: RunConfig, task: TaskConfig) -> Path | None:
    name = task.references if config.eval.split == "test" else task.val_references
    return None if name is None else config.data_folder() / config.benchmark.instructions / name


def is_legacy(config: RunConfig, task: TaskConfig) -> bool:
    """Whether this task is asked or scored with the published code's fault."""
    return config.eval.protocol == "legacy" and task.legacy is not None


def generation_settings(config: RunConfig, task: TaskConfig | None = None) -> dict[str, Any]:
    """What decides an answer besides the model; stored with every score, because scores of two settings differ.

    Without a task: the benchmark's settings, and no suffix.
    """
    own = task or TaskConfig.model_construct()
    legacy = task is not None and is_legacy(config, task)
    return {
        "image_transform": config.eval.image_transform or own.image_transform or config.benchmark.image_transform,
        "image_orientation": config.benchmark.image_orientation,
        "max_new_tokens": config.eval.max_new_tokens or own.max_new_tokens or config.benchmark.max_new_tokens,
        "split": config.eval.split,
        "prompt_suffix": own.legacy.suffix_by_answer or own.prompt_suffix if legacy else own.prompt_suffix,
        "protocol": "legacy" if legacy else "clean",
        "limit": config.limit,
    }


def read_questions(config: RunConfig, task: TaskConfig) -> tuple[Rows, int]:
    """The task's questions as its file has them, those that `limit` keeps, and how many the file holds.

    Caption references know a question by its place in the whole file, so a part keeps that as `image_id`.
    """
    questions = all_questions(config, task)
    kept = draw(config, len(questions))
    if len(kept) < len(questions) and get(task.metric).needs == "coco":
        for i in kept:
            questions[i].setdefault("image_id", i + 1)
    return [questions[i] for i in kept], len(questions)


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


def mix_answers(rows: Rows, config: RunConfig, task: TaskConfig) -> tuple[Rows, list[str]]:
    """Legacy protocol: all but the first of `workers` slices of the answers are replaced by another model's.

    Repeats what several workers made of MLLM-ACL's Math sheet (benchmarks.md §3.5). Returns rows and labels.

    Raises:
        UserError: the other model's file is missing or lacks an id.
    """
    if not is_legacy(config, task):
        return rows, []
    labels = [f"legacy protocol: {task.legacy.reason}"]
    if task.legacy.answers is None:
        return rows, labels
    own, texts = _other_texts(config, task, rows)
    mixed = [*rows[:own], *({**row, "text": text} for row, text in zip(rows[own:], texts))]
    return mixed, [*labels, f"{len(rows) - own} of {len(rows)} answers are another model's"]


def _other_texts(config: RunConfig, task: TaskConfig, rows: Rows) -> tuple[int, list[str]]:
    """How many of the rows, questions or answers to them, keep their own answer, and the other model's to the rest."""
    file = legacy_file(config, task)
    other = {json.dumps(row.get("question_id")): row.get("text") for row in read_jsonl(file)}
    own = -(-len(rows) // task.legacy.workers)
    for row in rows[own:]:
        if not isinstance(other.get(json.dumps(row["question_id"])), str):
            raise UserError(f"{file}: has no answer to question {row['question_id']!r}.")
    return own, [other[json.dumps(row["question_id"])] for row in rows[own:]]


def check_scoring(config: RunConfig, task: TaskConfig, questions: Rows, in_file: int) -> None:
    """Everything that scoring these questions reads is there and fits, so that nothing is refused after they were asked.

    questions, in_file: of `read_questions`.

    Raises:
        UserError: a question or a reference that the task's metric cannot use, or an answer of the other model's
            (`legacy.answers`) that is missing; file and record are named.
    """
    options = score_options(config, task, partial=len(questions) < in_file)
    get(task.metric).gold(questions, reference_file(config, task), options, named_files(config, task))
    if legacy_file(config, task) is not None:
        _other_texts(config, task, questions)


def legacy_file(config: RunConfig, task: TaskConfig) -> Path | None:
    """The other model's answers that the legacy protocol needs, if it needs any."""
    if not is_legacy(config, task) or task.legacy.answers is None:
        return None
    return config.data_folder() / config.benchmark.instructions / task.legacy.answers


def score_options(config: RunConfig, task: TaskConfig, partial: bool = False) -> dict[str, Any]:
    """Options of the task's metric. `partial`: the questions asked are not all of the file's."""
    return {"tokenizer": config.caption.tokenizer, "allow_partial": partial, **task.metric_options}


def score_labels(config: RunConfig, task: TaskConfig, asked: int, in_file: int) -> list[str]:
    """What must stand beside the score of a cell that is not the whole benchmark's."""
    labels = [f"partial: {asked} of {in_file} questions (limit={config.limit})"] if asked < in_file else []
    if config.eval.split == "test" and task.n_test is not None and task.n_test != in_file:
        labels.append(f"the question file holds {in_file} questions, the benchmark's {task.n_test}")
    return labels
