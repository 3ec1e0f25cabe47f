"""The accuracy matrix as Markdown, CSV, LaTeX and plain text.

Layout of the papers: one row per stage ("after task t"), one column per task, then the per-task "Avg" and "Last" rows,
then the aggregates under names that cannot be confused. Empty cells stay empty.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path

from hide_llava.results import html
from hide_llava.results.aggregates import AGGREGATES, Aggregate, aggregates, reason
from hide_llava.results.matrix import AccuracyMatrix, Cell, column_means, last_row, row_means
from hide_llava.results.run_reader import Run

MEAN = "Mean"
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
    header, rows = grid(m)
    table = [header, *rows]
    widths = [max(len(row[k]) for row in table) for k in range(len(header))]

    def line(row: list[str]) -> str:
        first, *rest = (cell.ljust(w) if k == 0 else cell.rjust(w) for k, (cell, w) in enumerate(zip(row, widths)))
        return "  ".join([first, *rest]).rstrip()

    rule = "  ".join("-" * w for w in widths)
    per_task = len(m.stages)
    lines = [line(header), rule, *map(line, rows[:per_task])]
    if rows[per_task:]:
        lines += [rule, *map(line, rows[per_task:])]
    values = aggregates(m)
    shown = [(a.title, number(values[a.key])) for a in AGGREGATES if values[a.key] is not None]
    if shown:
        width = max(len(title) for title, _ in shown)
        lines += ["", *(f"{title.ljust(width)}  {value.rjust(7)}" for title, value in shown)]
    return "\n".join(lines)


def facts(run: Run) -> list[tuple[str, str]]:
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


def state_note(run: Run) -> str:
    """One sentence when the aggregates do not cover the whole benchmark, else ""."""
    done, n = run.evaluated_stages, len(run.manifest["stages"])
    if done == n:
        return ""
    return f"Unfinished run: aggregates cover the first {done} of {n} stages and compare with no finished run."


def markdown(run: Run) -> str:
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
    """Lines of a Markdown table; `align` holds l or r per column, by default all but the first are numbers."""
    align = align or "l" + "r" * (len(header) - 1)
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in [header, *rows]]
    lines = ["| " + " | ".join(row) + " |" for row in escaped]
    lines.insert(1, "|" + "|".join("---" if a == "l" else "---:" for a in align) + "|")
    return lines


def comma_separated(run: Run) -> str:
    """The table as CSV: the same rows as Markdown, then one line per aggregate; the preset in the first line."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    header, rows = grid(run.matrix)
    writer.writerow([f"# {run.name}; preset {run.title}; labels: {'; '.join(run.labels()) or 'none'}"])
    writer.writerow(header)
    writer.writerows(rows)
    if state_note(run):
        writer.writerow([f"# {state_note(run)}"])
    writer.writerows([title, value] for title, value, _ in aggregate_rows(run.current))
    return out.getvalue()


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


def latex_row(cells: list[str]) -> str:
    """One row of a LaTeX table, its cells escaped."""
    return " & ".join(cell.translate(LATEX_ESCAPES) for cell in cells) + r" \\"


def latex(run: Run) -> str:
    """A booktabs table; the caption carries the preset and the labels."""
    header, rows = grid(run.matrix)
    n = len(run.matrix.stages)
    shown = [f"{title}: {value}" for title, value, _ in aggregate_rows(run.current) if value]
    caption = f"{run.manifest.get('benchmark', '')}, {run.title}, {run.manifest.get('model', '')}; " + ", ".join(shown)
    caption += f". Labels: {'; '.join(run.labels()) or 'none'}. {state_note(run)}"
    lines = [
        "% needs \\usepackage{booktabs}",
        r"\begin{table}",
        r"\centering",
        r"\begin{tabular}{l" + "r" * (len(header) - 1) + "}",
        r"\toprule",
        latex_row(header),
        r"\midrule",
        *map(latex_row, rows[:n]),
        *([r"\midrule", *map(latex_row, rows[n:])] if rows[n:] else []),
        r"\bottomrule",
        r"\end{tabular}",
        r"\caption{" + caption.strip().translate(LATEX_ESCAPES) + "}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def write_tables(run: Run, folder: Path) -> list[Path]:
    """matrix.md, matrix.csv and matrix.tex in that folder."""
    texts = {"md": markdown(run), "csv": comma_separated(run), "tex": latex(run)}
    return [html.write(folder / f"matrix.{suffix}", text) for suffix, text in texts.items()]
