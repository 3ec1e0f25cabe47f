"""The report of a run: tables, figures and one self-contained page, all under <run>/results/."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import Any

from hide_llava.errors import UserError
from hide_llava.results import figures, html
from hide_llava.results.comparison import write_comparison
from hide_llava.results.matrix import column_means, last_row, row_means
from hide_llava.results.run_reader import CellScore, Run, read_run
from hide_llava.results.tables import aggregate_rows, facts, number, state_note, write_tables

__all__ = ["write_comparison", "write_report"]

SAMPLES = 8
PROMPT_LENGTH = 400


def write_report(run: Path) -> Path:
    """Write matrix.json, matrix.md/.csv/.tex, the figures (PNG) and report.html; returns the path of report.html.

    Works on an unfinished run: what is missing stays empty and is listed. Without matplotlib the figures are left out
    and the page says so. UserError when the folder is no run folder.
    """
    loaded = read_run(Path(run))
    folder = loaded.path / "results"
    content = {**loaded.matrix.to_json(), "labels": loaded.labels(), "problems": loaded.problems}
    html.write(folder / "matrix.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    write_tables(loaded, folder)
    drawn, note = _draw(loaded, folder)
    return html.write(folder / "report.html", _page(loaded, drawn, note))


def _draw(run: Run, folder: Path) -> tuple[dict[str, str], str]:
    """({figure name: markup}, why there are none). PNG files of figures that no longer exist are removed."""
    try:
        figures.require_matplotlib()
    except UserError as error:
        return {}, str(error)
    markup = {}
    for name, (title, draw) in figures.FIGURES.items():
        light = draw(run, figures.LIGHT)
        if light is None:
            (folder / f"{name}.png").unlink(missing_ok=True)
            continue
        data = figures.png(light)
        html.write(folder / f"{name}.png", data)
        width = round(light.get_size_inches()[0] * 100)
        markup[name] = html.picture(data, figures.png(draw(run, figures.DARK)), title, width)
    return markup, ""


def _page(run: Run, drawn: dict[str, str], note: str) -> str:
    manifest = run.manifest
    lead = f"{run.title} on {manifest.get('benchmark')}, {manifest.get('model')}, seed {manifest.get('seed')}"
    unfinished = [state_note(run)] if state_note(run) else []
    pairs = [(key, value) for key, value in facts(run) if key != "Labels"]
    figure_parts = [
        f"<h3>{escape(figures.FIGURES[name][0])}</h3>\n{markup}" for name, markup in drawn.items() if name != "matrix"
    ]
    figure_parts += [f'<p class="note">{escape(note)}</p>'] if note else []
    body = [
        f'<header><h1>{escape(run.name)}</h1><p class="lead">{escape(lead)}</p></header>',
        html.facts_list(pairs),
        html.warning("Labels of these numbers", [*unfinished, *run.labels()]),
        html.section("Aggregates", _aggregates(run)),
        html.section("Scores", _matrix(run)),
        html.section("Figures", *figure_parts),
        html.section("Scores in detail", _detail(run)),
        html.section("Sample answers", _samples(run)),
        html.section("Problems", html.warning(f"{len(run.problems)} found", run.problems)),
        html.section("Configuration", _configuration(run)),
        "<footer>Written by hide-llava. Scores are percent; an empty cell was not evaluated.</footer>",
    ]
    return html.page(f"{run.name} · hide-llava", "\n".join(part for part in body if part))


def _aggregates(run: Run) -> str:
    cards = [
        f'<div class="number"><span>{escape(title)}</span><b>{escape(value)}</b><code>{escape(formula)}</code></div>'
        for title, value, formula in aggregate_rows(run.current)
        if value
    ]
    if not cards:
        return '<p class="note">No aggregate can be computed yet: cells are missing.</p>'
    legend = (
        "A[t][j] is the score on task j after stage t, of T. Avg and MAA average the same matrix in different orders "
        "and may lie ten points apart: never compare one with the other."
        if run.current.sequential
        else "A run with a single stage has only Last: the mean of its one row."
    )
    return f'<div class="numbers">{"".join(cards)}</div><p class="note">{legend}</p>'


def _matrix(run: Run) -> str:
    m = run.matrix
    head = "".join(f'<th scope="col" class="mid">{escape(title)}</th>' for title in m.task_titles)
    head = f'<th scope="col">After</th>{head}<th scope="col">Mean</th>'
    rows = []
    for t, (title, cells, mean) in enumerate(zip(m.stage_titles, m.cells, row_means(m)), 1):
        name = f"{t}. {title}" if len(m.stages) > 1 else title
        heat = "".join(html.heat_cell(number(cell), cell) for cell in cells)
        rows.append(f'<tr><th scope="row">{escape(name)}</th>{heat}<td>{number(mean)}</td></tr>')
    if m.sequential:
        for title, values, k in (("Avg (per task)", column_means(m), 0), ("Last (per task)", last_row(m), 1)):
            cells = "".join(f'<td class="mid">{number(value)}</td>' for value in values)
            whole = number(None if None in values else sum(values) / len(values))
            rows.append(f'<tr class="{"" if k else "sum"}"><th scope="row">{title}</th>{cells}<td>{whole}</td></tr>')
    table = f'<table class="full"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    note = "Rows: after training on a task. Columns: scored on a task. Mean: over the tasks seen so far."
    return f'<div class="scroll">{table}</div><p class="note">{note}</p>'


def _detail(run: Run) -> str:
    """Every evaluated cell: metric, published and clean score, number of answers, labels; caption parts below."""
    rows, parts = [], []
    for stage, stage_title in zip(run.matrix.stages, run.matrix.stage_titles):
        for task in run.matrix.tasks:
            cell = run.cells.get((stage, task))
            if cell is None:
                continue
            legacy, clean = cell.data.get("legacy") or {}, cell.data.get("clean") or {}
            rows.append([
                stage_title, run.task_title(task), str(cell.data.get("metric", "")), str(cell.data.get("headline", "")),
                number(legacy.get("score")), number(clean.get("score")),
                f"{cell.data.get('n_scored', '')} of {cell.data.get('n_expected', '')}", ", ".join(cell.labels),
            ])  # fmt: skip
            shown = legacy if cell.data.get("headline") == "legacy" else clean
            extra = [f"{k} {number(v)}" for k, v in shown.items() if k not in ("score", "n") and _is_number(v)]
            if extra:
                parts.append([stage_title, run.task_title(task), "  ·  ".join(extra)])
    if not rows:
        return ""
    header = ["After", "Task", "Metric", "Headline", "Legacy", "Clean", "Answers", "Labels"]
    tables = html.details("All cells", f"{len(rows)}", html.table(header, rows, text_columns=(1, 2, 3)))
    if parts:
        tables += html.details(
            "Parts of the scores", f"{len(parts)}", html.table(["After", "Task", "Parts"], parts, text_columns=(1, 2))
        )
    return tables + (
        '<p class="note">Legacy repeats the published evaluation script, quirks included; clean is the same rule '
        "without them, with every question in the denominator.</p>"
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _samples(run: Run) -> str:
    """A few answers of every cell, last stage first, wrong ones before right ones."""
    folded = []
    for t in reversed(range(len(run.matrix.stages))):
        for task in run.matrix.tasks:
            cell = run.cells.get((run.matrix.stages[t], task))
            if cell is None:
                continue
            title = f"After {run.matrix.stage_titles[t]}: {run.task_title(task)}"
            folded.append(html.details(title, f"{number(cell.score)} %", _sample_table(cell), opened=not folded))
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


def _configuration(run: Run) -> str:
    versions = run.manifest.get("versions") or {}
    pairs = [(str(k), str(v)) for k, v in versions.items()]
    pairs += [(k, str(run.manifest[k])) for k in ("git", "device", "created") if run.manifest.get(k)]
    text = run.config_text or "(config.yaml is missing)"
    config = html.details("Resolved configuration", "config.yaml", f"<pre>{escape(text)}</pre>")
    return config + html.details("Versions and origin", "manifest.json", html.facts_list(pairs))
