"""Everything that would stop a run later, checked before it begins."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames

from hide_llava.benchmarks.places import image_root, train_file
from hide_llava.benchmarks.prepare import prepare
from hide_llava.config import RunConfig, TaskConfig
from hide_llava.data.dataset import check_place
from hide_llava.data.records import load_records
from hide_llava.distributed import is_main
from hide_llava.errors import UserError
from hide_llava.evaluation.questions import (
    check_scoring,
    generation_settings,
    legacy_file,
    named_files,
    question_files,
    read_questions,
    reference_file,
    score_options,
    with_suffix,
)
from hide_llava.metrics import get
from hide_llava.training.reporting import check_reporting
from hide_llava.training.run_folder import general_tasks, is_oracle, stage_name, stages_of
from hide_llava.training.sequence import records_of, stage_plan, training_warnings

LOOKED_AT = 8  # images of each file that are looked for here; all of them are when their stage begins


def preflight(config: RunConfig, train: bool = True, evaluate: bool = True) -> list[str]:
    """Check recipe, files, metrics and the first images; the warnings that a user should see.

    Raises:
        UserError: something is missing, damaged, or cannot be computed on this machine.
    """
    prepare(config)
    learned = sorted({i for stage in stages_of(config) for i in stage.train}) if train else []
    if learned:
        check_recipe(config)
    asked = [*config.benchmark.tasks, *general_tasks(config)] if evaluate else []
    _check_files(config, [train_file(config, i) for i in learned], asked)
    if not is_main():
        return []
    warnings = [w for i in learned for w in _check_training(config, i)]
    if learned:
        warnings += training_warnings(config, [records_of(config, stage) for stage in stages_of(config)])
    return warnings + [w for task in asked for w in _check_questions(config, task)] + _left_out(config, evaluate)


def check_recipe(config: RunConfig) -> None:
    """Batch sizes, and the names that transformers would refuse only when the first stage begins."""
    for stage in stages_of(config):
        stage_plan(config, stage)
    check_reporting(config)
    for key, kind in (("schedule", SchedulerType), ("optimizer", OptimizerNames)):
        value, known = getattr(config.train, key), [member.value for member in kind]
        if value not in known:
            raise UserError(f"train.{key}={value}: expected one of {', '.join(known)}.")


def _check_files(config: RunConfig, training: list[Path], asked: list[TaskConfig]) -> None:
    wanted = list(training)
    for task in asked:
        metric, references = get(task.metric), reference_file(config, task)
        wanted += [*question_files(config, task), *(f for f in (references, legacy_file(config, task)) if f is not None)]
        check_references(config, task)
        metric.check(score_options(config, task))
    missing = [str(f) for f in wanted if not f.exists()]
    if missing:
        raise UserError(
            f"benchmark '{config.benchmark.name}': {len(missing)} of {len(wanted)} files are missing, first {missing[0]}. "
            f"Set data_root= or HIDE_DATA to the folder that holds '{config.benchmark.instructions}'."
        )


def check_references(config: RunConfig, task: TaskConfig) -> None:
    """Raises UserError for a task whose metric reads references from a file that the benchmark does not name."""
    metric = get(task.metric)
    if metric.needs == "coco" and reference_file(config, task) is None:
        key = "references" if config.eval.split == "test" else "val_references"
        raise UserError(f"task '{task.id}': metric {metric.name} needs a file of references; set its '{key}'.")


def join_questions(config: RunConfig, task: TaskConfig) -> tuple[list[dict[str, Any]], int]:
    """The questions that are asked, and how many their file holds, after joining them with their references as scoring will.

    Raises:
        UserError: whatever would stop the evaluation, except missing images.
    """
    questions, in_file = read_questions(config, task)
    for question in questions:
        check_place(question)
    with_suffix(questions, generation_settings(config, task)["prompt_suffix"])
    try:
        check_scoring(config, task, questions, in_file)
    except UserError as error:
        raise UserError(f"task '{task.id}': {error}") from None
    return questions, in_file


def _check_training(config: RunConfig, index: int) -> list[str]:
    """Read a training file once: a damaged file of the last task is no surprise after days of training."""
    task, file = config.benchmark.tasks[index], train_file(config, index)
    root = image_root(config, task)
    records = load_records(file, root, on_bad="error" if config.train.on_bad_sample == "error" else "keep")
    if config.train.on_bad_sample == "error":
        for i, record in enumerate(records.select(range(min(LOOKED_AT, len(records))))):
            where = f"{file}: record {i} (id {json.loads(record['id'])!r})"
            _check_image(root, record["image"], where, "set images of the task, or train.on_bad_sample=skip")
    return _count_warning(task, "training file", len(records), task.n_train)


def _check_questions(config: RunConfig, task: TaskConfig) -> list[str]:
    questions, in_file = join_questions(config, task)
    root = image_root(config, task, test=True)
    for question in questions[:LOOKED_AT]:
        where = f"{named_files(config, task)}: question {question['question_id']!r}"
        _check_image(root, question.get("image"), where, "set images or test_images of the task")
    settings = generation_settings(config, task)
    warnings = _count_warning(task, "question file", in_file, task.n_test if config.eval.split == "test" else None)
    if settings["protocol"] == "legacy":
        warnings.append(
            f"task '{task.id}' follows the published protocol, and its scores are doubtful: {task.legacy.reason}."
        )
    return warnings


def _check_image(root: Path, image: Any, where: str, remedy: str) -> None:
    if image is not None and not (root / image).is_file():
        raise UserError(f"{where}: Image {root / image} does not exist; {remedy}.")


def _count_warning(task: TaskConfig, what: str, found: int, expected: int | None) -> list[str]:
    if expected is None or found == expected:
        return []
    return [f"task '{task.id}': its {what} holds {found} records, the benchmark's {expected}."]


def _left_out(config: RunConfig, evaluate: bool) -> list[str]:
    if not evaluate or not is_oracle(config):
        return []
    tasks = [*config.benchmark.tasks, *(config.benchmark.general if config.eval.general else [])]
    names = [t.id for t in tasks if t.train is None and t.instruction_of is None]
    reason = "the method is told the task id at inference, and these were never trained"
    late = [
        f"{task.id} (before {stage_name(stage)})"
        for task in general_tasks(config)
        for stage in [next(s for s in stages_of(config) if task in general_tasks(config, s))]
        if stage.index > 0
    ]
    reason_late = "the method is told the task id at inference, and theirs is not learned before"
    return [f"not asked: {', '.join(names)} ({reason})."] * bool(names) + [
        f"not asked at first: {', '.join(late)} ({reason_late})."
    ] * bool(late)
