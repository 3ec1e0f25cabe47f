"""CKA between the models of a run's stages, layer by layer, with what is needed to read it (docs/PROTOCOLS.md, Studies)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hide_llava.errors import UserError
from hide_llava.evaluation.batches import automatic_batch_size
from hide_llava.studies.cka.estimators import (
    Array,
    activations,
    effective_dimension,
    gram,
    hsic_unbiased,
    legacy_matrix,
    mean_off_diagonal,
    median_sigma2,
)
from hide_llava.studies.cka.representations import asked, probe_of, represent
from hide_llava.training.lineage import chain_of
from hide_llava.training.run import Run
from hide_llava.training.run_folder import stage_name
from hide_llava.training.session import Session

RESAMPLES, PERMUTATIONS, LEVEL = 100, 20, 0.95
LEGACY_SAMPLES = 50


@dataclass
class LayerCka:
    """One decoder layer. matrix [k, k]: CKA of every pair of models; mean: off its diagonal, with a 95 % interval.

    null: the mean after permuting each model's prompts. dimension: mean effective dimension of the models. None where
    the published procedure does not define them.
    """

    layer: int
    matrix: list[list[float]]
    mean: float
    low: float | None
    high: float | None
    null: float | None
    dimension: float


@dataclass
class CkaReport:
    """`models`: titles of the stages compared; `prompts`: task title and split -> number of prompts; `weights`: what
    `stage.json` of the last of those stages calls its weights and all before them."""

    run: str
    models: list[str]
    prompts: dict[str, int]
    activation: str
    pooling: str
    kernel: str
    legacy: bool
    layers: list[LayerCka]
    weights: str = ""


def analyse(
    run: Path, stage: int, tasks: list[str] | None = None, samples: int = 100, activation: str = "layer",
    pooling: str = "last", kernel: str = "linear", legacy: bool = False, batch_size: int | None = None,
) -> CkaReport:  # fmt: skip
    """Compare the models of stages 1 … `stage` on `samples` prompts of each of their tasks.

    tasks: only the stages that train these. legacy: the published procedure: every model on the first 50 test
    questions of its OWN task, MLP branch, mean over all positions, biased RBF CKA; unrelated inputs, docs/PROTOCOLS.md, Studies.
    batch_size: None takes the run's eval.batch_size, and where that is null as well, what fits into free memory.

    Raises:
        UserError: no run, no such stage or task, fewer than two models, or a stage that is not complete.
    """
    session = Session(Run.at(run))
    chosen = _stages(session, run, stage, tasks)
    if legacy:
        activation, pooling, kernel, samples = "mlp", "all", "rbf", LEGACY_SAMPLES
    probes = [probe_of(session.run.tasks[session.stages[t].train[0]], samples, legacy) for t in chosen]
    automatic = automatic_batch_size(session.core.llava, lambda: max(asked(session, p).longest() for p in probes))
    size = batch_size or session.run.eval.batch_size or automatic
    models = []
    for k, t in enumerate(chosen):
        session.restore(t)
        models.append(represent(session, probes[k : k + 1] if legacy else probes, activation, pooling, size))
    shortest = min(model.shape[1] for model in models)  # legacy, with a short test file
    sets = [[model[layer, :shortest] for model in models] for layer in range(len(models[0]))]
    layers = [legacy_layer(k, group) if legacy else one_layer(k, group, kernel) for k, group in enumerate(sets)]
    titles = [session.stages[t].title for t in chosen]
    prompts = {f"{probe.task.title} ({probe.split})": len(probe.questions) for probe in probes}
    weights = chain_of(session.run.folder.stage(stage_name(session.stages[chosen[-1]])))
    return CkaReport(run.name, titles, prompts, activation, pooling, kernel, legacy, layers, weights)


def _stages(session: Session, run: Path, stage: int, tasks: list[str] | None) -> list[int]:
    stages, ids = session.stages, [task.id for task in session.run.tasks]
    session.run.check_stage(stage)
    for task in tasks or []:
        session.run.task(task, general=False)
    chosen = [t for t in range(stage) if stages[t].train and (not tasks or ids[stages[t].train[0]] in tasks)]
    if len(chosen) < 2:
        raise UserError(f"CKA compares the models of at least two stages, and {len(chosen)} of {run} fit the choice.")
    return chosen


def one_layer(layer: int, sets: list[NDArray], kernel: str) -> LayerCka:
    """Debiased CKA of activation sets [n, d] whose rows are the same inputs; one σ² for all (mean of the medians)."""
    data = [activations(x, f"layer {layer}") for x in sets]
    sigma2 = float(np.mean([median_sigma2(x) for x in data])) if kernel == "rbf" else None
    grams = [gram(x, kernel, sigma2) for x in data]
    matrix = debiased(grams)
    low, high = interval(grams)
    dimension = float(np.mean([effective_dimension(x) for x in data]))
    return LayerCka(layer, matrix.tolist(), mean_off_diagonal(matrix), low, high, null(grams), dimension)


def legacy_layer(layer: int, sets: list[NDArray]) -> LayerCka:
    """What the published script draws, of sets whose rows are unrelated."""
    matrix = legacy_matrix(sets)
    dimension = float(np.mean([effective_dimension(x) for x in sets]))
    return LayerCka(layer, matrix.tolist(), mean_off_diagonal(matrix), None, None, None, dimension)


def debiased(grams: list[Array]) -> Array:
    """Matrix of debiased CKA of all pairs of kernel matrices; each HSIC is computed once."""
    own = [hsic_unbiased(k, k) for k in grams]
    matrix = np.eye(len(grams))
    for i in range(len(grams)):
        for j in range(i):
            scale = own[i] * own[j]
            matrix[i, j] = matrix[j, i] = hsic_unbiased(grams[i], grams[j]) / np.sqrt(scale) if scale > 0 else 0.0
    return matrix


def interval(grams: list[Array], seed: int = 0) -> tuple[float, float]:
    """95 % interval of the mean off-diagonal CKA over prompts, by `cka.bootstrap_interval`'s rule: distinct rows of a
    bootstrap draw, the same for all models, with the spread scaled to the full size."""
    rng, n = np.random.default_rng(seed), len(grams[0])
    centre, values, kept = mean_off_diagonal(debiased(grams)), [], []
    for _ in range(RESAMPLES):
        rows = np.unique(rng.integers(0, n, n))
        while rows.size < 4:
            rows = np.unique(rng.integers(0, n, n))
        values.append(mean_off_diagonal(debiased([k[np.ix_(rows, rows)] for k in grams])))
        kept.append(rows.size)
    m = np.asarray(kept)
    spread = (np.asarray(values) - np.mean(values)) / np.sqrt(np.maximum(1 - m / n, 1 / n) * n / m)
    low, high = np.quantile(spread, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(centre + low), float(centre + high)


def null(grams: list[Array], seed: int = 0) -> float:
    """Mean off-diagonal CKA when every model's prompts are in an order of their own."""
    rng, n = np.random.default_rng(seed), len(grams[0])
    values = []
    for _ in range(PERMUTATIONS):
        orders = [rng.permutation(n) for _ in grams]
        values.append(mean_off_diagonal(debiased([k[np.ix_(o, o)] for k, o in zip(grams, orders)])))
    return float(np.mean(values))
