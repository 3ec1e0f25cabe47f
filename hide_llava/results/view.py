"""One table of a comparison as it is shown, ready for the page, Markdown, CSV and LaTeX."""

from __future__ import annotations

from dataclasses import dataclass, field

from hide_llava.results import bootstrap, published
from hide_llava.results.aggregates import AGGREGATES
from hide_llava.results.general_tables import GeneralTable
from hide_llava.results.grouping import Stat, Table


@dataclass
class PublishedRow:
    """The published values of one method: spreads of the last score per task and of avg, maa, last; who printed what."""

    method: str
    model: str
    tasks: list[published.Spread | None]
    values: dict[str, published.Spread | None]
    labels: list[str]


@dataclass
class BaselineRow:
    """One run against the baseline on the questions both answered after their last stage, per task; or why not."""

    name: str
    tasks: list[bootstrap.Difference | str]


@dataclass
class View:
    """One table as it is shown: our rows with their values and notes, the baseline's, the published ones."""

    table: Table
    title: str
    aggregates: list[dict[str, Stat | None]]
    last: list[list[Stat | None]]
    intervals: list[list[bootstrap.Interval | None]]
    notes: dict[str, list[int]]  # → the rows it is about
    costs: tuple[list[str], list[list[str]]]  # of `cost_table`
    general: GeneralTable = field(default_factory=GeneralTable)
    baseline: str = ""
    uncompared: str = ""  # why there is no difference to the baseline
    against: list[BaselineRow] = field(default_factory=list)
    published: list[PublishedRow] = field(default_factory=list)
    published_note: str = ""

    @property
    def names(self) -> list[str]:
        return [row.name for row in self.table.rows]

    def marks(self, row: int) -> list[int]:
        """Numbers, from 1, of the notes about a row."""
        return [number for number, rows in enumerate(self.notes.values(), 1) if row in rows]

    @property
    def counts(self) -> list[str]:
        """How many runs each row's values are the mean of; empty when all rows are single runs."""
        counts = [len(row.finished) for row in self.table.rows]
        return [str(count) for count in counts] if max(counts) > 1 else []

    @property
    def varied(self) -> list[str]:
        """What is not the same in every row, besides the method."""
        return list(dict.fromkeys(key for row in self.table.rows for key in row.conditions))

    @property
    def keys(self) -> list[str]:
        """Aggregates that at least one row has."""
        return [a.key for a in AGGREGATES if any(values[a.key] is not None for values in self.aggregates)]
