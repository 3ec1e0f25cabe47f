"""The parts of a run's page that show cells: the matrix, what is beside it, details, mistakes, sample answers."""

from __future__ import annotations

from html import escape
from typing import Any

from hide_llava.errors import UserError
from hide_llava.results import html
from hide_llava.results.comparison_text import interval_text
from hide_llava.results.matrix import column_means, last_row, row_means
from hide_llava.results.run_reader import CellScore, Run
from hide_llava.results.tables import number

SAMPLES = 8
PROMPT_LENGTH = 400


def score_matrix(run: Run) -> str:
    """The accuracy matrix as a heat map with an interval below each score that has one."""
    m = run.matrix
    head = "".join(f'<th scope="col" class="mid">{escape(title)}</th>' for title in m.task_titles)
    head = f'<th scope="col">After</th>{head}<th scope="col">Mean</th>'
    rows = []
    for t, (stage, title, mean) in enumerate(zip(m.stages, m.stage_titles, row_means(m)), 1):
        name = f"{t}. {title}" if len(m.stages) > 1 else title
        heat = "".join(_heat(run.cells.get((stage, task))) for task in m.tasks)
        rows.append(f'<tr><th scope="row">{escape(name)}</th>{heat}<td>{number(mean)}</td></tr>')
    if m.sequential:
        for title, values, k in (("Avg (per task)", column_means(m), 0), ("Last (per task)", last_row(m), 1)):
            cells = "".join(f'<td class="mid">{number(value)}</td>' for value in values)
            whole = number(None if None in values else sum(values) / len(values))
            rows.append(f'<tr class="{"" if k else "sum"}"><th scope="row">{title}</th>{cells}<td>{whole}</td></tr>')
    table = f'<table class="full"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    note = "Rows: after training on a task. Columns: scored on a task. Mean: over the tasks seen so far."
    return f'<div class="scroll">{table}</div><p class="note">{note} {interval_note([*run.cells.values()])}</p>'


def side_table(run: Run, tasks: list[str], cells: dict[tuple[str, str], CellScore]) -> str:
    """Tasks outside the matrix and its aggregates: after each stage that asked them. "" when none did."""
    skipped = {  # general tasks that an oracle could not be asked at that stage
        (s["name"], t["id"]) for s in run.manifest["stages"] for t in run.manifest.get("general") or []
        if t["id"] in tasks and t["id"] not in s.get("general_tasks", tasks)
    }  # fmt: skip
    stages = [
        (s, title)
        for s, title in zip(run.matrix.stages, run.matrix.stage_titles)
        if any((s, t) in cells or (s, t) in skipped for t in tasks)
    ]
    if not any((s, t) in cells for s, _ in stages for t in tasks):
        return ""
    head = "".join(f'<th scope="col" class="mid">{escape(run.task_title(task))}</th>' for task in tasks)
    rows = [(title, [(cells.get((stage, t)), (stage, t) in skipped) for t in tasks]) for stage, title in stages]
    body = "".join(
        f'<tr><th scope="row">{escape(title)}</th>{"".join(_heat(*cell) for cell in row)}</tr>' for title, row in rows
    )
    table = f'<table><thead><tr><th scope="col">After</th>{head}</tr></thead><tbody>{body}</tbody></table>'
    return f'<div class="scroll">{table}</div><p class="note">In no aggregate. {interval_note([*cells.values()])}</p>'


def _heat(cell: CellScore | None, skipped: bool = False) -> str:
    if cell is None:
        return "<td>not asked</td>" if skipped else html.heat_cell("", None)
    return html.heat_cell(number(cell.score), cell.score, interval_text(cell.interval[0]))


def interval_note(cells: list[CellScore]) -> str:
    """What the small numbers are, and which tasks have none, with the reason."""
    without: dict[str, list[str]] = {}
    for cell in cells:
        if cell.interval[1]:
            without.setdefault(cell.interval[1], []).append(str(cell.data.get("metric", cell.task)))
    said = [f"none for {', '.join(dict.fromkeys(metrics))}: {why}" for why, metrics in without.items()]
    known = ["Small: 95 % bootstrap interval over the questions"] if any(cell.interval[0] for cell in cells) else []
    known = known or (["No bootstrap intervals"] if cells else [])
    return "; ".join([*known, *said]) + "." if known else ""


def detail(run: Run) -> str:
    """Every evaluated cell: metric, published and clean score, interval, number of answers, labels; parts below."""
    rows, parts = [], []
    for title, cell in _all_cells(run):
        legacy, clean = cell.data.get("legacy") or {}, cell.data.get("clean") or {}
        rows.append([
            title, run.task_title(cell.task), str(cell.data.get("metric", "")), str(cell.data.get("headline", "")),
            number(legacy.get("score")), number(clean.get("score")), interval_text(cell.interval[0]) or cell.interval[1],
            f"{cell.data.get('n_scored', '')} of {cell.data.get('n_expected', '')}", ", ".join(cell.labels),
        ])  # fmt: skip
        both = {"legacy": _parts(legacy), "clean": _parts(clean)}
        both = {"both": both["clean"]} if both["legacy"] == both["clean"] else both
        parts += [[title, run.task_title(cell.task), rule, text] for rule, text in both.items() if text]
    if not rows:
        return ""
    header = ["After", "Task", "Metric", "Headline", "Legacy", "Clean", "95 % interval", "Answers", "Labels"]
    tables = html.details("All cells", f"{len(rows)}", html.table(header, rows, text_columns=(1, 2, 3, 6, 8)))
    if parts:
        shown = html.table(["After", "Task", "Rule", "Parts"], parts, text_columns=(1, 2, 3))
        tables += html.details("Parts of the scores", f"{len(parts)}", shown)
    return tables + (
        '<p class="note">Legacy repeats the published evaluation script, quirks included; clean is the same rule '
        "without them, with every question in the denominator.</p>"
    )


def _all_cells(run: Run) -> list[tuple[str, CellScore]]:
    """(stage title, cell) in the order of stages, then tasks of the matrix, never trained ones, general ones."""
    general = [task["id"] for task in run.manifest.get("general") or []]
    return [
        (title, cell)
        for stage, title in zip(run.matrix.stages, run.matrix.stage_titles)
        for cells, tasks in ((run.cells, [*run.matrix.tasks, *run.unseen]), (run.general, general))
        for cell in (cells.get((stage, task)) for task in tasks)
        if cell is not None
    ]


def _parts(scores: dict) -> str:
    return "  ·  ".join(f"{k} {number(v)}" for k, v in scores.items() if k not in ("score", "n") and _is_number(v))


def error_profiles(run: Run) -> str:
    """Wrong answers by kind, one row per cell that stores its `error_profile`, the last stage first; "" when none does."""
    profiles = [
        (title, cell, cell.data["error_profile"])
        for title, cell in _all_cells(run)
        if isinstance(cell.data.get("error_profile"), dict)
    ]
    kinds = [
        kind for kind in (profiles[0][2] if profiles else {}) if any(profile.get(kind) for *_, profile in profiles)
    ]
    if not kinds:
        return ""
    header = ["After", "Task", *(kind.replace("_", " ") for kind in kinds), "Wrong", "Questions"]

    def lines(wanted: list) -> list[list[str]]:
        return [
            [title, run.task_title(cell.task), *(str(profile.get(kind, 0)) for kind in kinds), str(sum(profile.values())),
             str(cell.data.get("n_expected", ""))]
            for title, cell, profile in wanted
        ]  # fmt: skip

    last = [item for item in profiles if item[1].stage == profiles[-1][1].stage]
    table = html.table(header, lines(last), text_columns=(1,))
    if len(last) < len(profiles):
        table += html.details(
            "All stages", f"{len(profiles)} cells", html.table(header, lines(profiles), text_columns=(1,))
        )
    note = "A wrong answer (verdict below 0.5) counts once, under the first kind that fits."
    return f'{table}<p class="note">{note}</p>'


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def samples(run: Run) -> str:
    """A few answers of every cell, last stage first, wrong ones before right ones."""
    folded = []
    for stage in reversed(run.matrix.stages):
        for title, cell in (pair for pair in _all_cells(run) if pair[1].stage == stage):
            head = f"After {title}: {run.task_title(cell.task)}"
            folded.append(html.details(head, f"{number(cell.score)} %", _sample_table(cell), opened=not folded))
    return "\n".join(folded)


def _sample_table(cell: CellScore) -> str:
    try:
        rows = cell.predictions()
    except UserError as error:
        return f'<p class="note">{escape(str(error))}</p>'
    verdicts = cell.data.get("verdicts") or {}
    body = ""
    for verdict, row in _chosen([(verdicts.get(str(row.get("question_id"))), row) for row in rows]):
        mark = "" if verdict is None else f'<span class="{"ok" if verdict >= 0.5 else "no"}">{verdict:.2g}</span>'
        prompt = str(row.get("prompt", ""))
        prompt = prompt if len(prompt) <= PROMPT_LENGTH else prompt[:PROMPT_LENGTH] + " …"
        body += f'<tr><th scope="row">{escape(str(row.get("question_id", "")))}</th>'
        body += f'<td class="prompt">{escape(prompt)}</td><td class="answer">{escape(str(row.get("text", "")))}</td>'
        body += f"<td>{mark}</td></tr>\n"
    head = "".join(f'<th scope="col" class="text">{title}</th>' for title in ("Id", "Prompt", "Answer"))
    return (
        f'<div class="scroll"><table class="full"><thead><tr>{head}<th scope="col">Verdict</th></tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _chosen(judged: list[tuple[float | None, dict]]) -> list[tuple[float | None, dict]]:
    """SAMPLES answers in file order within each group: half of them wrong, half right, where there are enough."""
    wrong = [pair for pair in judged if pair[0] is not None and pair[0] < 0.5]
    right = [pair for pair in judged if pair[0] is None or pair[0] >= 0.5]
    half = SAMPLES // 2
    chosen = wrong[: max(half, SAMPLES - len(right))] + right[: max(half, SAMPLES - len(wrong))]
    return chosen[:SAMPLES]
