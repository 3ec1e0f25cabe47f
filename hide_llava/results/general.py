"""What a run kept of the model's general ability: scores after its last stage against those of the untouched model.

With G tests of general ability, g[i] the score on test i after the last stage and b[i] that of the untouched model on the same
questions (docs/METRICS.md, General ability):

    Δ[i] = g[i] − b[i]        retention = (100/G) Σ_i g[i] / b[i]        H = 2 · retention · Last / (retention + Last)

The untouched model's scores are those of `eval.general_base`, else those of a zero_shot run of the same model. A number that
needs a missing one is None, with the reason.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from hide_llava.results.aggregates import last
from hide_llava.results.grouping import SETTINGS
from hide_llava.results.matrix import Cell, mean
from hide_llava.results.run_reader import CellScore, StoredRun

RETENTION = "(100/G) Σ_i g[i] / b[i]"
H_SCORE = "2 · retention · Last / (retention + Last)"
WITHOUT_BASE = (
    "no scores of the untouched model: `hide-llava eval RUN eval.general_base=true` asks it, or compare with a zero_shot run"
)

Bases = dict[str, list[CellScore]]
"""Test → cells of the untouched model that may stand for it, the nearest first."""


@dataclass(frozen=True)
class Ability:
    """One test: scores in percent. why: the reason for which it has no base."""

    task: str
    title: str
    base: Cell
    score: Cell
    why: str = ""

    @property
    def delta(self) -> Cell:
        return None if self.base is None or self.score is None else self.score - self.base

    @property
    def retention(self) -> Cell:
        """Percent of the base's score; None where that is 0."""
        return None if self.delta is None or not self.base else 100 * self.score / self.base


def asked(run: StoredRun) -> list[str]:
    """Ids of the tests that the run was asked or is to be asked after its last stage, in the order of its manifest.

    None where no test has a score yet.
    """
    scored = {task for _, task in run.general}
    if not scored:
        return []
    due = {task for stage in run.manifest["stages"][-1:] for task in stage.get("general_tasks") or []}
    return [task["id"] for task in run.manifest.get("general") or [] if task["id"] in scored | due]


def base_cells(run: StoredRun) -> dict[str, CellScore]:
    """The untouched model's cells that the run itself holds; those of a zero_shot run are its own."""
    untrained = run.manifest.get("method") == "zero_shot"
    own = {task: cell for (_, task), cell in run.general.items()} if untrained else {}
    return {**own, **run.base}


def base_of(runs: Iterable[StoredRun], model: str) -> Bases:
    """What those runs hold of a model's untouched state, in their order."""
    found: Bases = {}
    for run in runs:
        if str(run.manifest.get("model")) == model:
            for task, cell in base_cells(run).items():
                found.setdefault(task, []).append(cell)
    return found


def otherwise(cell: CellScore, other: CellScore, keys: Iterable[str]) -> list[str]:
    """Of those settings the ones by which both cells are known to have been asked in two ways."""
    return [key for key in keys if key in cell.data and key in other.data and cell.data[key] != other.data[key]]


def incomparable(cell: CellScore, base: CellScore) -> str:
    """Why the scores of two cells cannot be subtracted; "" when they can."""
    if named := otherwise(cell, base, ("model_sha256", "dtype", *SETTINGS)):
        return f"the untouched model was asked with another {', '.join(key.replace('_', ' ') for key in named)}"
    verdicts = [one.data.get("verdicts") for one in (cell, base)]
    other = all(verdicts) and verdicts[0].keys() != verdicts[1].keys()
    return "the untouched model was asked other questions" if other else ""


def abilities(run: StoredRun, stage: str, base: Bases | None = None) -> list[Ability]:
    """All tests after a stage. base: cells of the untouched model, where the run has none itself that its own compare with."""
    own, found = base_cells(run), []
    for task in asked(run):
        cell, known = run.general.get((stage, task)), [*([own[task]] if task in own else []), *(base or {}).get(task, [])]
        reasons = [incomparable(cell, one) if cell else "" for one in known]
        fitting = next((one for one, reason in zip(known, reasons) if not reason), None)
        beside, why = (fitting, "") if fitting else (None, reasons[0] if reasons else WITHOUT_BASE)
        found.append(Ability(task, run.task_title(task), None if why else beside.score, cell.score if cell else None, why))
    return found


def retention(found: list[Ability]) -> Cell:
    """The mean over the tests, percent; None where one of them has none."""
    return mean(ability.retention for ability in found)


def h_score(kept: Cell, learned: Cell) -> Cell:
    """The harmonic mean of retention and Last, both in percent; 0 where one of them is."""
    if kept is None or learned is None:
        return None
    return 2 * kept * learned / (kept + learned) if kept > 0 and learned > 0 else 0.0


def at_the_end(run: StoredRun, base: Bases | None = None) -> tuple[list[Ability], Cell, Cell]:
    """(tests, retention, H) after the last stage of a run that trains."""
    stage = run.matrix.stages[-1] if run.matrix.stages else ""
    found = abilities(run, stage, base)
    return found, *kept_of(run, found)


def kept_of(run: StoredRun, found: list[Ability]) -> tuple[Cell, Cell]:
    """(retention, H) of a run that trains, by those tests."""
    kept = retention(found) if run.manifest.get("method") != "zero_shot" else None
    return kept, h_score(kept, last(run.matrix))


def reasons(found: list[Ability]) -> list[str]:
    """One sentence for each reason for which tests have no Δ or no retention, and which tests."""
    why: dict[str, list[str]] = {}
    for ability in found:
        text = ability.why or ("not asked after the last stage" if ability.score is None else "")
        text = text or ("the untouched model scores 0" if ability.retention is None else "")
        if text:
            why.setdefault(text, []).append(ability.title)
    return [f"{', '.join(titles)}: {text}." for text, titles in why.items()]
