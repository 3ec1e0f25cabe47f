"""All that `analyze agreement` finds out: our order of methods against each published one, these among themselves, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np

from hide_llava.errors import UserError
from hide_llava.results import published
from hide_llava.results.aggregates import by_name
from hide_llava.results.bootstrap import LEVEL, RESAMPLES, SEED
from hide_llava.results.grouping import Stat, stat
from hide_llava.studies.agreement.correlation import (
    DISTINCT,
    EXACT,
    FEWEST,
    SAMPLED,
    Correlation,
    coefficients,
    correlate,
)
from hide_llava.studies.agreement.measured import routed_right, weight_change
from hide_llava.studies.agreement.ours import Method, Ours, check_published, methods_of, setting_of
from hide_llava.studies.agreement.protocols import QUANTITIES, Protocol, protocols


@dataclass
class Agreed:
    """One quantity of one protocol. methods: those that both sides have. found: None for too few, or where one side is all tied.

    standing: protocol's method → ours. bounds: whether zero-shot, joint and individual training are among them.
    """

    protocol: Protocol
    quantity: str
    bounds: bool
    methods: list[str]
    standing: dict[str, Method]
    found: Correlation | None

    @property
    def too_few(self) -> bool:
        return len(self.methods) < FEWEST


@dataclass
class Pair:
    """Two published tables, or two of our seeds, by Last: the coefficients of their orders of the methods that both have."""

    first: str
    second: str
    n: int
    rho: float
    tau: float


@dataclass
class Explained:
    """One of our methods. rank: by Last among our learners of a sequence, 1 the best; None of a bound.

    ranks: title of a protocol → (its published rank, our rank) among the methods that both have. weights: percent.
    routed: percent. Statistics are over runs; None where no run has them.
    """

    name: str
    method: str | None
    rank: float | None
    ranks: dict[str, tuple[float, float]]
    last: Stat | None
    learned: Stat | None
    forgetting: Stat | None
    weights: Stat | None
    routed: Stat | None


@dataclass
class AgreementStudy:
    """agreed: protocols by quantities, in their order. elsewhere: the same for `settings`, other ones of ours.

    tables: pairs of published tables. seeds: pairs of our seeds.
    """

    ours: Ours
    protocols: list[Protocol]
    settings: list[Protocol]
    agreed: list[Agreed]
    elsewhere: list[Agreed]
    tables: list[Pair]
    seeds: list[Pair]
    methods: list[Explained]
    notes: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        rows = [{"title": one.protocol.title, "protocol": one.protocol.name, "benchmark": one.protocol.benchmark,
                 "model": one.protocol.model, "quantity": one.quantity, "bounds": one.bounds, "methods": one.methods,
                 "too_few": one.too_few, "found": asdict(one.found) if one.found else None}
                for one in [*self.agreed, *self.elsewhere]]  # fmt: skip
        return {
            "benchmark": self.ours.benchmark, "model": self.ours.model,
            "runs": {one.name: [str(run.path) for run in one.runs] for one in self.ours.methods},
            "settings": {"test": "permutation, two-sided", "all_orders_up_to": EXACT, "orders_drawn": SAMPLED, "seed": SEED,
                         "resamples": RESAMPLES, "level": LEVEL, "distinct_methods": DISTINCT, "fewest_methods": FEWEST},
            "agreement": rows, "published_tables": list(map(asdict, self.tables)), "seeds": list(map(asdict, self.seeds)),
            "methods": list(map(asdict, self.methods)), "protocols": list(map(asdict, self.protocols)),
            "other_settings": list(map(asdict, self.settings)), "unmatched": self.ours.unmatched,
            "notes": [*self.ours.notes, *self.ours.labels, *self.notes],
        }  # fmt: skip


def study(folders: list[Path], with_bounds: bool = False, against: Sequence[Path] = ()) -> AgreementStudy:
    """Of the runs in those folders. with_bounds: each quantity once more, with zero-shot, joint and individual training.

    against: folders that hold runs of the same methods in another setting.

    Raises:
        UserError: see `methods_of`, `check_published` and `setting_of`.
    """
    known = published.load()
    ours = methods_of(folders, known.presets)
    check_published(ours, known.presets)
    standing = ours.standing_for()
    tables = [one for one in protocols(known) if standing.keys() & one.values.keys()]
    agreed = [one for protocol in tables for one in _agreed(protocol, standing, with_bounds)]
    settings, presets = [setting_of(folder) for folder in against], ours.by_preset() if against else {}
    titles = [one.title for one in settings]
    for setting, folder in zip(settings, against, strict=True):
        if titles.count(setting.title) > 1:  # of one name in different places: figures are called by the title
            setting.title = f"{setting.benchmark} ({folder})"
    elsewhere = [one for setting in settings for one in _agreed(setting, presets, with_bounds)]
    found = AgreementStudy(ours, tables, settings, agreed, elsewhere, _between_tables(tables), _between_seeds(ours.methods), [])
    found.notes += [f"{one.title}: {note}" for one in settings for note in one.notes if note not in ours.labels]
    found.methods = [_explained(one, found) for one in ours.methods]
    return found


def _agreed(protocol: Protocol, standing: dict[str, Method], with_bounds: bool) -> list[Agreed]:
    """Each quantity without bounds, and once more with them where that is asked for and both sides have one."""
    found = []
    for quantity, bounds in product(QUANTITIES, (False, True) if with_bounds else (False,)):
        theirs = protocol.of(quantity, bounds)
        shared = [method for method in theirs if method in standing and standing[method].scores(quantity)]
        if not shared or (bounds and not set(protocol.bounds) & set(shared)):
            continue
        result = None
        if len(shared) >= FEWEST:
            scores = [_upward(quantity, np.array(standing[method].scores(quantity))) for method in shared]
            result = correlate(_upward(quantity, np.array([theirs[method] for method in shared])), scores)
        found.append(Agreed(protocol, quantity, bounds, shared, standing, result))
    return found


def _upward(quantity: str, scores: np.ndarray) -> np.ndarray:
    """Turned so that more is better, as forgetting is not: an agreement then means the same of every quantity."""
    return -scores if by_name(quantity).lower_is_better else scores


def _between_tables(tables: list[Protocol]) -> list[Pair]:
    """Of every two that share enough methods; what is joined of them would agree with itself."""
    single = [one for one in tables if not one.joined]
    pairs = [_pair(a.title, b.title, a.of("last"), b.of("last")) for a, b in combinations(single, 2)]
    return [pair for pair in pairs if pair is not None]


def _between_seeds(methods: list[Method]) -> list[Pair]:
    """Of every two seeds: how far our own order repeats, which bounds how far it can agree with any other."""
    by_seed: dict[str, dict[str, float]] = {}
    for one in methods:
        for seed, score in {} if one.is_bound else one.of_seed("last").items():
            by_seed.setdefault(seed, {})[one.name] = score
    pairs = [_pair(a, b, by_seed[a], by_seed[b]) for a, b in combinations(by_seed, 2)]
    return [pair for pair in pairs if pair is not None]


def _pair(first: str, second: str, a: dict[str, float], b: dict[str, float]) -> Pair | None:
    shared = [name for name in a if name in b]
    if len(shared) < FEWEST:
        return None
    rho, tau = map(float, coefficients(np.array([a[name] for name in shared]), np.array([b[name] for name in shared])))
    return None if rho != rho else Pair(first, second, len(shared), rho, tau)


def ranks(scores: dict[str, float]) -> dict[str, float]:
    """{name: rank}, 1 the highest score; what is tied shares the mean of its places."""
    from pandas import Series

    return Series(scores, dtype=float).round(9).rank(ascending=False).to_dict()


def _explained(one: Method, found: AgreementStudy) -> Explained:
    learners = {m.name: mean for m in found.ours.methods if not m.is_bound and (mean := m.mean("last")) is not None}
    both: dict[str, tuple[float, float]] = {}
    standing = found.ours.standing_for()
    for agreed in found.agreed:
        if agreed.quantity == "last" and not agreed.bounds and one.method in agreed.methods and not agreed.too_few:
            theirs, ours = agreed.protocol.of("last"), {m: standing[m].mean("last") for m in agreed.methods}
            both[agreed.protocol.title] = (ranks({m: theirs[m] for m in agreed.methods})[one.method], ranks(ours)[one.method])
    return Explained(
        one.name, one.method, ranks(learners).get(one.name), both, one.stat("last"), one.stat("mft"), one.stat("forgetting"),
        _measured(one, weight_change, found.notes), _measured(one, routed_right, found.notes),
    )  # fmt: skip


def _measured(one: Method, measure: Any, notes: list[str]) -> Stat | None:
    """Over the runs that have it; a damaged file is told and leaves its run out."""
    values = []
    for run in one.runs:
        try:
            values.append(measure(run))
        except UserError as error:
            notes.append(f"{run.path.name}: {error}")
    return stat([value for value in values if value is not None])
