"""All that `analyze router` finds out of one stage of a run."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hide_llava.benchmarks.files import stored_tasks
from hide_llava.errors import UserError
from hide_llava.results.asked import Asked, asked_questions
from hide_llava.results.routing import own_experts
from hide_llava.results.run_reader import read_run
from hide_llava.studies.router.anchors import AnchorCurve, anchor_curve, stored_similarities
from hide_llava.studies.router.answers import Answers, routed_stage
from hide_llava.studies.router.fingerprint import Fingerprint, fingerprint
from hide_llava.studies.router.measures import Agreement, Calibration, Confusion, agreement, calibration, confusion
from hide_llava.studies.router.oracle import Oracle, oracle_of


@dataclass
class Misrouted:
    """A question whose expert was another's: by how much, and what came of it. weights: of the top expert, of its own."""

    task: str
    question: str
    expert: str
    weights: tuple[float, float]
    answered: bool | None
    prompt: str
    pictures: str
    expected: str
    text: str


@dataclass
class RouterStudy:
    """One stage. titles: of tasks; experts: of experts, where they belong to one task. agreement: by task; overall: of all.

    anchors: image, text → (titles, cosines). fingerprint, curve, oracle, calibration: None where `notes` say why, or where
    they were not asked for.
    """

    run: str
    stage: str
    titles: dict[str, str]
    experts: dict[str, str]
    confusion: Confusion
    agreement: dict[str, Agreement]
    overall: Agreement
    calibration: Calibration | None
    oracle: Oracle | None
    anchors: dict[str, tuple[list[str], list[list[float]]]]
    misrouted: list[Misrouted]
    fingerprint: Fingerprint | None = None
    curve: AnchorCurve | None = None
    notes: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def study(folder: Path, number: int | None, samples: int, with_curve: bool) -> RouterStudy:
    """Of stage `number` (from 1; None: the last one with routed answers).

    samples: training records and questions of each task that are read for the fingerprint, and for the curve of anchors, which
    loads the model.

    Raises:
        UserError: no run, no such stage, or answers that do not say how they were routed.
    """
    run = read_run(folder)
    stage, answers = routed_stage(run, number)
    rows = [row for given in answers.values() for row in given]
    experts = list(dict.fromkeys(expert for row in rows for expert in row.weights))
    own = own_experts(run, experts)
    owner = {expert: task for task in run.matrix.tasks for expert in experts if expert in own.get(task, ())}
    asked = asked_questions(run, answers)
    found = RouterStudy(
        run.name, run.matrix.stage_titles[stage], {task: run.task_title(task) for task in answers},
        {expert: run.task_title(owner[expert]) if expert in owner else expert for expert in experts},
        confusion(answers, owner), {task: agreement(given) for task, given in answers.items()}, agreement(rows),
        calibration(rows), oracle_of(run, stage), stored_similarities(run, stage), _misrouted(answers, asked, own),
    )  # fmt: skip
    if found.overall.routed is None:
        found.notes.append("The experts of this run belong to no task of their own, so no routing is right or wrong.")
    chosen_by = [run.config.get("method", {}).get(key) for key in ("router", "routing")]
    if found.oracle is None and any(chosen_by) and "oracle" not in chosen_by:
        found.notes.append(f"No gap to the oracle: `hide-llava eval {folder} method.router=oracle` was not run.")
    try:
        known = stored_tasks(run.config)
        trained = [known[task] for task in answers if known[task].trained]
        found.fingerprint = fingerprint(trained, samples)
    except (UserError, KeyError, TypeError, ValueError) as error:
        found.notes.append(f"No fingerprint: {' '.join(str(error).split())}")
    if with_curve:
        found.curve = anchor_curve(folder, stage, samples)
    return found


def _misrouted(answers: Answers, asked: dict[str, Asked], own: dict[str, frozenset[str]]) -> list[Misrouted]:
    """By task, the surest mistakes first. own: the experts of each task."""
    found = []
    for task, rows in answers.items():
        known = asked.get(task)
        for row in sorted((row for row in rows if row.right is False), key=lambda row: -row.weights[row.top]):
            best = max(row.weights.get(expert, 0.0) for expert in own[task])
            found.append(Misrouted(
                task, row.question, row.top, (row.weights[row.top], best), row.answered, row.prompt,
                " ".join(known.pictures.get(row.question, [])) if known else "",
                known.shown.get(row.question, "") if known else "", row.text,
            ))  # fmt: skip
    return found
