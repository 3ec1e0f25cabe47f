"""Everything that would stop a run later, checked before it begins."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames
from transformers.utils import is_flash_attn_2_available

from hide_llava.backbones.loading import device_of, local
from hide_llava.backbones.quantized import bitsandbytes
from hide_llava.benchmarks.files import BenchmarkTask, with_suffix
from hide_llava.data import embedded
from hide_llava.data.dataset import check_place
from hide_llava.data.records import load_records, pictures
from hide_llava.distributed import is_main
from hide_llava.errors import UserError, nearest
from hide_llava.metrics import check_options, get
from hide_llava.settings import per_task
from hide_llava.training.reporting import check_reporting
from hide_llava.training.run import Run
from hide_llava.training.run_folder import stage_name
from hide_llava.training.sequence import training_warnings
from hide_llava.training.session import encoder_kind

LOOKED_AT = 8  # images of each file that are looked for here; all of them are when their stage begins


def preflight(run: Run, train: bool = True, evaluate: bool = True) -> list[str]:
    """Check recipe, files, metrics and the first images; the warnings that a user should see.

    Raises:
        UserError: something is missing, damaged, or cannot be computed on this machine.
    """
    run.prepare()
    check_reporting(run.train.report_to)
    check_machine(run)
    folder = local(run.model.path, run.model_root)
    if folder is not None and not run.family.recorded:  # its template, its processor and the image budget fit together
        run.family.reader_of(folder, run.model)
    places = sorted({i for stage in run.stages for i in stage.train}) if train else []
    learned = [run.tasks[i] for i in places]
    if learned:
        check_recipe(run)
    asked = [*run.tasks, *run.general] if evaluate else []
    _check_files(run, learned, asked)
    if not is_main():
        return []
    warnings = [w for task in learned for w in _check_training(task)]
    if learned:
        warnings += training_warnings(run, [run.records_of(stage) for stage in run.stages])
    warnings += unknown_tasks(run)
    return warnings + [w for task in asked for w in _check_questions(task)] + _left_out(run, evaluate)


def check_machine(run: Run) -> None:
    """Device, number format, attention kernel and router: what would fail when the weights have been read.

    Raises:
        UserError: one that this machine does not have, or that there is not.
    """
    device_of(run.model)
    if run.model.quantization != "none":
        bitsandbytes(run.model.quantization)
    if run.model.attention == "flash" and not is_flash_attn_2_available():
        raise UserError("model.attention=flash: flash_attn is not installed or finds no GPU here; auto takes it where it is.")
    encoder_kind(run.encoder)


def unknown_tasks(run: Run) -> list[str]:
    """Options of the method that name tasks which the benchmark does not have: a misspelt id would have no effect.

    Of a run of some of the tasks nothing is said, since its configuration does not know the others.
    """
    if run.some_tasks:
        return []
    known, found = {task.id for task in run.benchmark.tasks}, []
    for name in per_task(run.method.Config):
        for task in [task for task in getattr(run.options, name) if task not in known]:
            found.append(f"method.{name}.{task} has no effect: {run.benchmark.name} has no such task. {nearest(task, [*known])}")
    return found


def check_recipe(run: Run) -> None:
    """Batch sizes, and the names that transformers would refuse only when the first stage begins."""
    for stage in run.stages:
        run.batches(stage)
    for key, kind in (("schedule", SchedulerType), ("optimizer", OptimizerNames)):
        value, known = getattr(run.train, key), [member.value for member in kind]
        if value not in known:
            raise UserError(f"train.{key}={value}: expected one of {', '.join(known)}.")


def _check_files(run: Run, learned: list[BenchmarkTask], asked: list[BenchmarkTask]) -> None:
    wanted = [task.train_file for task in learned]
    for task in asked:
        wanted += [*task.question_files, *(f for f in (task.reference_file, task.other_answers) if f is not None)]
        check_references(task)
        check_options(task.metric, task.score_options())
        get(task.metric).check(task.score_options())
    missing = [str(f) for f in wanted if not f.exists()]
    if missing:
        raise UserError(
            f"benchmark '{run.benchmark.name}': {len(missing)} of {len(wanted)} files are missing, first {missing[0]}. "
            f"Set data_root= or HIDE_DATA to the folder that holds '{run.benchmark.instructions}'."
        )


def check_references(task: BenchmarkTask) -> None:
    """Raises UserError for a task whose metric reads references from a file that the benchmark does not name."""
    metric = get(task.metric)
    if metric.needs == "coco" and task.reference_file is None:
        key = "references" if task.common.eval.split == "test" else "val_references"
        raise UserError(f"task '{task.id}': metric {metric.name} needs a file of references; set its '{key}'.")


def join_questions(task: BenchmarkTask) -> tuple[list[dict[str, Any]], int]:
    """The questions that are asked, and how many their file holds, after joining them with their references as scoring will.

    Raises:
        UserError: whatever would stop the evaluation, except missing images.
    """
    questions, in_file = task.questions()
    for question in questions:
        check_place(question)
    with_suffix(questions, task.settings()["prompt_suffix"])
    try:
        task.check_scoring(questions, in_file)
    except UserError as error:
        raise UserError(f"task '{task.id}': {error}") from None
    return questions, in_file


def _check_training(task: BenchmarkTask) -> list[str]:
    """Read a training file once: a damaged file of the last task is no surprise after days of training."""
    file, root, strict = task.train_file, task.images, task.common.on_bad_sample == "error"
    records = load_records(file, root, on_bad="error" if strict else "keep", several=task.common.several)
    if strict:
        for i, record in enumerate(records.select(range(min(LOOKED_AT, len(records))))):
            where = f"{file}: record {i} (id {json.loads(record['id'])!r})"
            _check_images(root, record, where, "set images of the task, or train.on_bad_sample=skip")
    return _count_warning(task, "training file", len(records), task.entry.n_train)


def _check_questions(task: BenchmarkTask) -> list[str]:
    questions, in_file = join_questions(task)
    root = task.question_images
    for question in questions:
        check_place(question, task.common.several)
    for question in questions[:LOOKED_AT]:
        where = f"{task.named_files}: question {question['question_id']!r}"
        _check_images(root, question, where, "set images or test_images of the task")
    expected = task.entry.n_test if task.common.eval.split == "test" else None
    warnings = _count_warning(task, "question file", in_file, expected)
    if task.is_legacy:
        warnings.append(
            f"task '{task.id}' follows the published protocol, and its scores are doubtful: {task.entry.legacy.reason}."
        )
    return warnings


def _check_images(root: Path, record: Any, where: str, remedy: str) -> None:
    for image in pictures(record):
        if not embedded.is_there(root / image):
            raise UserError(f"{where}: Image {root / image} does not exist; {remedy}.")


def _count_warning(task: BenchmarkTask, what: str, found: int, expected: int | None) -> list[str]:
    if expected is None or found == expected:
        return []
    return [f"task '{task.id}': its {what} holds {found} records, the benchmark's {expected}."]


def _left_out(run: Run, evaluate: bool) -> list[str]:
    if not evaluate or not run.oracle:
        return []
    tasks = [*run.tasks, *(run.all_general if run.eval.general else [])]
    names = [task.id for task in tasks if not run.can_answer(task)]
    reason = "the method is told the task id at inference, and these were never trained"
    late = [
        f"{task.id} (before {stage_name(stage)})"
        for task in run.general
        for stage in [next(s for s in run.stages if task in run.general_after(s))]
        if stage.index > 0
    ]
    reason_late = "the method is told the task id at inference, and theirs is not learned before"
    return [f"not asked: {', '.join(names)} ({reason})."] * bool(names) + [
        f"not asked at first: {', '.join(late)} ({reason_late})."
    ] * bool(late)
