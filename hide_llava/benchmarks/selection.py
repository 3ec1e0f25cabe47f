"""Which tasks a run has, and in which order: `tasks`, `task_order` and `limit` become a plain list of tasks."""

from __future__ import annotations

import random
from pathlib import PurePath

from hide_llava.errors import UserError, nearest
from hide_llava.naming import names_a_folder
from hide_llava.schema import BenchmarkConfig, TaskConfig


def select_tasks(
    benchmark: BenchmarkConfig, tasks: list[str] | None, order: list[str] | None
) -> tuple[list[str] | None, list[str] | None]:
    """Check the benchmark's tasks and bring them into the order of the run: trained ones first, in place.

    tasks, order: as the user names them, perhaps by aliases. Returned are the ids, so that a stored configuration resolves
    to itself.

    Raises:
        UserError: no or repeated tasks, an unknown id (with the nearest), or an order that leaves tasks out.
    """
    if not benchmark.tasks:
        raise UserError(f"benchmark '{benchmark.name}' has no tasks.")
    ids = [task.id for task in [*benchmark.tasks, *benchmark.general]]
    if len(set(ids)) != len(ids):
        raise UserError(f"benchmark '{benchmark.name}': task ids repeat ({', '.join(ids)}).")
    if wrong := [task_id for task_id in ids if not names_a_folder(task_id)]:
        raise UserError(f"benchmark '{benchmark.name}': task id {wrong[0]!r} cannot name a folder; use letters, digits, - and _.")
    _check_roles(benchmark.tasks, benchmark.general)
    if tasks is not None:
        chosen = _resolve("tasks", tasks, benchmark.tasks)
        benchmark.tasks = [task for task in benchmark.tasks if task in chosen]
    if order is not None:
        chosen = _resolve("task_order", order, benchmark.tasks)
        left_out = [task.id for task in benchmark.tasks if task.train is not None and task not in chosen]
        if left_out:
            raise UserError(
                f"task_order leaves out {', '.join(left_out)}; name every trained task, or choose with tasks=."
            )
        order = [task.id for task in chosen]
        benchmark.tasks = [*chosen, *(task for task in benchmark.tasks if task not in chosen)]
    benchmark.tasks.sort(key=lambda task: task.train is None)  # stable
    for task in [*benchmark.tasks, *benchmark.general]:
        if task.instruction_of not in [other.id for other in benchmark.tasks]:
            task.instruction_of = None  # the lender was left out
    return tasks and [task.id for task in benchmark.tasks], order


def _resolve(key: str, names: list[str], tasks: list[TaskConfig]) -> list[TaskConfig]:
    """The tasks of these ids or aliases, in the order given."""
    known = {alias: task for task in tasks for alias in task.aliases} | {task.id: task for task in tasks}
    chosen: list[TaskConfig] = []
    for name in names:
        if name not in known:
            raise UserError(f"{key}: the benchmark has no task '{name}'. {nearest(name, [task.id for task in tasks])}")
        if known[name] in chosen:
            raise UserError(f"{key} names the task '{known[name].id}' twice.")
        chosen.append(known[name])
    if not chosen:
        raise UserError(f"{key} names no task. Known: {', '.join(task.id for task in tasks)}.")
    return chosen


def _check_roles(tasks: list[TaskConfig], general: list[TaskConfig]) -> None:
    """Only a trained task lends its id (`instruction_of`), only an untrained one borrows; `general` is never trained."""
    trained = [task.id for task in tasks if task.train is not None]
    for task in [*tasks, *general]:
        files = task.test if isinstance(task.test, list) else [task.test]
        if not files or not all(files):
            raise UserError(f"task '{task.id}': test={task.test!r}; it takes a file, or a list of files.")
        if len({PurePath(file).stem for file in files}) < len(files):
            raise UserError(f"task '{task.id}': the test files need different names, which begin their questions' ids.")
        if task.instruction_of is not None and (task.train is not None or task.instruction_of not in trained):
            raise UserError(
                f"task '{task.id}': instruction_of={task.instruction_of} is for a task without 'train', and names one "
                f"with it. {nearest(task.instruction_of, trained)}"
            )
    for task in general:
        if task.train is not None:
            raise UserError(f"general task '{task.id}' has a training file; list it under tasks, or remove 'train'.")


def draw(limit: int | None, seed: int, count: int) -> list[int]:
    """Indices of the records that `limit` keeps of a file of `count`: the first of a shuffle by the seed, in file order."""
    if limit is None or limit >= count:
        return list(range(count))
    order = list(range(count))
    random.Random(seed).shuffle(order)  # a larger limit keeps what a smaller one has
    return sorted(order[:limit])


def partial_label(limit: int) -> str:
    """What every number of a limited run must be marked with."""
    return f"partial: limit={limit} training records and questions of each file"
