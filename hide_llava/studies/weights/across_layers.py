"""How far each stage moved the weights, linear by linear, and how its update lies to those of the other stages."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from statistics import fmean, median

import numpy as np

from hide_llava.progress import Bar
from hide_llava.results.run_reader import StoredRun
from hide_llava.studies.weights.measures import (
    Array,
    LowRank,
    by_chance,
    cross_share,
    mean_cosine,
    products,
    spaces,
    sum_ratio,
)
from hide_llava.studies.weights.stored import BaseWeights, Stored, updates_of

Pairs = list[list[float | None]]
"""[T, T] of T updates, None where one of a pair has no update at this linear."""


@dataclass
class LinearChange:
    """One adapted linear. norms [T]: ‖Δ‖_F; base: ‖W‖_F; cross, ratio: `cross_share` and `sum_ratio` of its updates.

    columns, rows [T, T]: mean cosine of the principal angles between column spaces (what the updates write) and row spaces
    (what they read), of pairs of adapters that were begun anew: what stages added to one adapter has factors in common with its
    neighbours, whatever was learned. by_chance: the same of random spaces (columns, rows). cosines [T, T]:
    ⟨Δ_i, Δ_j⟩ / (‖Δ_i‖ ‖Δ_j‖).
    """

    module: str
    layer: int
    linear: str
    norms: list[float | None]
    base: float | None
    cross: float | None
    ratio: float | None
    columns: Pairs
    rows: Pairs
    by_chance: tuple[float | None, float | None]
    cosines: Pairs


@dataclass
class WeightReport:
    """updates: as they are called in tables. notes: what could not be measured, and why."""

    run: str
    updates: list[str]
    stages: list[str]
    adapters: list[str]
    linears: list[LinearChange]
    notes: list[str]

    @property
    def layers(self) -> list[int]:
        return sorted({one.layer for one in self.linears})

    def of_layer(self, layer: int) -> list[LinearChange]:
        return [one for one in self.linears if one.layer == layer]

    def relative(self, update: int, linears: list[LinearChange] | None = None) -> float | None:
        """‖Δ‖ / ‖W‖ over several linears taken as one (all of them by default); None without the base's weights."""
        found = [one for one in linears or self.linears if one.norms[update] is not None]
        if not found or any(one.base is None for one in found):
            return None
        base = sum(one.base**2 for one in found)
        return float(np.sqrt(sum(one.norms[update] ** 2 for one in found) / base)) if base else None

    def typical(self, update: int) -> float | None:
        """The median of ‖Δ‖ / ‖W‖ over the linears."""
        found = [one.norms[update] / one.base for one in self.linears if one.norms[update] is not None and one.base]
        return median(found) if found else None

    def mean_pairs(self, kind: str) -> Pairs:
        """The mean of `columns`, `rows` or `cosines` over the linears that have both updates."""
        matrices = [getattr(one, kind) for one in self.linears]
        return [[mean(m[i][j] for m in matrices) for j in range(len(self.updates))] for i in range(len(self.updates))]


def mean(values: object) -> float | None:
    """Of those that are there."""
    found = [value for value in values if value is not None]
    return fmean(found) if found else None


def analyse(run: StoredRun) -> WeightReport:
    """Measure all updates of a run's finished stages, one linear after the other, in fp64.

    Of a mixture of experts the whole adapter is measured, as if all its gates were 1.

    Raises:
        UserError: no stage holds a LoRA adapter, or a file of one is damaged.
    """
    updates, base = updates_of(run), BaseWeights(run)
    anew = [update.before is None for update in updates]  # experts, whose factors can be added
    linears = []
    with Stored(updates) as stored:
        modules = stored.modules()
        with Bar("weights", len(modules), "linear") as bar:
            for done, (module, layer, linear) in enumerate(modules, 1):
                linears.append(_measured(stored.read(module), module, layer, linear, base, anew))
                bar.at(done)
    notes = [f"No relative change: {base.why}."] if base.why else []
    without = sum(one.base is None for one in linears)
    if without and not base.why:
        notes.append(f"No relative change of {without} linears: the base model's files have no weight of that name and shape.")
    if not all(anew):
        notes.append("No cross terms: stages train an adapter on and on, and there is nothing to fuse; its update is what a "
                     "stage added to it. Nor angles between the spaces of such updates: neighbours share factors.")  # fmt: skip
    return WeightReport(run.name, [u.label for u in updates], [u.stage for u in updates], [u.adapter for u in updates],
                        linears, notes)  # fmt: skip


def _measured(
    found: list[LowRank | None], module: str, layer: int, linear: str, base: BaseWeights, anew: list[bool]
) -> LinearChange:
    there = [k for k, update in enumerate(found) if update is not None]
    updates = [found[k] for k in there]
    a, b = updates[0]
    gram = products(updates)
    norms = np.sqrt(np.diag(gram).clip(0))
    bases = [spaces(update) for update in updates]

    def over_pairs(values: dict[tuple[int, int], float | None], own: float) -> Pairs:
        matrix: Pairs = [[None] * len(found) for _ in found]
        for i, place in enumerate(there):
            matrix[place][place] = own if norms[i] > 0 else None
        for (i, j), value in values.items():
            matrix[there[i]][there[j]] = matrix[there[j]][there[i]] = value
        return matrix

    pairs = list(combinations(range(len(updates)), 2))
    apart = [(i, j) for i, j in pairs if anew[there[i]] and anew[there[j]]]
    columns = {(i, j): mean_cosine(bases[i][0], bases[j][0]) for i, j in apart}
    rows = {(i, j): mean_cosine(bases[i][1], bases[j][1]) for i, j in apart}
    cosines = {(i, j): _cosine(gram, norms, i, j) for i, j in pairs}
    chance = tuple(mean(by_chance(bases[i][side], bases[j][side]) for i, j in apart) for side in (0, 1))
    all_norms: list[float | None] = [None] * len(found)
    for place, norm in zip(there, norms):
        all_norms[place] = float(norm)
    cross = cross_share(updates) if all(anew) else None
    return LinearChange(
        module, layer, linear, all_norms, base.norm(module, (b.shape[0], a.shape[1])), cross,
        sum_ratio(gram), over_pairs(columns, 1.0), over_pairs(rows, 1.0), chance, over_pairs(cosines, 1.0),
    )  # fmt: skip


def _cosine(gram: Array, norms: Array, i: int, j: int) -> float | None:
    return float(gram[i, j] / (norms[i] * norms[j])) if norms[i] > 0 and norms[j] > 0 else None
