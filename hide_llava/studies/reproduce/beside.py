"""Tables of several runs: what the order of the tasks changes, and how much of a benchmark the base model knows already."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hide_llava.results.aggregates import aggregates
from hide_llava.results.grouping import differences, kind
from hide_llava.results.matrix import Cell, last_row, mean
from hide_llava.results.run_reader import StoredRun, read_run
from hide_llava.results.tables import number


@dataclass(frozen=True)
class Beside:
    """A table of runs. rows: name and a value for each column; note: what must be known to read it."""

    title: str
    reading: str
    columns: list[str]
    rows: list[tuple[str, list[Cell]]]
    note: str = ""

    def shown(self) -> tuple[list[str], list[list[str]]]:
        """(header, rows) as texts."""
        return ["", *self.columns], [[name, *map(number, values)] for name, values in self.rows]


def orders(folder: Path, others: list[Path]) -> Beside | str:
    """A row for each order of the tasks among the run and the other runs of its configuration; or why there is no table."""
    run = read_run(folder)
    found = {tuple(run.matrix.tasks): run}
    for other in map(read_run, others):
        if kind(other) == kind(run) and not differences(run, other) and not other.unfinished:
            found.setdefault(tuple(other.matrix.tasks), other)
    if len(found) < 2:
        ids = [task["id"] for task in run.manifest["tasks"]]
        return (f"orders: needs finished runs of {run.title} in other task orders beside {folder}; train one, e.g. with "
                f"'task_order=[{','.join(reversed(ids))}]', and name it too.")  # fmt: skip
    means = [aggregates(one.matrix) for one in found.values()]
    tasks = run.matrix.tasks
    rows = [(f"order {k}", [own["last"], own["avg"], *_by_task(one, tasks)])
            for k, (one, own) in enumerate(zip(found.values(), means), 1)]  # fmt: skip
    spread = [_spread([values[c] for _, values in rows]) for c in range(2 + len(tasks))]
    seeds = [one.manifest.get("seed") for one in found.values()]
    told = [f" (seed {seed})" if len({*seeds}) > 1 else "" for seed in seeds]  # the spread is then of both
    names = "; ".join(f"order {k}{of}: {' → '.join(one.matrix.task_titles)}"
                      for k, (one, of) in enumerate(zip(found.values(), told), 1))  # fmt: skip
    return Beside("Order of the tasks", "Spread: highest minus lowest of the rows above.",
                  ["Last", "Avg", *(run.task_title(task) for task in tasks)], [*rows, ("spread", spread)], names)  # fmt: skip


def _by_task(run: StoredRun, tasks: list[str]) -> list[Cell]:
    own = dict(zip(run.matrix.tasks, last_row(run.matrix)))
    return [own.get(task) for task in tasks]


def _spread(values: list[Cell]) -> Cell:
    known = [value for value in values if value is not None]
    return max(known) - min(known) if len(known) == len(values) else None


def leakage(folder: Path, others: list[Path]) -> Beside | str:
    """Zero-shot and joint training of the run's tasks and the gap between them; or why there is no table."""
    run = read_run(folder)
    found: dict[str, StoredRun] = {}
    for other in map(read_run, others):
        method, why = str(other.manifest.get("method")), differences(run, other)
        if method in ("zero_shot", "multitask") and not why and other.manifest.get("model") == run.manifest.get("model"):
            found.setdefault(method, other)
    missing = [method for method in ("zero_shot", "multitask") if method not in found]
    if missing:
        benchmark, model = run.manifest.get("benchmark"), run.manifest.get("model")
        return (f"leakage: needs runs of {' and '.join(missing)} with the same questions beside {folder}, e.g. of "
                f"`hide-llava run benchmark={benchmark} model={model} method={missing[0]}`; name them too.")  # fmt: skip
    tasks = run.matrix.tasks
    zero, joint = (_by_task(found[method], tasks) for method in ("zero_shot", "multitask"))
    gap = [None if low is None or high is None else high - low for low, high in zip(zero, joint)]
    rows = [(name, [mean(values), *values]) for name, values in
            (("zero-shot", zero), ("joint training", joint), ("gap", gap))]  # fmt: skip
    return Beside("What the base model knows already",
                  "A small gap between the untouched model and joint training: the task holds little that is new to it.",
                  ["Mean", *(run.task_title(task) for task in tasks)], rows)  # fmt: skip
