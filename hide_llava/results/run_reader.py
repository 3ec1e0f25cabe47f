"""Reading a run folder: manifest, scores, answers, training logs (docs/CHECKPOINTS.md). Nothing here writes."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import yaml

from hide_llava.errors import UserError
from hide_llava.metrics.rows import read_json, read_jsonl, read_text
from hide_llava.naming import names_a_folder
from hide_llava.results.bootstrap import Interval, interval, usable_verdicts
from hide_llava.results.matrix import AccuracyMatrix
from hide_llava.schema import as_stored
from hide_llava.yaml_text import parse_yaml

# What all cells of a run share, so that they can be compared, and what those of one task share; that may be its own.
SHARED = {"image_transform", "image_orientation", "split", "limit", "dtype", "device"}
OF_A_TASK = {"protocol", "headline", "max_new_tokens", "prompt_suffix", "metric_options", "questions_sha256", "references_sha256"}


@dataclass(frozen=True)
class CellScore:
    """One evaluated cell: the content of its score.json and where its answers lie."""

    stage: str
    task: str
    score: float
    data: dict
    folder: Path

    @property
    def labels(self) -> list[str]:
        return list(self.data.get("labels") or [])

    @cached_property
    def interval(self) -> tuple[Interval | None, str]:
        """95 % bootstrap interval of the headline score over the questions, or (None, why there is none)."""
        verdicts, why = usable_verdicts(self.data)
        return (None, why) if verdicts is None else (interval(np.array(list(verdicts.values()))), "")

    def predictions(self) -> list[dict]:
        """The answer rows; UserError when the file is damaged, [] when there is none."""
        path = self.folder / "predictions.jsonl"
        return read_jsonl(path) if path.is_file() else []


@dataclass
class StoredRun:
    """One run folder. `problems` lists everything that was left out of the numbers, or should be doubted, and why."""

    path: Path
    manifest: dict
    config_text: str
    cells: dict[tuple[str, str], CellScore]
    problems: list[str] = field(default_factory=list)
    general: dict[tuple[str, str], CellScore] = field(default_factory=dict)
    base: dict[str, CellScore] = field(default_factory=dict)  # general tests of the untouched model (eval.general_base)
    counted: frozenset[str] | None = None  # tasks that tables and aggregates are limited to; None: all

    @property
    def name(self) -> str:
        return str(self.manifest.get("name") or self.path.name)

    @property
    def title(self) -> str:
        """The method preset: what a row of a comparison is called."""
        return str(self.manifest.get("preset") or self.manifest.get("method") or self.name)

    @cached_property
    def config(self) -> dict:
        """The resolved configuration as a plain tree; {} when it is missing or damaged."""
        try:
            tree = parse_yaml(self.config_text)
        except (yaml.YAMLError, ValueError, RecursionError):
            return {}
        return tree if isinstance(tree, dict) else {}

    @cached_property
    def trained(self) -> frozenset[str]:
        """Tasks of the sequence that count. A benchmark may also have tasks that no run ever trains: `unseen`."""
        return self._sequence if self.counted is None else self._sequence & self.counted

    @cached_property
    def _sequence(self) -> frozenset[str]:
        tasks = (self.config.get("benchmark") or {}).get("tasks") or []
        never = {task.get("id") for task in tasks if isinstance(task, dict) and task.get("train", "") is None}
        every = frozenset(task["id"] for task in self.manifest["tasks"])
        return every - never or every

    @property
    def unseen(self) -> list[str]:
        """Tasks that are asked but never trained; they are in no aggregate."""
        return [task["id"] for task in self.manifest["tasks"] if task["id"] not in self._sequence]

    @cached_property
    def matrix(self) -> AccuracyMatrix:
        """Columns in the order in which tasks are learned; tasks no stage of this run trains come last."""
        tasks = {task["id"]: task for task in self.manifest["tasks"] if task["id"] in self.trained}
        stages = self.manifest["stages"]
        # Two tasks trained in one stage (joint training) have no stage of their own.
        own = {s["train_tasks"][0]: t for t, s in enumerate(stages) if len(s.get("train_tasks") or []) == 1}
        joint = any(len(s.get("train_tasks") or []) > 1 for s in stages)
        learned = {} if joint else own
        order = sorted(tasks, key=lambda task: learned.get(task, len(stages)))
        rows = []
        for stage in stages:
            scores = [self.cells.get((stage["name"], task)) for task in order]
            rows.append([cell.score if cell else None for cell in scores])
        return AccuracyMatrix(
            [stage["name"] for stage in stages],
            order,
            rows,
            [learned.get(task) for task in order],
            [stage.get("title") or stage["name"] for stage in stages],
            [tasks[task].get("title") or task for task in order],
            self.counted is not None,
        )

    @property
    def evaluated_stages(self) -> int:
        """How many leading stages have every cell they should have."""
        for t, stage in enumerate(self.manifest["stages"]):
            if any((stage["name"], task) not in self.cells for task in stage.get("eval_tasks") or []):
                return t
        return len(self.manifest["stages"])

    @property
    def last_alone(self) -> bool:
        """Whether every task was asked after the last stage, and none after another (`eval --stages last`)."""
        *before, last = self.manifest["stages"]
        whole = all((last["name"], task) in self.cells for task in last.get("eval_tasks") or [])
        return bool(before) and whole and all(stage == last["name"] for stage, _ in self.cells)

    @property
    def unfinished(self) -> bool:
        """Whether there are stages that have yet to be evaluated."""
        return self.evaluated_stages < len(self.manifest["stages"]) and not self.last_alone

    @property
    def current(self) -> AccuracyMatrix:
        """The matrix aggregates are taken from: whole when finished, else the stages that are fully evaluated."""
        return self.matrix.prefix(self.evaluated_stages) if self.unfinished else self.matrix

    def all_cells(self) -> list[tuple[str, CellScore]]:
        """(stage title, cell) in the order of stages, then tasks of the matrix, never trained ones, general ones."""
        general = [task["id"] for task in self.manifest.get("general") or []]
        return [
            (title, cell)
            for stage, title in zip(self.matrix.stages, self.matrix.stage_titles)
            for cells, tasks in ((self.cells, [*self.matrix.tasks, *self.unseen]), (self.general, general))
            for cell in (cells.get((stage, task)) for task in tasks)
            if cell is not None
        ]

    def labels(self) -> list[str]:
        """What must be printed beside any number of this run: its own labels, those of its cells, mixed settings."""
        found = list(self.manifest.get("labels") or [])
        cells = [*self.cells.values(), *self.general.values()]
        asked = list(dict.fromkeys(cell.task for cell in cells))
        limited = any(label.startswith("partial: limit=") for label in found)  # then no cell need say so again
        for label in dict.fromkeys(label for cell in cells for label in cell.labels):
            if limited and label.startswith("partial"):
                continue
            tasks = list(dict.fromkeys(cell.task for cell in cells if label in cell.labels))
            found.append(label if len(tasks) == len(asked) else f"{', '.join(map(self.task_title, tasks))}: {label}")
        found += [f"mixed {text}: the cells of this table are not comparable" for text in self._mixed()]
        return list(dict.fromkeys(found))

    def _mixed(self) -> list[str]:
        """Settings that cells which should share them do not share; a task may have a transform of its own."""
        tasks = (self.config.get("benchmark") or {}).get("tasks") or []
        own = {task.get("id") for task in tasks if isinstance(task, dict) and task.get("image_transform")}
        values: dict[tuple[str, str], set[str]] = {}
        for cell in self.cells.values():
            for setting in (SHARED | OF_A_TASK) & cell.data.keys():
                alone = setting in OF_A_TASK or (setting == "image_transform" and cell.task in own)
                key = (setting.removesuffix("_sha256"), f" of {self.task_title(cell.task)}" if alone else "")
                value = repr(cell.data[setting]) if setting == "prompt_suffix" else str(cell.data[setting])
                values.setdefault(key, set()).add(value[:8] if setting.endswith("_sha256") else value)
        mixed = {key: found for key, found in sorted(values.items()) if len(found) > 1}
        return [f"{setting}{of} ({', '.join(sorted(found))})" for (setting, of), found in mixed.items()]

    def settings(self) -> dict[str, list[str]]:
        """{setting: distinct values} of what decides an answer besides the model, over all cells."""
        keys = ("image_transform", "image_orientation", "max_new_tokens", "split", "limit", "protocol", "headline")
        found = {
            key: sorted({str(c.data[key]) for c in self.cells.values() if c.data.get(key) is not None}) for key in keys
        }
        return {key: values for key, values in found.items() if values}

    def task_title(self, task: str) -> str:
        known = [*self.manifest["tasks"], *(self.manifest.get("general") or [])]
        return next((t.get("title") or task for t in known if t["id"] == task), task)

    @cached_property
    def expert_stages(self) -> dict[str, int]:
        """{adapter: index of the stage that trained it}, for adapters that exactly one stage trained."""
        file = self.path / "variant.json"  # a variant answers with the stages of another run
        stored = read_json(file, "variant") if file.is_file() else {}
        trained_in = self.path / str(stored.get("of", ".")) if isinstance(stored, dict) else self.path
        owners: dict[str, list[int]] = {}
        for index, stage in enumerate(self.manifest["stages"]):
            path = trained_in / "stages" / stage["name"] / "method.json"
            names = read_json(path, "stage description").get("adapters") if path.is_file() else None
            for name in names or []:
                owners.setdefault(name, []).append(index)
        return {name: stages[0] for name, stages in owners.items() if len(stages) == 1}

    @cached_property
    def expert_titles(self) -> dict[str, str]:
        """{adapter: title of the task it was trained on}, for adapters that exactly one stage trained."""
        return {name: self.matrix.stage_titles[index] for name, index in self.expert_stages.items()}

    def logs(self) -> dict[str, list[dict]]:
        """{stage name: rows of trainer_log.jsonl} of the stages that have one. A cut last line is dropped."""
        found = {}
        for stage in self.manifest["stages"]:
            path = self.path / "stages" / stage["name"] / "trainer_log.jsonl"
            if path.is_file():
                found[stage["name"]] = _log_rows(path)
        return found


def _log_rows(path: Path) -> list[dict]:
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def read_run(path: Path) -> StoredRun:
    """The run in that folder. UserError when it is no run folder; damaged cells become `problems`, not numbers."""
    path = Path(path)
    if not (path / "manifest.json").is_file():
        raise UserError(f"{path} is not a run folder (no manifest.json); give a folder made by `hide-llava run`.")
    manifest = read_json(path / "manifest.json", "manifest")
    _check_manifest(manifest, path)
    config = path / "config.yaml"
    run = StoredRun(path, manifest, read_text(config, "configuration") if config.is_file() else "", {})
    for stage in manifest["stages"]:
        for task in manifest["tasks"]:
            _read_cell(run, run.cells, stage["name"], task["id"], task["id"] in (stage.get("eval_tasks") or []))
        for task in manifest.get("general") or []:
            _read_cell(run, run.general, stage["name"], task["id"], False)
    base: dict[tuple[str, str], CellScore] = {}
    for task in manifest.get("general") or []:
        _read_cell(run, base, "00-base", task["id"], False, _trained_in(path))
    run.base = {task: cell for (_, task), cell in base.items()}
    return run


def _trained_in(path: Path) -> Path:
    """The folder of the run that a variant belongs to; of any other run its own."""
    file = path / "variant.json"
    return path / read_json(file, "note of a variant")["of"] if file.is_file() else path


def _check_manifest(manifest: dict, path: Path) -> None:
    if not isinstance(manifest, dict) or manifest.get("schema") != 1:
        found = manifest.get("schema") if isinstance(manifest, dict) else type(manifest).__name__
        raise UserError(
            f"{path / 'manifest.json'} has schema {found!r}, this version reads 1; use the matching release."
        )
    for key, field_name in (("tasks", "id"), ("stages", "name"), ("general", "id")):
        entries = manifest.get(key, [] if key == "general" else None)
        if not isinstance(entries, list) or any(not isinstance(e, dict) or field_name not in e for e in entries):
            raise UserError(f"{path / 'manifest.json'}: {key} must be a list of records with {field_name}; restore it.")
        for name in (entry[field_name] for entry in entries):
            if not names_a_folder(name):
                raise UserError(f"{path / 'manifest.json'}: {name!r} is not the name of a folder of this run; restore it.")


def _read_cell(run: StoredRun, into: dict, stage: str, task: str, expected: bool, root: Path | None = None) -> None:
    """Add one cell, or a line in `problems` saying why it stays empty. root: another run folder that holds it."""
    folder = (root or run.path) / "eval" / stage / task
    where = f"{stage} / {task}"
    if not (folder / "score.json").is_file():
        if expected and (folder / "predictions.jsonl").is_file():
            run.problems.append(f"{where}: answers without a score (evaluation not finished); the cell is empty.")
        return
    try:
        data = read_json(folder / "score.json", "score file")
        data = as_stored(data) if isinstance(data, dict) else data
    except UserError as error:
        run.problems.append(f"{where}: {error} The cell is empty.")
        return
    score = data.get("score") if isinstance(data, dict) else None
    if isinstance(score, bool) or not isinstance(score, (int, float)) or score != score:
        run.problems.append(f"{where}: score.json holds no number as score; the cell is empty.")
        return
    done, asked = data.get("n_scored"), data.get("n_expected")
    if isinstance(done, int) and isinstance(asked, int) and done < asked:
        run.problems.append(f"{where}: only {done} of {asked} questions are answered; the cell is empty.")
        return
    cell = CellScore(stage, task, float(score), data, folder)
    into[stage, task] = cell
    _check_answers(run, cell, where)


def _check_answers(run: StoredRun, cell: CellScore, where: str) -> None:
    wanted, path = cell.data.get("predictions_sha256"), cell.folder / "predictions.jsonl"
    if not path.is_file():
        run.problems.append(f"{where}: the answers are gone; the score cannot be checked.")
    elif wanted and hashlib.sha256(path.read_bytes()).hexdigest() != wanted:
        run.problems.append(f"{where}: predictions.jsonl changed after it was scored; evaluate the cell again.")
