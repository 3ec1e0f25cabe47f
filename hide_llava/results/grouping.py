"""Which runs may share a table, and which are repetitions of one another.

A table holds runs of one benchmark whose scores mean the same: same tasks, questions, metric, image transform, answer
length, split, limit. A run that differs in one of these gets a table of its own, with the reason. Within a table, runs
that differ in nothing but seed and task order are one row: mean and standard deviation. A repeated seed in the same order
is no further sample, and has a row of its own. What else rows differ in is said of each (`conditions.py`).
"""

from __future__ import annotations

import statistics
from collections import Counter
from dataclasses import dataclass, field

from hide_llava.metrics import ALL_EMPTY
from hide_llava.results.aggregates import References, aggregates
from hide_llava.results.conditions import configuration, differing, dtypes, option, words
from hide_llava.results.matrix import Cell, last_row, mean
from hide_llava.results.run_reader import StoredRun

SETTINGS = (
    "image_transform", "image_orientation", "max_new_tokens", "split", "limit", "protocol", "prompt_suffix", "headline", "metric",
    "questions_sha256",
)  # fmt: skip


@dataclass(frozen=True)
class Stat:
    """Mean over runs, sample standard deviation (None for one run), number of runs."""

    mean: float
    sd: float | None
    count: int


def stat(values: list[Cell]) -> Stat | None:
    """None when there is no value or one of them is missing."""
    average = mean(values)
    if average is None:
        return None
    return Stat(average, statistics.stdev(values) if len(values) > 1 else None, len(values))


@dataclass
class Row:
    """Runs of one configuration. `name` is the preset, with what sets it apart where presets repeat.

    repeats: the run whose configuration, seed and order this row has once more. conditions: {what: value} of what is not
    the same in every row of the table, besides the method.
    """

    runs: list[StoredRun]
    name: str = ""
    repeats: str = ""
    conditions: dict[str, str] = field(default_factory=dict)

    @property
    def finished(self) -> list[StoredRun]:
        """The runs that count: those evaluated to the end, or all when none is."""
        return [run for run in self.runs if not run.unfinished] or self.runs

    def aggregates(self, references: References) -> dict[str, Stat | None]:
        values = [aggregates(run.matrix, references) for run in self.finished]
        return {key: stat([value[key] for value in values]) for key in values[0]}

    def last(self, task: str) -> Stat | None:
        return stat([dict(zip(run.matrix.tasks, last_row(run.matrix))).get(task) for run in self.finished])


@dataclass
class Table:
    """Runs whose scores mean the same. `reasons`: how they differ from the first table of the benchmark."""

    benchmark: str
    tasks: list[str]
    task_titles: list[str]
    rows: list[Row] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)

    @property
    def runs(self) -> list[StoredRun]:
        return [run for row in self.rows for run in row.runs]

    @property
    def references(self) -> References:
        """Last scores of the zero-shot and multi-task runs of this table, averaged over repetitions; of one model only."""

        def of(method: str) -> dict[str, Cell] | None:
            rows = [row for row in self.rows if row.runs[0].manifest.get("method") == method]
            if len(rows) != 1 or len({str(run.manifest.get("model")) for run in self.runs}) > 1:
                return None
            found = {task: rows[0].last(task) for task in self.tasks}
            return {task: value.mean if value else None for task, value in found.items()}

        return References(of("zero_shot"), of("multitask"))


def tables_of(runs: list[StoredRun]) -> list[Table]:
    """Runs in their order, sorted into tables and rows."""
    groups: list[list[StoredRun]] = []
    for run in runs:
        home = next((group for group in groups if all(not differences(run, other) for other in group)), None)
        if home is None:
            groups.append([run])
        else:
            home.append(run)
    tables: list[Table] = []
    for group in groups:
        first = next((t for t in tables if t.benchmark == _benchmark(group[0])), None)
        order = [task for task in group[0].manifest["tasks"] if task["id"] in group[0].trained]
        table = Table(_benchmark(group[0]), [t["id"] for t in order], [t.get("title") or t["id"] for t in order])
        table.rows, table.reasons = _rows(group), differences(group[0], first.rows[0].runs[0]) if first else []
        tables.append(table)
    return tables


def differences(run: StoredRun, other: StoredRun) -> list[str]:
    """Why the scores of two runs mean different things; [] when they can stand in one table."""
    if _benchmark(run) != _benchmark(other):
        return [f"benchmark: {_benchmark(run)}"]
    if run.trained != other.trained:
        return [f"tasks: {', '.join(sorted(run.trained))}"]
    found: dict[str, list[str]] = {}
    for task in sorted(run.trained):
        ours, theirs = ({**_settings(one, task), **_options(one, task)} for one in (run, other))
        for key in ours.keys() & theirs.keys():
            if ours[key] != theirs[key]:
                value = (
                    "another question file" if key == "questions sha256" else f"{key}: {ours[key]}, not {theirs[key]}"
                )
                found.setdefault(value, []).append(run.task_title(task))
    everywhere = [text for text, tasks in found.items() if len(tasks) == len(run.trained)]
    return sorted(everywhere) + sorted(
        f"{text} ({', '.join(t)})" for text, t in found.items() if text not in everywhere
    )


def _settings(run: StoredRun, task: str) -> dict[str, str]:
    """What a task's scores of this run were made with; {} when it has no cell."""
    cells = [cell for (_, t), cell in run.cells.items() if t == task]
    if not cells:
        return {}
    found = {key.replace("_", " "): sorted({str(cell.data.get(key)) for cell in cells}) for key in SETTINGS}
    # "partial: first 20 questions" is already said by the limit; "caption6-python, not comparable" is another metric.
    told = ("partial", ALL_EMPTY)  # empty answers are a result, not a setting
    labels = sorted({label for cell in cells for label in cell.labels if not label.startswith(told)})
    return {key: ", ".join(values) for key, values in {**found, "labels": labels or ["none"]}.items()}


def _options(run: StoredRun, task: str) -> dict[str, str]:
    """Options of the task's metric, which the run's configuration holds: they decide what a score means."""
    tasks = (run.config.get("benchmark") or {}).get("tasks") or []
    stated = [t for t in tasks if isinstance(t, dict) and t.get("id") == task and "metric_options" in t]
    return {"metric options": str(stated[0]["metric_options"] or "none")} if stated else {}


def kind(run: StoredRun) -> tuple:
    """The same for two runs that differ in nothing but seed, order and machine, and how they are asked."""
    return run.title, str(run.manifest.get("model")), tuple(sorted(configuration(run).items()))


def _rows(runs: list[StoredRun]) -> list[Row]:
    rows: dict[tuple, list[Row]] = {}
    for run in runs:
        alike = rows.setdefault(kind(run), [])
        home = next((row for row in alike if all(_are_samples(run, other) for other in row.runs)), None)
        if home is None:
            twins = [other.path.name for row in alike for other in row.runs if _sample(other) == _sample(run)]
            alike.append(Row([run], repeats=twins[0] if twins else ""))
        else:
            home.runs.append(run)
    found = [row for alike in rows.values() for row in alike]
    _name(found)
    for row, own in zip(found, differing([row.runs for row in found], [row.name for row in found])):
        row.conditions = own
    return found


def _sample(run: StoredRun) -> tuple:
    """What makes a repetition another sample: the seed and the order of the tasks."""
    order = run.matrix.tasks if run.matrix.sequential else [task["id"] for task in run.manifest["tasks"]]
    return str(run.manifest.get("seed")), tuple(order)


def _are_samples(run: StoredRun, other: StoredRun) -> bool:
    """Whether both may enter one mean: different samples, answered in the same number format as far as that is known."""
    ours, theirs = dtypes(run), dtypes(other)
    return _sample(run) != _sample(other) and (not ours or not theirs or ours == theirs)


def _name(rows: list[Row]) -> None:
    """The preset; where presets repeat also the model, then what sets the configuration apart, then the folder."""
    for row in rows:
        row.name = row.runs[0].title
    for distinguish in (_model, _own_keys, lambda row, twins: row.runs[0].path.name):
        for name in {row.name for row in rows}:
            twins = [row for row in rows if row.name == name]
            extras = [distinguish(row, twins) for row in twins] if len(twins) > 1 else []
            for row, extra in zip(twins, extras):
                row.name = f"{name}, {extra}" if extra else name


def _model(row: Row, twins: list[Row]) -> str:
    models = {str(twin.runs[0].manifest.get("model")) for twin in twins}
    return str(row.runs[0].manifest.get("model")) if len(models) > 1 else ""


def _own_keys(row: Row, twins: list[Row]) -> str:
    """At most three values that not all twins have; the one that is most frequent goes without saying."""
    own, every = configuration(row.runs[0]), [configuration(twin.runs[0]) for twin in twins]

    def usual(key: str) -> bool:
        (value, count), *others = Counter(other.get(key) for other in every).most_common(2)
        return not others or (own[key] == value and count > others[0][1])

    return ", ".join([option(key, own[key]) for key in sorted(own) if not usual(key)][:3])


def row_notes(row: Row, table: Table) -> list[str]:
    """What must be said beside a row: repetitions, unfinished runs, conditions that not every row has, labels."""
    found = []
    if row.repeats:
        found.append(f"the configuration, seed and task order of {row.repeats} once more: no further sample, so not averaged")
    if len(row.finished) > 1:
        seeds = ", ".join(sorted({str(run.manifest.get("seed")) for run in row.finished}))
        orders = len({tuple(run.matrix.tasks) for run in row.finished if run.matrix.sequential})
        found.append(
            f"mean ± sd over {len(row.finished)} runs (seeds {seeds}; {orders or 1} task order{'s' * (orders > 1)})"
        )
    for run in (run for run in row.runs if run.unfinished):
        state = f"unfinished, {run.evaluated_stages} of {len(run.manifest['stages'])} stages evaluated"
        found.append(state if len(row.runs) == 1 else f"{run.path.name}: {state}, not in the mean")
    if any(run.last_alone for run in row.finished):
        found.append("asked after the last stage only")
    if row.conditions:
        found.append(f"not the same in every row: {words(row.conditions)}")
    return list(dict.fromkeys(found + [label for run in row.runs for label in run.labels()]))


def _benchmark(run: StoredRun) -> str:
    return str(run.manifest.get("benchmark"))
