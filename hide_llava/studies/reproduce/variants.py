"""Answering the cases of ablations: each is a variant of the run, and a case that several ablations share is answered once."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from hide_llava import grid
from hide_llava.errors import UserError
from hide_llava.pipeline import Stages
from hide_llava.results.aggregates import aggregates
from hide_llava.results.matrix import Cell
from hide_llava.results.run_reader import CellScore, StoredRun, read_run
from hide_llava.studies.reproduce import adapters
from hide_llava.studies.reproduce.ablations import ABLATIONS, Case, Facts, Options
from hide_llava.training.run_folder import RunFolder


@dataclass(frozen=True)
class Row:
    """One case with what came of it. cells: after the last stage, by task id; last, avg: means (None: not all is known).

    kept, stored: numbers in experts (`adapters.py`); milliseconds: of an answer after the last stage with its scoring, None
    where it was answered in several goes.
    """

    case: Case
    run: StoredRun
    cells: dict[str, CellScore]
    last: Cell
    avg: Cell
    kept: int
    stored: int
    milliseconds: float | None


def facts_of(folder: Path) -> tuple[Facts, list[dict[int, int]]]:
    """What the cases depend on, and the sizes of the experts, of a finished run of HiDe.

    Raises:
        UserError: another method's run, a variant, or one that is not finished.
    """
    run, held = read_run(folder), RunFolder(folder)
    if run.manifest.get("method") != "hide":
        raise UserError(f"{folder}: is a run of method {run.manifest.get('method')}; the ablations are those of hide.")
    if held.trained_in != folder:
        raise UserError(f"{folder}: is a variant; name the run it is a variant of, {held.trained_in.resolve()}.")
    stages = [stage["name"] for stage in run.manifest["stages"]]
    missing = [stage for stage in stages if not held.is_complete(stage)]
    if missing:
        raise UserError(f"{folder}: stage {missing[0]} is not trained yet; finish it first: hide-llava train {folder}")
    experts = adapters.sizes([held.stage(stage) for stage in stages])
    own: Options = {k: v for k, v in held.config.method.items() if k not in ("name", "preset")}
    return Facts(1 + max(experts[0]), len(stages), own), experts


def answer(folder: Path, names: list[str], stages: Stages, again: bool = False) -> dict[str, list[Row]]:
    """The rows of those ablations, in the order of their cases; what is answered already is taken as it is.

    A case that names no router has HiDe's, also where the run has another.

    Raises:
        UserError: see `facts_of` and `grid.evaluate`.
    """
    facts, experts = facts_of(folder)
    cases = {name: ABLATIONS[name].cases(facts) for name in names}
    own = {"router": "anchors"}
    made = {name: grid.of_options(folder, [own | case.options for case in some]) for name, some in cases.items()}
    configs = {_key(config.method): config for some in made.values() for config in some}
    paths = dict(zip(configs, grid.evaluate(folder, list(configs.values()), stages, again)))
    found = {name: [] for name in names}
    for name, some in cases.items():
        for case, config in zip(some, made[name]):
            found[name].append(_row(case, paths[_key(config.method)], config.method["expanded_layers"], facts.depth, experts))
    return found


def _key(options: Options) -> str:
    return json.dumps(options, sort_keys=True)


def _row(case: Case, path: Path, layers: list[int], depth: int, experts: list[dict[int, int]]) -> Row:
    run = read_run(path)
    last = run.manifest["stages"][-1]
    cells = {task: cell for task in run.matrix.tasks if (cell := run.cells.get((last["name"], task)))}
    means, seconds = aggregates(run.matrix), last.get("eval_seconds")
    asked = [cell for every in (run.cells, run.general) for (stage, _), cell in every.items() if stage == last["name"]]
    count = sum(cell.data.get("n_scored") or 0 for cell in asked)
    return Row(case, run, cells, means["last"], means["avg"], adapters.kept_apart(experts, layers, depth),
               adapters.stored(experts, layers, depth), 1000 * seconds / count if seconds and count else None)  # fmt: skip
