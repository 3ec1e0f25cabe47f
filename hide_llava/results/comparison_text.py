"""A comparison as Markdown, CSV and LaTeX, in the papers' layout: methods × tasks, Avg, Last."""

from __future__ import annotations

from collections.abc import Sequence

from hide_llava.results.aggregates import AGGREGATES
from hide_llava.results.bootstrap import Difference, Interval
from hide_llava.results.conditions import condition_title
from hide_llava.results.costs import NOTE
from hide_llava.results.general_tables import general_columns, general_lines
from hide_llava.results.grouping import Stat
from hide_llava.results.published import Spread
from hide_llava.results.tables import BOOKTABS, csv_lines, latex_table, markdown_table, number
from hide_llava.results.view import View

TITLES = {a.key: a.title for a in AGGREGATES}
LAYOUT = ("avg", "last")  # the columns after the tasks; the other aggregates follow
PUBLISHED = ("last", "avg", "maa")  # the aggregates that papers print under a definition they share


def stat_text(value: Stat | None) -> str:
    """`64.19`, `64.19 ± 1.20` for several runs, "" when there is none."""
    if value is None:
        return ""
    return number(value.mean) if value.sd is None else f"{number(value.mean)} ± {number(value.sd)}"


def spread_text(value: Spread | None) -> str:
    """`62.29–67.69 (3)`: lowest, highest, how many; one value alone as it is."""
    if value is None:
        return ""
    if value.count == 1:
        return number(value.low)
    low, high = number(value.low), number(value.high)
    return f"{low if low == high else f'{low}–{high}'} ({value.count})"


def interval_text(value: Interval | None) -> str:
    """`[83.10, 86.02]`"""
    return "" if value is None else f"[{number(value.low)}, {number(value.high)}]"


def difference_text(value: Difference | str) -> str:
    """`+1.30 [0.20, 2.41], p = 0.021`, or the reason why there is none in brackets."""
    if isinstance(value, str):
        return f"({value})"
    sign = "+" if value.value > 0 else ""
    return f"{sign}{number(value.value)} {interval_text(value.interval)}, p = {value.p:.3f}"


def columns(view: View) -> tuple[list[str], list[str]]:
    """(titles, aggregate keys) of the columns after the method: tasks, Avg, Last, then every other aggregate."""
    keys = [key for key in LAYOUT if key in view.keys] + [key for key in view.keys if key not in LAYOUT]
    return [*view.table.task_titles, *(TITLES[key] for key in keys)], keys


def rows(view: View, keys: list[str]) -> list[list[str]]:
    """Our rows as text: tasks, then the aggregates of those keys."""
    return [
        [*map(stat_text, last), *(stat_text(values[key]) for key in keys)]
        for last, values in zip(view.last, view.aggregates)
    ]


def published_rows(view: View, keys: list[str]) -> list[list[str]]:
    """Published rows as text in the same columns; aggregates that nobody printed stay empty."""
    return [
        [*map(spread_text, row.tasks), *(spread_text(row.values.get(key)) for key in keys)] for row in view.published
    ]


def names_of_published(view: View) -> list[str]:
    """Method and model of the published rows."""
    return [f"{row.method} ({row.model})" for row in view.published]


def counted(view: View, rows: list[list[str]], names: list[str]) -> tuple[list[str], list[list[str]]]:
    """(heads of the first columns, rows that begin with them): the method, and n where a row is a mean of several runs."""
    if not view.counts:
        return [], [[name, *row] for name, row in zip(names, rows)]
    return ["n"], [[name, count, *row] for name, count, row in zip(names, view.counts, rows)]


def markdown_text(views: list[View], left_out: str = "") -> str:
    """All tables, their notes and differences; `left_out`: what was named and is no run."""
    lines = [line for view in views for line in [*_markdown(view), ""]]
    return "\n".join([*lines, left_out]).rstrip() + "\n"


def _markdown(view: View) -> list[str]:
    titles, keys = columns(view)
    marks = ["".join(f"[{number}]" for number in view.marks(k)) for k in range(len(view.names))]
    names = [f"{name} {mark}".strip() for name, mark in zip(view.names, marks)]
    lines = [f"# {view.title}", ""]
    lines += [f"A table of its own, because of {'; '.join(view.table.reasons)}.", ""] if view.table.reasons else []
    more, body = counted(view, rows(view, keys), names)
    lines += markdown_table(["Method preset", *more, *titles], body)
    lines += ["", "Task columns: score after the last stage (percent). An empty cell was not evaluated.", ""]
    lines += [f"[{number}] {note}  " for number, note in enumerate(view.notes, 1)]  # two blanks: a line of its own
    if view.general.titles:
        header, body = general_lines(view.general, view.names)
        lines += ["", "General ability after the last stage; in brackets the change from the untouched model:", ""]
        lines += [*markdown_table(header, body), "", *view.general.notes]
    titles, costs = view.costs
    if titles:
        lines += [
            "",
            NOTE,
            "",
            *markdown_table(["Method preset", *titles], [[n, *c] for n, c in zip(view.names, costs)]),
        ]
    if any(interval for row in view.intervals for interval in row):
        body = [[name, *map(interval_text, row)] for name, row in zip(view.names, view.intervals) if any(row)]
        lines += ["", "95 % bootstrap intervals over the questions, after the last stage:", ""]
        lines += markdown_table(["Method preset", *view.table.task_titles], body)
    if view.against:
        body = [[row.name, *map(difference_text, row.tasks)] for row in view.against]
        lines += ["", f"Difference to {view.baseline} on the same questions (not corrected for many comparisons):", ""]
        lines += markdown_table(["Run", *view.table.task_titles], body)
    if view.uncompared:
        lines += ["", view.uncompared]
    if view.published_note:
        lines += ["", view.published_note, ""]
    if view.published:
        shown = list(PUBLISHED)
        body = [[name, *row] for name, row in zip(names_of_published(view), published_rows(view, shown))]
        lines += markdown_table(["Published", *view.table.task_titles, *(TITLES[key] for key in shown)], body)
        lines += [""]
        lines += [f"- {name}: {'; '.join(row.labels)}" for name, row in zip(names_of_published(view), view.published)]
    return lines


def csv_text(view: View) -> str:
    """One line per row; standard deviations and intervals in columns of their own, published rows last."""
    titles, keys = columns(view)
    (cost_titles, costs), count = view.costs, len(view.table.tasks)
    limits = [f"{title} {kind}" for title in view.table.task_titles for kind in ("low", "high")]
    kept_titles, kept = general_columns(view.general)
    more = [*kept_titles, *cost_titles, *map(condition_title, view.varied), "n"]
    lines = [["Method preset", *titles, *(f"{t} sd" for t in titles), *limits, *more, "Runs", "Notes"]]
    for k, row in enumerate(view.table.rows):
        values = [*view.last[k], *(view.aggregates[k][key] for key in keys)]
        means, sds = ([number(getattr(v, part) if v else None) for v in values] for part in ("mean", "sd"))
        conditions = [row.conditions.get(key, "") for key in view.varied]
        notes = "; ".join(note for note, owners in view.notes.items() if k in owners)
        runs = "; ".join(run.path.name for run in row.runs)
        lines.append([row.name, *means, *sds, *_limits(view.intervals[k]), *(kept[k] if kept else []), *costs[k], *conditions,
                      str(len(row.finished)), runs, notes])  # fmt: skip
    for name, row in zip(names_of_published(view), view.published):
        values = [*row.tasks, *(row.values.get(key) for key in keys)]
        middle = [number(v.low) if v and v.low == v.high else "" for v in values]
        lines.append([f"published: {name}", *middle, *[""] * len(values), *_limits(values[:count]), *[""] * len(more),
                      "; ".join(row.labels), ""])  # fmt: skip
    return csv_lines(lines)


def _limits(values: Sequence[Interval | Spread | None]) -> list[str]:
    return [number(x) for v in values for x in ((v.low, v.high) if v else (None, None))]


def latex_text(views: list[View]) -> str:
    """One booktabs table per view: our rows, then the published ranges."""
    return "\n".join([BOOKTABS, *map(_latex, views)])


def _latex(view: View) -> str:
    keys = [key for key in LAYOUT if key in view.keys or view.published]
    titles = [*view.table.task_titles, *({"avg": "Avg", "last": "Last"}[key] for key in keys)]
    more, body = counted(view, rows(view, keys), view.names)
    theirs = [[n, *[""] * len(more), *row] for n, row in zip(names_of_published(view), published_rows(view, keys))]
    notes = [f"{_whose(view.names, owners)}: {note}" for note, owners in view.notes.items()]
    notes += view.table.reasons
    notes += [view.published_note] if view.published else []
    caption = f"{view.title}: score after the last task (percent); Avg is the column mean. {'. '.join(notes)}"
    return latex_table(["Method", *more, *titles], [body, theirs], caption) + _latex_general(view)


def _whose(names: list[str], owners: list[int]) -> str:
    """The rows of a note, by their names; of many, those that it is not about."""
    others = [name for k, name in enumerate(names) if k not in owners]
    if len(owners) > 3 and len(others) < len(owners):
        return f"All but {'; '.join(others)}" if others else "All"
    return "; ".join(names[k] for k in owners)


def _latex_general(view: View) -> str:
    """A second table, where a row was asked tests of general ability."""
    if not view.general.titles:
        return ""
    header, body = general_lines(view.general, view.names)
    caption = f"{view.title}: general ability after the last task (percent; in brackets the change from the untouched model). "
    return "\n" + latex_table(header, [body], caption + " ".join(view.general.notes))
