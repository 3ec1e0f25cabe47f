"""Our side: the scores of run folders by the published method that each preset stands for."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

from hide_llava.errors import UserError
from hide_llava.results.aggregates import aggregates
from hide_llava.results.comparison import readable
from hide_llava.results.grouping import Row, Stat, Table, stat, tables_of
from hide_llava.results.run_reader import StoredRun
from hide_llava.studies.agreement.protocols import BOUNDS, QUANTITIES, Protocol


@dataclass
class Method:
    """The finished runs of one row of a comparison. name: the row's; method: what it stands for in published tables, or None."""

    name: str
    method: str | None
    runs: list[StoredRun]

    def __post_init__(self) -> None:
        self._values = [aggregates(run.matrix) for run in self.runs]

    @property
    def preset(self) -> str:
        return self.runs[0].title

    @property
    def is_bound(self) -> bool:
        """Whether it learns no sequence: its scores are a limit for those that do."""
        return str(self.runs[0].manifest.get("method")) in BOUNDS

    def scores(self, quantity: str) -> list[float]:
        """Percent, one per run; [] where a run has none."""
        found = [values[quantity] for values in self._values]
        return [] if None in found else found

    def mean(self, quantity: str) -> float | None:
        return fmean(scores) if (scores := self.scores(quantity)) else None

    def stat(self, quantity: str) -> Stat | None:
        return stat(self.scores(quantity))

    def of_seed(self, quantity: str) -> dict[str, float]:
        """{seed: percent}; of several task orders with one seed the first."""
        found: dict[str, float] = {}
        for run, score in zip(self.runs, self.scores(quantity)):
            found.setdefault(str(run.manifest.get("seed")), score)
        return found


@dataclass
class Ours:
    """All methods of one benchmark and model. notes: what was left out; labels: what is not the same for all; sentences."""

    benchmark: str
    model: str
    methods: list[Method]
    notes: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)

    def standing_for(self) -> dict[str, Method]:
        """{published method: ours} of those that have a published name."""
        return {one.method: one for one in self.methods if one.method is not None}

    def by_preset(self) -> dict[str, Method]:
        """{preset: ours}.

        Raises:
            UserError: two configurations of one preset.
        """
        found: dict[str, Method] = {}
        for one in self.methods:
            if one.preset in found:
                raise UserError(f"{found[one.preset].name} and {one.name} are both {one.preset}; give the runs of one of them.")
            found[one.preset] = one
        return found

    @property
    def unmatched(self) -> list[str]:
        return [one.name for one in self.methods if one.method is None]


def methods_of(folders: list[Path], presets: dict[str, str]) -> Ours:
    """The runs in those folders. presets: preset → the method that it stands for; others stand for none, whatever their name.

    Raises:
        UserError: no run; runs whose scores mean different things, or of several models.
    """
    runs, left_out = readable(folders)
    table = _one_table(runs)
    notes = [left_out] if left_out else []
    found: list[Method] = []
    for row in table.rows:
        finished = [] if row.repeats else [run for run in row.runs if not run.unfinished]
        if row.repeats:
            notes.append(f"{_folders(row.runs)} left out: the same runs as {row.repeats} once more.")
        elif left := [run for run in row.runs if run.unfinished]:
            notes.append(f"{_folders(left)} left out: not evaluated to the end.")
        if finished:
            found.append(Method(row.name, presets.get(row.runs[0].title), finished))
    return Ours(table.benchmark, str(runs[0].manifest.get("model")), found, notes, _labels(table.rows))


def setting_of(folder: Path) -> Protocol:
    """The runs that lie in a folder, of one's own methods on another benchmark or with other options: the mean of each preset.

    Its name is the folder, its sources are the runs.

    Raises:
        UserError: no run lies there, or see `methods_of` and `Ours.by_preset`.
    """
    runs = sorted(file.parent for file in folder.glob("*/manifest.json"))
    if not runs:
        raise UserError(f"{folder}: no run folder lies there; name the folder that holds the runs of the other setting.")
    ours = methods_of(runs, {})
    found = Protocol(str(folder), ours.benchmark, ours.model, notes=ours.notes + ours.labels)
    found.title = f"{ours.benchmark} ({folder.resolve().name})"
    found.sources = [str(run.path) for method in ours.methods for run in method.runs]
    found.bounds = [preset for preset, method in ours.by_preset().items() if method.is_bound]
    for preset, method in ours.by_preset().items():
        means = {quantity: method.mean(quantity) for quantity in QUANTITIES}
        found.values[preset] = {quantity: mean for quantity, mean in means.items() if mean is not None}
    return found


def _one_table(runs: list[StoredRun]) -> Table:
    first, *others = tables_of(runs)
    if others:
        why = "; ".join(others[0].reasons) or f"benchmark: {others[0].benchmark}"
        names = f"{others[0].runs[0].path.name} and {first.runs[0].path.name}"
        raise UserError(f"The scores of {names} do not mean the same ({why}); "
                        "give runs of one benchmark, asked in one way.")  # fmt: skip
    models = sorted({str(run.manifest.get("model")) for run in runs})
    if len(models) > 1:
        raise UserError(f"These runs are of several models ({', '.join(models)}), and an order of methods is of one; give the "
                        "runs of one model.")  # fmt: skip
    return first


def check_published(ours: Ours, presets: dict[str, str]) -> None:
    """Raises UserError: no method of ours has published numbers, or two stand for one that has."""
    if not any(one.method for one in ours.methods):
        names = ", ".join(one.name for one in ours.methods)
        raise UserError(f"None of these runs stands for a method with published numbers: {names}. "
                        f"Presets that do: {', '.join(sorted(presets))}.")  # fmt: skip
    for one in ours.methods:
        twins = [other.name for other in ours.methods if other.method == one.method and one.method]
        if len(twins) > 1:
            raise UserError(f"{' and '.join(twins)} both stand for {one.method} of the published tables; give the runs of one of "
                            "them.")  # fmt: skip


def _labels(rows: list[Row]) -> list[str]:
    """What runs say of themselves that a reader of an order must know, by label: `lora, hide: partial: limit=8`."""
    said: dict[str, list[str]] = {}
    for row in rows:
        for label in dict.fromkeys(label for run in row.finished for label in run.labels()):
            said.setdefault(label, []).append(row.name)
    return [f"{', '.join(names)}: {label}." for label, names in said.items()]


def _folders(runs: list[StoredRun]) -> str:
    return ", ".join(run.path.name for run in runs)
