"""What became of each question in the course of a run: right or wrong after every stage, and where it was lost.

A verdict of 0.5 or more is right, as in `metrics/error_profile.py`. Verdicts are those of the clean score.
"""

from __future__ import annotations

from dataclasses import dataclass

from hide_llava.results.run_reader import CellScore, StoredRun

RIGHT = 0.5


@dataclass(frozen=True)
class History:
    """One question. Stages are counted from 0, in the order of `StoredRun.matrix.stages`.

    verdicts: one for each stage, 0…1 (CIDEr: 0…10); None where the question was not asked or its answer has no verdict of its
    own. learned: the stage that trained the question's task; None for a task that no stage trains alone.
    """

    verdicts: tuple[float | None, ...]
    learned: int | None

    @property
    def last(self) -> float | None:
        """The verdict of the last stage that has one."""
        return next((verdict for verdict in reversed(self.verdicts) if verdict is not None), None)

    @property
    def right_when_learned(self) -> bool | None:
        """Right after the stage that trained its task; None where that is not known."""
        verdict = None if self.learned is None else self.verdicts[self.learned]
        return None if verdict is None else verdict >= RIGHT

    @property
    def lost(self) -> int | None:
        """The stage after which it was wrong and stayed wrong; None if its last verdict is right or it was never right.

        An answer that was lost and came back counts from its last loss: what happened between is in `verdicts`.
        """
        judged = [(stage, verdict >= RIGHT) for stage, verdict in enumerate(self.verdicts) if verdict is not None]
        if not judged or judged[-1][1] or not any(right for _, right in judged):
            return None
        last_right = max(place for place, (_, right) in enumerate(judged) if right)
        return judged[last_right + 1][0]

    @property
    def state(self) -> str:
        """kept (the last verdict is right), lost, never (never right), or unknown (no verdict)."""
        if self.last is None:
            return "unknown"
        return "kept" if self.last >= RIGHT else "never" if self.lost is None else "lost"


def histories(run: StoredRun) -> dict[str, dict[str, History]]:
    """task id → question id → its history: trained tasks in the order of learning, then unseen and general ones.

    Questions stand in the order in which they were scored first. A task whose metric has no verdict for each question is
    there with no questions. Reads nothing but the scores that `run` holds.
    """
    matrix = run.matrix
    learned = dict(zip(matrix.tasks, matrix.learned_at))
    general = [task["id"] for task in run.manifest.get("general") or []]
    found = {task: _of(run.cells, matrix.stages, task, learned.get(task)) for task in [*matrix.tasks, *run.unseen]}
    return found | {task: _of(run.general, matrix.stages, task, None) for task in general}


def _of(
    cells: dict[tuple[str, str], CellScore], stages: list[str], task: str, learned: int | None
) -> dict[str, History]:
    verdicts = [(cell.data.get("verdicts") or {}) if (cell := cells.get((stage, task))) else {} for stage in stages]
    asked = dict.fromkeys(question for stage in verdicts for question in stage)
    return {question: History(tuple(stage.get(question) for stage in verdicts), learned) for question in asked}
