"""A few answers of every cell of a run, each beside what was expected, where the questions can still be read."""

from __future__ import annotations

from typing import Any

from hide_llava.errors import UserError
from hide_llava.results.asked import LONGEST, Asked, cut
from hide_llava.results.run_reader import CellScore, StoredRun
from hide_llava.results.tables import number

SAMPLES = 8


def samples(run: StoredRun, asked: dict[str, Asked]) -> list[dict[str, Any]]:
    """The cells, last stage first; of each some wrong answers, then some right ones. asked: questions by task."""
    cells = [pair for stage in reversed(run.matrix.stages) for pair in run.all_cells() if pair[1].stage == stage]
    return [
        {
            "title": f"After {title}: {run.task_title(cell.task)}",
            "score": number(cell.score),
            **_cell(cell, asked.get(cell.task)),
        }
        for title, cell in cells
    ]


def _cell(cell: CellScore, asked: Asked | None) -> dict[str, Any]:
    try:
        rows, problem = cell.predictions(), ""
    except UserError as error:
        rows, problem = [], str(error)
    gold = asked.shown if asked is not None and asked.belongs_to(cell) else {}
    verdicts = cell.data.get("verdicts") or {}
    answers = [
        {
            "id": str(row.get("question_id", "")),
            "prompt": cut(str(row.get("prompt", "")), LONGEST),
            "text": str(row.get("text", "")),
            "expected": gold.get(str(row.get("question_id")), ""),
            "verdict": verdict,
        }
        for verdict, row in _chosen([(verdicts.get(str(row.get("question_id"))), row) for row in rows])
    ]
    return {"problem": problem, "answers": answers, "has_expected": any(answer["expected"] for answer in answers)}


def _chosen(judged: list[tuple[float | None, dict]]) -> list[tuple[float | None, dict]]:
    """SAMPLES answers in file order within each group: half of them wrong, half right, where there are enough."""
    wrong = [pair for pair in judged if pair[0] is not None and pair[0] < 0.5]
    right = [pair for pair in judged if pair[0] is None or pair[0] >= 0.5]
    half = SAMPLES // 2
    chosen = wrong[: max(half, SAMPLES - len(right))] + right[: max(half, SAMPLES - len(wrong))]
    return chosen[:SAMPLES]
