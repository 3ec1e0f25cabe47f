"""Where the questions of a stage were routed, beside whether they were answered right."""

from __future__ import annotations

from dataclasses import dataclass

from hide_llava.errors import UserError
from hide_llava.results.per_sample import RIGHT
from hide_llava.results.routing import misrouted, own_experts, usable_weights
from hide_llava.results.run_reader import StoredRun


@dataclass(frozen=True)
class Routed:
    """One answer. weights: expert → weight; top: the expert with the most, the task's own where it shares the first place.

    right: whether that is an expert of the question's task; None where the task has none of its own. answered: whether the
    answer is right (a verdict of 0.5 or more); None without a verdict.
    """

    question: str
    prompt: str
    text: str
    weights: dict[str, float]
    top: str
    right: bool | None
    answered: bool | None


Answers = dict[str, list[Routed]]
"""task → its answers, for the trained tasks in the order in which they were learned."""


def routed_stage(run: StoredRun, number: int | None) -> tuple[int, Answers]:
    """(index, answers) of stage `number` (from 1); None: of the last one whose answers say how they were routed.

    Raises:
        UserError: there is no such stage, or no answer says how it was routed.
    """
    last = len(run.matrix.stages)
    if number is not None and not 1 <= number <= last:
        raise UserError(f"--stage {number}: {run.path} has stages 1 to {last}; 1 is after its first task.")
    for stage in reversed(range(last)) if number is None else [number - 1]:
        if answers := routed_answers(run, stage):
            return stage, answers
    after = "" if number is None else f" after stage {number}"
    raise UserError(f"{run.path}: no answer{after} says which expert it was given by; {run.title} does not route, or nothing was "
                    "evaluated there.")  # fmt: skip


def routed_answers(run: StoredRun, stage: int) -> Answers:
    """Of the tasks asked after a stage (from 0) whose answers hold routing weights."""
    found: Answers = {}
    for task in run.matrix.tasks:
        cell = run.cells.get((run.matrix.stages[stage], task))
        rows = [(row, weights) for row in (cell.predictions() if cell else []) if (weights := usable_weights(row))]
        if not rows:
            continue
        own = own_experts(run, {expert for _, weights in rows for expert in weights}).get(task, frozenset())
        verdicts = cell.data.get("verdicts") or {}
        found[task] = [_routed(row, weights, own, verdicts.get(str(row["question_id"]))) for row, weights in rows]
    return found


def _routed(row: dict, weights: dict[str, float], own: frozenset[str], verdict: float | None) -> Routed:
    wrong = misrouted(weights, own)
    top = max(weights, key=lambda expert: (weights[expert], expert in own))
    return Routed(str(row["question_id"]), str(row.get("prompt", "")), str(row.get("text", "")), weights, top,
                  None if wrong is None else not wrong, None if verdict is None else verdict >= RIGHT)  # fmt: skip
