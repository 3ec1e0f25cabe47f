"""The same run told the task of every question: what better routing could gain at most."""

from __future__ import annotations

from dataclasses import dataclass, field

from hide_llava.errors import UserError
from hide_llava.results.bootstrap import paired, usable_verdicts
from hide_llava.results.run_reader import StoredRun, read_run
from hide_llava.storage import read_json

TOLD = ({"router": "oracle"}, {"routing": "oracle"})  # changes of a variant; the second is HiDe's alone


@dataclass
class OracleGap:
    """One task: its score, the oracle's, and what lies between (percent), with a 95 % interval where verdicts allow one."""

    task: str
    score: float
    oracle: float
    gap: float
    interval: tuple[float, float] | None


@dataclass
class Oracle:
    """variant: its folder's name. rows: of the tasks that both were asked."""

    variant: str
    rows: list[OracleGap] = field(default_factory=list)


def oracle_of(run: StoredRun, stage: int) -> Oracle | None:
    """Of the variant that is this run but told the task (`router` or `routing` is `oracle`, and nothing else differs); None if
    none was evaluated after that stage."""
    for file in sorted((run.path / "variants").glob("*/variant.json")):
        try:
            changes = read_json(file).get("changes")
            variant = read_run(file.parent) if changes in TOLD else None
        except UserError:  # a variant that was begun only
            continue
        rows = _rows(run, variant, run.matrix.stages[stage]) if variant else []
        if rows:
            return Oracle(file.parent.name, rows)
    return None


def _rows(run: StoredRun, oracle: StoredRun, stage: str) -> list[OracleGap]:
    found = []
    for task in run.matrix.tasks:
        ours, theirs = run.cells.get((stage, task)), oracle.cells.get((stage, task))
        if ours is None or theirs is None:
            continue
        own, other = usable_verdicts(ours.data)[0], usable_verdicts(theirs.data)[0]
        between = paired(other, own).interval if own and other and own.keys() == other.keys() else None
        interval = (between.low, between.high) if between else None
        found.append(OracleGap(task, ours.score, theirs.score, theirs.score - ours.score, interval))
    return found
