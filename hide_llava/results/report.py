"""The report of a run: tables, figures and one self-contained page, all under <run>/results/."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path

from hide_llava.errors import UserError
from hide_llava.results import figures, html
from hide_llava.results.aggregates import to_json
from hide_llava.results.comparison import write_comparison
from hide_llava.results.report_cells import detail, error_profiles, samples, score_matrix, side_table
from hide_llava.results.run_reader import Run, read_run
from hide_llava.results.tables import aggregate_rows, facts, missing_notes, state_note, write_tables

__all__ = ["write_comparison", "write_report"]


def write_report(run: Path) -> Path:
    """Write matrix.json, matrix.md/.csv/.tex, the figures (PNG) and report.html; returns the path of report.html.

    Works on an unfinished run: what is missing stays empty and is listed. Without matplotlib the figures are left out
    and the page says so. UserError when the folder is no run folder.
    """
    loaded = read_run(Path(run))
    folder = loaded.path / "results"
    content = {
        **to_json(loaded.matrix),
        "intervals": _intervals(loaded),
        "labels": loaded.labels(),
        "problems": loaded.problems,
    }
    html.write(folder / "matrix.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    write_tables(loaded, folder)
    drawn, note = _draw(loaded, folder)
    return html.write(folder / "report.html", _page(loaded, drawn, note))


def _intervals(run: Run) -> list[list[list[float] | None]]:
    """stages × tasks: [low, high] in percent, None where a cell has no interval."""
    cells = [[run.cells.get((stage, task)) for task in run.matrix.tasks] for stage in run.matrix.stages]
    found = [[cell.interval[0] if cell else None for cell in row] for row in cells]
    return [[[interval.low, interval.high] if interval else None for interval in row] for row in found]


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
        html.section("Scores", score_matrix(run)),
        html.section("Tasks that are never trained", side_table(run, run.unseen, run.cells)),
        html.section(
            "General ability", side_table(run, [t["id"] for t in run.manifest.get("general") or []], run.general)
        ),
        html.section("Figures", *figure_parts),
        html.section("Scores in detail", detail(run)),
        html.section("What kind of mistakes", error_profiles(run)),
        html.section("Sample answers", samples(run)),
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
    missing = "".join(f"<li>No {escape(note)}</li>" for note in missing_notes(run.current))
    missing = f'<ul class="note">{missing}</ul>' if missing and not run.current.joint else ""
    legend = (
        "A[t][j] is the score on task j after stage t, of T. Avg and MAA average the same matrix in different orders "
        "and may lie ten points apart: never compare one with the other. Forward transfer, learning gain and "
        "intransigence need other runs: `hide-llava compare` with a zero_shot and a multitask run."
        if run.current.sequential
        else "A run with a single stage has only Last: the mean of its one row."
    )
    return f'<div class="numbers">{"".join(cards)}</div>{missing}<p class="note">{legend}</p>'


def _configuration(run: Run) -> str:
    versions = run.manifest.get("versions") or {}
    pairs = [(str(k), str(v)) for k, v in versions.items()]
    pairs += [(k, str(run.manifest[k])) for k in ("git", "device", "created") if run.manifest.get(k)]
    text = run.config_text or "(config.yaml is missing)"
    config = html.details("Resolved configuration", "config.yaml", f"<pre>{escape(text)}</pre>")
    return config + html.details("Versions and origin", "manifest.json", html.facts_list(pairs))
