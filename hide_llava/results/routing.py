"""Whose expert answered: the routing weights beside the answers of a run, and the expert that a task has of its own."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from hide_llava.results.run_reader import StoredRun

NUMBERED = re.compile(r"task-(\d+)")  # what methods call an expert that is no adapter: the tasks count from 1


def usable_weights(row: Mapping[str, Any]) -> dict[str, float]:
    """{expert: weight} of an answer row; {} where it has none, or none that is a number."""
    routing = row.get("routing")
    pairs = routing.items() if isinstance(routing, dict) else ()
    return {str(k): float(v) for k, v in pairs if isinstance(v, int | float) and not isinstance(v, bool) and v == v}


def stage_of_expert(run: StoredRun, expert: str) -> int | None:
    """The index of the one stage that an expert belongs to; None for one that several stages share."""
    matrix = run.matrix
    if expert in run.expert_stages:
        return run.expert_stages[expert]
    if expert in matrix.tasks:
        return matrix.learned_at[matrix.tasks.index(expert)]
    numbered = NUMBERED.fullmatch(expert)
    return int(numbered[1]) - 1 if numbered and 0 < int(numbered[1]) <= len(matrix.stages) else None


def expert_title(run: StoredRun, expert: str) -> str:
    """The title of the stage that an expert belongs to, or its own name."""
    stage = stage_of_expert(run, expert)
    return run.task_title(expert) if stage is None else run.matrix.stage_titles[stage]


def own_experts(run: StoredRun, experts: Collection[str]) -> dict[str, frozenset[str]]:
    """task id → those of the experts that belong to the stage which learned that task alone; tasks without any are absent."""
    stages = {expert: stage_of_expert(run, expert) for expert in experts}
    learned = {task: at for task, at in zip(run.matrix.tasks, run.matrix.learned_at) if at is not None}
    owned = {task: frozenset(e for e, stage in stages.items() if stage == at) for task, at in learned.items()}
    return {task: own for task, own in owned.items() if own}


def misrouted(weights: Mapping[str, float], own: Collection[str]) -> bool | None:
    """Whether another expert has more weight than each of the task's own; None where none of these took part."""
    if not weights or not any(expert in weights for expert in own):
        return None
    return max(weights, key=lambda expert: (weights[expert], expert in own)) not in own  # a tie is not misrouted
