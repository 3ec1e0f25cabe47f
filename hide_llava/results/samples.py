"""A few answers of every cell of a run, each beside what was expected, where the questions can still be read."""

from __future__ import annotations

import contextlib
from collections import Counter
from typing import Any

from hide_llava.benchmarks.files import stored_tasks
from hide_llava.errors import UserError
from hide_llava.metrics import get
from hide_llava.metrics.error_profile import gold_answers
from hide_llava.results.run_reader import CellScore, StoredRun
from hide_llava.results.tables import number

SAMPLES = 8
LONGEST = 400  # letters of a prompt, or of what is expected
Expected = dict[str, tuple[str, dict[str, str]]]
"""task id → (hash of its question files, {question id: expected answer})"""


def samples(run: StoredRun) -> list[dict[str, Any]]:
    """The cells, last stage first; of each some wrong answers, then some right ones."""
    cells = [pair for stage in reversed(run.matrix.stages) for pair in run.all_cells() if pair[1].stage == stage]
    expected = expected_answers(run, dict.fromkeys(cell.task for _, cell in cells))
    return [
        {"title": f"After {title}: {run.task_title(cell.task)}", "score": number(cell.score), **_cell(cell, expected)}
        for title, cell in cells
    ]


def expected_answers(run: StoredRun, tasks: dict[str, None]) -> Expected:
    """Of the tasks whose question and reference files lie where the run's configuration says: it may have been moved.

    Only reads. Whatever is wrong with a file, or with the configuration, is told where a run uses it, never here.
    """
    found: Expected = {}
    with contextlib.suppress(Exception):
        known = stored_tasks(run.config)
        for name in tasks:
            with contextlib.suppress(Exception):
                task = known[name]
                gold = get(task.metric).gold(task.all_questions(), task.reference_file, task.score_options())
                found[name] = task.questions_sha256(), {str(r["question_id"]): shown_answer(r) for r in gold}
    return found


def shown_answer(record: dict[str, Any]) -> str:
    """The gold answers, the most frequent first, or the captions."""
    boxes = isinstance(record.get("answer"), list) and not all(isinstance(part, str) for part in record["answer"])
    texts = [str(record["answer"])] if boxes else gold_answers(record) or [str(c) for c in record.get("captions") or []]
    return _cut(" · ".join(text for text, _ in Counter(texts).most_common()))


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else text[:LONGEST] + " …"


def _cell(cell: CellScore, expected: Expected) -> dict[str, Any]:
    try:
        rows, problem = cell.predictions(), ""
    except UserError as error:
        rows, problem = [], str(error)
    sha256, gold = expected.get(cell.task, ("", {}))
    gold = gold if cell.data.get("questions_sha256") in (None, sha256) else {}  # else other questions were asked
    verdicts = cell.data.get("verdicts") or {}
    answers = [
        {
            "id": str(row.get("question_id", "")),
            "prompt": _cut(str(row.get("prompt", ""))),
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
