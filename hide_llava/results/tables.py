"""The accuracy matrix as Markdown, CSV, LaTeX and plain text.

Layout of the papers: one row per stage ("after task t"), one column per task, then the per-task "Avg" and "Last" rows,
then the aggregates under names that cannot be confused. Empty cells stay empty.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from hide_llava.results.aggregates import AGGREGATES, Aggregate, aggregates, reason
from hide_llava.results.html import write
from hide_llava.results.matrix import AccuracyMatrix, Cell, column_means, last_row, row_means
from hide_llava.results.run_reader import StoredRun

MEAN = "Mean"
BOOKTABS = r"% needs \usepackage{booktabs}"
TITLES = {"protocol": "Protocol of the tasks", "headline": "Metric rules of the headline scores"}  # of settings


def number(value: Cell, digits: int = 2) -> str:
    """Two decimals, "" for an empty cell; no "-0.00"."""
    if value is None:
        return ""
    text = f"{value:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def grid(m: AccuracyMatrix) -> tuple[list[str], list[list[str]]]:
    """(header, rows) of the table as text: stages, then "Avg" and "Last" per task for a sequential run.

    The last column is the mean over the tasks seen so far.
    """
    header = ["After", *m.task_titles, MEAN]
    rows = []
    for t, (title, cells, mean) in enumerate(zip(m.stage_titles, m.cells, row_means(m)), 1):
        label = f"{t}. {title}" if m.sequential or len(m.stages) > 1 else title
        rows.append([label, *map(number, cells), number(mean)])
    if m.sequential:
        values = aggregates(m)
        rows.append(["Avg (per task)", *map(number, column_means(m)), number(values["avg"])])
        rows.append(["Last (per task)", *map(number, last_row(m)), number(values["last"])])
    return header, rows


def aggregate_rows(m: AccuracyMatrix) -> list[tuple[str, str, str]]:
    """(title, value, formula) of every aggregate of one run; the value is "" when it has none."""
    values = aggregates(m)
    return [(named(a), number(values[a.key]), a.formula) for a in AGGREGATES if not a.needs]


def named(aggregate: Aggregate) -> str:
    """Its title and its other names in the field: `Last = MFN = AP = ACC`."""
    return " = ".join((aggregate.title, *aggregate.aliases))


def missing_notes(m: AccuracyMatrix) -> list[str]:
    """One sentence per aggregate that has no value: its title and why. Those that need another run are left out."""
    return [f"{a.title}: {reason(a, m)}" for a in AGGREGATES if not a.needs and reason(a, m)]


def format_matrix(m: AccuracyMatrix) -> str:
    """Aligned plain text for the terminal."""
    from pandas import DataFrame, Series

    (corner, *titles), rows = grid(m)
    table = DataFrame([row[1:] for row in rows], [row[0] for row in rows], titles, dtype=object)
    lines = table.rename_axis(columns=corner).to_string().splitlines()
    lines[1:] = [rule := "-" * len(lines[0]), *lines[1 : len(m.stages) + 1], *([rule] if m.sequential else []),
                 *lines[len(m.stages) + 1 :]]  # fmt: skip
    shown = {a.title: number(value) for a in AGGREGATES if (value := a.of(m) if not a.needs else None) is not None}
    return "\n".join([*lines, *(["", Series(shown).to_string()] if shown else [])])


def facts(run: StoredRun) -> list[tuple[str, str]]:
    """What has to stand beside the numbers of a run: preset, model, settings, seed, state, labels."""
    manifest = run.manifest
    pairs = [
        ("Method preset", run.title),
        ("Benchmark", manifest.get("benchmark")),
        ("Model", manifest.get("model")),
        ("Seed", manifest.get("seed")),
        ("Global batch", manifest.get("global_batch")),
        *(
            (TITLES.get(key, key.replace("_", " ").capitalize()), ", ".join(values))
            for key, values in run.settings().items()
        ),
        ("Stages evaluated", f"{run.evaluated_stages} of {len(manifest['stages'])}"),
        ("Labels", "; ".join(run.labels()) or "none"),
    ]
    return [(key, str(value)) for key, value in pairs if value is not None]


def state_note(run: StoredRun) -> str:
    """One sentence when the aggregates do not cover the whole benchmark, else ""."""
    done, n = run.evaluated_stages, len(run.manifest["stages"])
    if run.last_alone:
        return f"Asked after the last of {n} stages only: Last is that of a finished run, and nothing else is known."
    if done == n:
        return ""
    return f"Unfinished run: aggregates cover the first {done} of {n} stages and compare with no finished run."


def markdown(run: StoredRun) -> str:
    """The table with everything needed to read it, as Markdown."""
    header, rows = grid(run.matrix)
    lines = [f"# {run.name}", ""]
    lines += [f"- {key}: {value}" for key, value in facts(run)] + [""]
    lines += [*markdown_table(header, rows), ""]
    if state_note(run):
        lines += [state_note(run), ""]
    lines += markdown_table(["Aggregate", "Value", "Formula"], [list(r) for r in aggregate_rows(run.current)], "lrl")
    lines += ["", *(f"- no {note}" for note in missing_notes(run.current))] if missing_notes(run.current) else []
    lines += ["", "Scores are percent; an empty cell was not evaluated."]
    return "\n".join(lines) + "\n"


def markdown_table(header: list[str], rows: list[list[str]], align: str = "") -> list[str]:
    """Lines of a Markdown table; `align` holds l or r per column, by default r for all but the first and columns of words."""
    align = align or "l" + "".join(map(_side, list(zip(*rows))[1:] or [()] * (len(header) - 1)))
    escaped = [[" ".join(cell.split("\n")).replace("|", "\\|") for cell in row] for row in [header, *rows]]
    lines = ["| " + " | ".join(row) + " |" for row in escaped]
    lines.insert(1, "|" + "|".join("---" if a == "l" else "---:" for a in align) + "|")
    return lines


def _side(cells: Sequence[str]) -> str:
    """r for a column that has a number, or nothing at all."""
    return "r" if any(re.match(r"\W*\d", cell) for cell in cells) or not any(cells) else "l"


def csv_lines(rows: Sequence[Sequence[object]]) -> str:
    """Rows of one length as CSV."""
    from pandas import DataFrame

    return DataFrame(rows, dtype=object).to_csv(header=False, index=False, lineterminator="\n")


def comma_separated(run: StoredRun) -> str:
    """The table as CSV: the same rows as Markdown, then one line per aggregate; the preset in the first line."""
    header, rows = grid(run.matrix)
    preset = f"# {run.name}; preset {run.title}; labels: {'; '.join(run.labels()) or 'none'}"
    below = [[title, value] for title, value, _ in aggregate_rows(run.current)]
    state = [[f"# {state_note(run)}"]] if state_note(run) else []
    return "".join(csv_lines(part) for part in ([[preset]], [header, *rows], state, below) if part)


LATEX_ESCAPES = str.maketrans(
    {"\\": r"\textbackslash{}"}
    | {c: "\\" + c for c in "&%$#_{}"}
    | {
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "−": "$-$",
        "±": r"$\pm$",
        "–": "--",
        "Σ": r"$\Sigma$",
        "≤": r"$\le$",
        "≥": r"$\ge$",
    }
)


def latex_table(header: Sequence[str], blocks: Sequence[Sequence[Sequence[str]]], caption: str) -> str:
    """A booktabs table with a line above each block of rows; everything is escaped."""

    def line(cells: Sequence[str]) -> str:
        return " & ".join(cell.translate(LATEX_ESCAPES) for cell in cells) + r" \\"

    body = [text for block in blocks if block for text in (r"\midrule", *map(line, block))]
    return "\n".join([
        r"\begin{table}", r"\centering", r"\begin{tabular}{l" + "r" * (len(header) - 1) + "}", r"\toprule", line(header), *body,
        r"\bottomrule", r"\end{tabular}", r"\caption{" + caption.strip().translate(LATEX_ESCAPES) + "}", r"\end{table}", "",
    ])  # fmt: skip


def latex(run: StoredRun) -> str:
    """A booktabs table; the caption carries the preset and the labels."""
    header, rows = grid(run.matrix)
    n = len(run.matrix.stages)
    shown = [f"{title}: {value}" for title, value, _ in aggregate_rows(run.current) if value]
    caption = f"{run.manifest.get('benchmark', '')}, {run.title}, {run.manifest.get('model', '')}; {', '.join(shown)}"
    caption += f". Labels: {'; '.join(run.labels()) or 'none'}. {state_note(run)}"
    return f"{BOOKTABS}\n{latex_table(header, [rows[:n], rows[n:]], caption)}"


def write_tables(run: StoredRun, folder: Path) -> None:
    """matrix.md, matrix.csv and matrix.tex in that folder."""
    for suffix, text in {"md": markdown(run), "csv": comma_separated(run), "tex": latex(run)}.items():
        write(folder / f"matrix.{suffix}", text)
