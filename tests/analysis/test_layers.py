"""`analyze cka`: the activations are those of each stage's own model, and the numbers are those of studies/cka/estimators.py."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from hide_llava.adapters.route import Route
from hide_llava.backbones.llava15 import splice
from hide_llava.results.drawing import DARK
from hide_llava.studies.cka.across_layers import analyse, debiased, interval, null, one_layer
from hide_llava.studies.cka.estimators import gram, legacy_matrix, pairwise
from hide_llava.studies.cka.report import figure
from hide_llava.studies.cka.representations import batches, probe_of, represent
from hide_llava.training.run import Run
from hide_llava.training.run_folder import RunFolder
from hide_llava.training.session import Session
from tests.cli.call import call, refused
from tests.tiny import arguments, write_world

FIGURE = {"cka-light.png", "cka-dark.png", "cka.pdf", "cka.svg"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run of `hide` on the tiny world, with the batch size that a user's run has: null, chosen by itself."""
    world = write_world(tmp_path_factory.mktemp("world"))
    folder = tmp_path_factory.mktemp("runs") / "hide"
    called = call("train", *arguments(world, "hide", folder, "train.epochs=1", "eval.batch_size=null"))
    assert called.code == 0, called.err
    return folder


@pytest.fixture(scope="module")
def session(run: Path) -> Session:
    return Session(Run.at(run))


@pytest.mark.parametrize("stage", [0, 2])
def test_activations_are_those_of_the_stages_expert_alone(run: Path, session: Session, stage: int) -> None:
    """The last layer gives the logits of the base with that expert folded in and that stage's projector, one by one."""
    probes = [probe_of(task, 4) for task in session.run.tasks[:2]]
    session.restore(stage)
    found = represent(session, probes, "layer", "last", size=3)
    llava, core = session.core.llava, session.core
    assert found.shape == (2, 8, 48) and not np.allclose(found[0], found[1])
    core.fold([session.method.expert(stage)], [1.0], "delta_sum", [])
    core.follow(Route())
    with torch.no_grad():
        wanted = []
        for batch in (b for probe in probes for b in batches(session, probe, 1)):
            embeds = splice(llava, batch["input_ids"], session.routed.see(batch), core.projector)
            wanted.append(llava(inputs_embeds=embeds, attention_mask=batch["attention_mask"]).logits[0, -1])
        logits = llava.lm_head(llava.model.language_model.norm(torch.from_numpy(found[1])))
    core.unfold()
    torch.testing.assert_close(logits, torch.stack(wanted), atol=1e-4, rtol=1e-4)


def test_pooling_over_all_positions_leaves_padding_out(run: Path, session: Session) -> None:
    session.restore(0)
    probes = [probe_of(task, 6) for task in session.run.tasks[:2]]
    for activation in ("layer", "mlp"):
        together, alone = (represent(session, probes, activation, "all", size) for size in (6, 1))
        np.testing.assert_allclose(together, alone, atol=1e-4)


def test_the_report_is_the_estimators_on_those_activations(run: Path, session: Session) -> None:
    report = analyse(run, 3, samples=5, kernel="linear")
    probes = [probe_of(task, 5) for task in session.run.tasks]
    models = []
    for stage in range(3):
        session.restore(stage)
        models.append(represent(session, probes, "layer", "last", 4))
    assert report.models == ["Task 0", "Task 1", "Task 2"] and set(report.prompts.values()) == {5}
    for layer, row in enumerate(report.layers):
        np.testing.assert_allclose(row.matrix, pairwise([m[layer] for m in models]), atol=1e-6)
        assert row.low <= row.mean <= row.high and row.mean < 1 and abs(row.null) < 0.3


def test_legacy_compares_each_model_on_its_own_task(run: Path, session: Session) -> None:
    report = analyse(run, 2, legacy=True)
    models = []
    for stage in range(2):
        session.restore(stage)
        probe = probe_of(session.run.tasks[stage], 50, first=True)
        models.append(represent(session, [probe], "mlp", "all", 4))
    assert (report.activation, report.pooling, report.kernel) == ("mlp", "all", "rbf")
    for layer, row in enumerate(report.layers):
        np.testing.assert_allclose(row.matrix, legacy_matrix([m[layer] for m in models]), atol=1e-4)
        assert row.null is None and row.low is None


def test_one_layer_on_known_data() -> None:
    rng = np.random.default_rng(0)
    x, noise = rng.standard_normal((60, 30)), rng.standard_normal((3, 60, 30))
    same = one_layer(0, [x, x @ np.linalg.qr(noise[0, :30])[0]], "linear")
    assert same.mean == pytest.approx(1) and abs(same.null) < 0.1 and same.low == pytest.approx(1, abs=1e-9)
    apart = one_layer(0, list(noise), "rbf")
    assert abs(apart.mean) < 0.1 and apart.low < apart.mean < apart.high
    near = [one_layer(0, [x[:n], x[:n] + noise[0, :n]], "linear") for n in (20, 60)]
    assert all(layer.low < layer.mean < layer.high for layer in near)
    assert near[1].high - near[1].low < near[0].high - near[0].low


def test_the_interval_has_the_width_of_repeated_samples() -> None:
    """Against the spread of CKA over 200 fresh samples of the same population."""
    rng = np.random.default_rng(1)

    def grams(n: int) -> list[np.ndarray]:
        x = rng.standard_normal((n, 6))
        return [gram(x), gram(x + rng.standard_normal((n, 6)))]

    values = [debiased(grams(80))[0, 1] for _ in range(200)]
    widths = [high - low for low, high in (interval(grams(80), seed) for seed in range(8))]
    assert np.mean(widths) == pytest.approx(3.92 * np.std(values), rel=0.35)
    assert abs(null(grams(80))) < 0.1


def test_verb_writes_table_matrices_and_figures(run: Path, tmp_path: Path) -> None:
    called = call("analyze", "cka", run, "--stage", 3, "--samples", 5, "--task", "task0", "--task", "task2",
                  "--output", tmp_path)  # fmt: skip
    assert called.code == 0, called.err
    assert {p.name for p in tmp_path.iterdir()} == {"cka.md", "cka.csv", "cka.json", *FIGURE}
    table = (tmp_path / "cka.csv").read_text().splitlines()
    assert table[0] == "layer,mean,low,high,null,dimension" and [line.split(",")[0] for line in table[1:]] == ["0", "1"]
    data = json.loads((tmp_path / "cka.json").read_text())
    assert data["models"] == ["Task 0", "Task 2"] and [len(x["matrix"]) for x in data["layers"]] == [2, 2]
    assert "| Layer | mean CKA |" in called.out and "Task 0 (test): 5" in called.out
    report = analyse(run, 2, samples=5)
    assert len(figure(report, DARK).axes) == 2


def test_the_readmes_command_runs_on_a_run_of_defaults(run: Path) -> None:
    """`hide-llava analyze cka RUN --stage N` and nothing else; an explicit batch size gives the same numbers."""
    assert RunFolder(run).config.eval.batch_size is None
    called = call("analyze", "cka", run, "--stage", 3)
    assert called.code == 0, called.err
    written = json.loads((run / "results" / "cka" / "cka.json").read_text())
    for layer, other in zip(written["layers"], analyse(run, 3, batch_size=4).layers, strict=True):
        np.testing.assert_allclose(layer["matrix"], other.matrix, atol=1e-5)


def test_bad_usage(run: Path, tmp_path: Path) -> None:
    refused("analyze", "cka", run, "--stage", 4, says=("--stage 4", "stages 1 to 3"))
    refused("analyze", "cka", run, "--stage", 3, "--task", "task9", says=("--task task9", "Did you mean 'task"))
    refused("analyze", "cka", run, "--stage", 1, says=("at least two stages",))
    refused("analyze", "cka", tmp_path, "--stage", 1, says=("not a run folder",))
