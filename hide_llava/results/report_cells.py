"""The tables of a run's page that show cells: the matrix, what is beside it, details, mistakes."""

from __future__ import annotations

from typing import Any

from hide_llava.results.comparison_text import interval_text
from hide_llava.results.html import Grid, Shown, heat_cell
from hide_llava.results.run_reader import CellScore, StoredRun
from hide_llava.results.tables import grid, number


def score_matrix(run: StoredRun) -> Grid:
    """The accuracy matrix as a heat map with an interval below each score that has one."""
    m = run.matrix
    header, rows = grid(m)
    for stage, row in zip(m.stages, rows):
        row[1:-1] = [_heat(run.cells.get((stage, task))) for task in m.tasks]
    note = "Rows: after training on a task. Columns: scored on a task. Mean: over the tasks seen so far."
    return Grid(header, rows, (), f"{note} {_interval_note([*run.cells.values()])}", len(m.stages))


def side_table(run: StoredRun, tasks: list[str], cells: dict[tuple[str, str], CellScore]) -> Grid | None:
    """Tasks outside the matrix and its aggregates: after each stage that asked them. None when none did."""
    skipped = {  # general tasks that an oracle could not be asked at that stage
        (s["name"], t["id"]) for s in run.manifest["stages"] for t in run.manifest.get("general") or []
        if t["id"] in tasks and t["id"] not in s.get("general_tasks", tasks)
    }  # fmt: skip
    if not any((s, t) in cells for s in run.matrix.stages for t in tasks):
        return None
    rows = [
        [title, *(_heat(cells.get((s, t)), (s, t) in skipped) for t in tasks)]
        for s, title in zip(run.matrix.stages, run.matrix.stage_titles)
        if any((s, t) in cells or (s, t) in skipped for t in tasks)
    ]
    header = ["After", *map(run.task_title, tasks)]
    return Grid(header, rows, note=f"In no aggregate. {_interval_note([*cells.values()])}")


def _heat(cell: CellScore | None, skipped: bool = False) -> str | Shown:
    if cell is None:
        return "not asked" if skipped else ""
    return heat_cell(number(cell.score), cell.score, interval_text(cell.interval[0]))


def _interval_note(cells: list[CellScore]) -> str:
    """What the small numbers are, and which tasks have none, with the reason."""
    without: dict[str, list[str]] = {}
    for cell in cells:
        if cell.interval[1]:
            without.setdefault(cell.interval[1], []).append(str(cell.data.get("metric", cell.task)))
    said = [f"none for {', '.join(dict.fromkeys(metrics))}: {why}" for why, metrics in without.items()]
    known = ["Small: 95 % bootstrap interval over the questions"] if any(cell.interval[0] for cell in cells) else []
    known = known or (["No bootstrap intervals"] if cells else [])
    return "; ".join([*known, *said]) + "." if known else ""


def details(run: StoredRun) -> Grid | None:
    """Every evaluated cell: metric, published and clean score, interval, number of answers, labels."""
    rows = [
        [
            title, run.task_title(cell.task), str(cell.data.get("metric", "")), str(cell.data.get("headline", "")),
            *(number((cell.data.get(rule) or {}).get("score")) for rule in ("legacy", "clean")),
            interval_text(cell.interval[0]) or cell.interval[1],
            f"{cell.data.get('n_scored', '')} of {cell.data.get('n_expected', '')}", ", ".join(cell.labels),
        ]
        for title, cell in run.all_cells()
    ]  # fmt: skip
    header = ["After", "Task", "Metric", "Headline", "Legacy", "Clean", "95 % interval", "Answers", "Labels"]
    return Grid(header, rows, (1, 2, 3, 6, 8)) if rows else None


def parts(run: StoredRun) -> Grid | None:
    """What the scores are made of, by the published rule and the clean one."""
    rows = []
    for title, cell in run.all_cells():
        both = {rule: _parts(cell.data.get(rule) or {}) for rule in ("legacy", "clean")}
        both = {"both": both["clean"]} if both["legacy"] == both["clean"] else both
        rows += [[title, run.task_title(cell.task), rule, text] for rule, text in both.items() if text]
    return Grid(["After", "Task", "Rule", "Parts"], rows, (1, 2, 3)) if rows else None


def _parts(scores: dict[str, Any]) -> str:
    numbers = {k: v for k, v in scores.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
    return "  ·  ".join(f"{k} {number(v)}" for k, v in numbers.items() if k not in ("score", "n"))


def mistakes(run: StoredRun) -> tuple[Grid, Grid | None] | None:
    """Wrong answers by kind, one row per cell that stores its `error_profile`: of the last stage, of all if there are more."""
    cells = [(title, cell, cell.data.get("error_profile")) for title, cell in run.all_cells()]
    cells = [(title, cell, profile) for title, cell, profile in cells if isinstance(profile, dict)]
    kinds = [kind for kind in (cells[0][2] if cells else {}) if any(profile.get(kind) for *_, profile in cells)]
    if not kinds:
        return None

    def table(wanted: list[tuple[str, CellScore, dict]]) -> Grid:
        rows = [
            [title, run.task_title(cell.task), *(str(profile.get(kind, 0)) for kind in kinds), str(sum(profile.values())),
             str(cell.data.get("n_expected", ""))]
            for title, cell, profile in wanted
        ]  # fmt: skip
        return Grid(["After", "Task", *(kind.replace("_", " ") for kind in kinds), "Wrong", "Questions"], rows, (1,))

    last = [item for item in cells if item[1].stage == cells[-1][1].stage]
    return table(last), table(cells) if len(last) < len(cells) else None
