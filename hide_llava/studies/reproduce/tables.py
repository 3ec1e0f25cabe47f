"""The tables of an ablation: tidy CSV, LaTeX with the best in bold, and the texts of the page's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hide_llava.results.matrix import Cell
from hide_llava.results.tables import LATEX_ESCAPES, number
from hide_llava.results.variants import text
from hide_llava.studies.reproduce.variants import Row

if TYPE_CHECKING:
    from pandas import DataFrame

MIB = 2**20
BYTES = 2  # of a number in bf16
SIZES = ("Kept apart (M)", "Stored (MiB)", "ms per answer")
GREEK = str.maketrans({"α": r"$\alpha$", "ε": r"$\varepsilon$"})


def scores(rows: list[Row]) -> dict[str, list[Cell]]:
    """{column: value of each row}: the mean, the mean over all stages where every row has it, and every task."""
    run = rows[0].run
    means = {"Last": [row.last for row in rows]}
    means |= {"Avg": [row.avg for row in rows]} if all(row.avg is not None for row in rows) else {}
    tasks = {run.task_title(task): [row.cells[task].score if task in row.cells else None for row in rows]
             for task in run.matrix.tasks}  # fmt: skip
    return {**means, **tasks}


def sizes(row: Row) -> list[str]:
    """In the columns of SIZES."""
    return [number(row.kept / 1e6, 3), number(row.stored * BYTES / MIB, 2), number(row.milliseconds, 1)]


def shown(rows: list[Row], sized: bool) -> tuple[list[str], list[list[str]]]:
    """(header, rows) of the table as texts; sized: with SIZES."""
    columns = scores(rows)
    header = ["", *columns, *(SIZES if sized else ())]
    return header, [[row.case.name, *(number(values[k]) for values in columns.values()), *(sizes(row) if sized else ())]
                    for k, row in enumerate(rows)]  # fmt: skip


def tidy(rows: list[Row]) -> DataFrame:
    """A line for every case and task, and one for its mean: options, score in percent with its 95 % interval, questions."""
    from pandas import DataFrame

    options = list(dict.fromkeys(key for row in rows for key in row.case.options))
    lines: list[dict[str, Any]] = []
    for row in rows:
        method = {**row.run.config["method"], **row.case.options}  # a run of an older version lacks later options
        head = {"case": row.case.name, **{key: text(method[key]) for key in options}}
        tail = {"kept_apart": row.kept, "stored": row.stored, "ms_per_answer": row.milliseconds, "run": row.run.path.name}
        for task, cell in row.cells.items():
            interval = cell.interval[0]
            limits = {"low": interval.low, "high": interval.high} if interval else {"low": None, "high": None}
            lines.append({**head, "task": task, "score": cell.score, **limits, "questions": cell.data.get("n_scored"), **tail})
        for name, mean in (("mean", row.last), ("mean over stages", row.avg)):
            if mean is not None:
                lines.append({**head, "task": name, "score": mean, "low": None, "high": None, "questions": None, **tail})
    return DataFrame(lines)


def latex(rows: list[Row], caption: str, label: str, sized: bool) -> str:
    """A booktabs table; the best score of each column is bold."""
    from pandas import DataFrame

    columns = scores(rows)
    names = [escaped(row.case.name) for row in rows]
    table = DataFrame({escaped(title): values for title, values in columns.items()}, names, dtype=float)
    best = list(table.columns)
    if sized:
        for k, title in enumerate(SIZES):
            table[escaped(title)] = [float(sizes(row)[k] or "nan") for row in rows]
    return booktabs(table, caption, label, best)


def booktabs(table: DataFrame, caption: str, label: str, best: Sequence[str] = ()) -> str:
    """A table whose names are escaped, with two decimals. best: the columns whose highest value is bold."""
    style = table.style.format(precision=2, na_rep="")
    if best:
        style = style.highlight_max(subset=best, props="textbf:--rwrap;")
    return style.to_latex(hrules=True, caption=escaped(caption), label=label, position_float="centering",
                          column_format="l" + "r" * len(table.columns))  # fmt: skip


def escaped(words: str) -> str:
    """As LaTeX prints it."""
    return words.translate(LATEX_ESCAPES).translate(GREEK)
