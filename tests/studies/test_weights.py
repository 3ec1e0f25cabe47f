"""`analyze weights`: the measures are those of the dense matrices, experts and one adapter that is trained on are told apart."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from hide_llava.config import compose
from hide_llava.results.drawing import DARK
from hide_llava.results.run_reader import read_run
from hide_llava.studies.weights.across_layers import analyse
from hide_llava.studies.weights.measures import cross_share, mean_cosine, products, spaces, sum_ratio
from hide_llava.studies.weights.report import change, findings
from tests.cli.call import call, refused
from tests.results.synthetic import manifest

RANK, WIDTH, OUT = 2, 12, 9
ENDS = ("-light.png", "-dark.png", ".pdf", ".svg")
LINEARS = [f"model.language_model.layers.{layer}.self_attn.{x}_proj" for layer in (0, 1) for x in "qv"]


def factors(seed: int, rank: int = RANK) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((rank, WIDTH)), rng.standard_normal((OUT, rank))


def write_adapter(folder: Path, seed: int, alpha: float = 6.0) -> dict[str, np.ndarray]:
    """A plain peft folder; the dense update of each linear."""
    folder.mkdir(parents=True)
    LoraConfig(r=RANK, lora_alpha=alpha, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM").save_pretrained(folder)
    state, dense = {}, {}
    for k, name in enumerate(LINEARS):
        a, b = (torch.tensor(x, dtype=torch.float32) for x in factors(10 * seed + k))
        state |= {f"base_model.model.{name}.lora_A.weight": a, f"base_model.model.{name}.lora_B.weight": b}
        dense[name] = alpha / RANK * (b @ a).double().numpy()
    save_file(state, folder / "adapter_model.safetensors")
    return dense


def write_run(folder: Path, adapters: list[list[str]], base: bool = True) -> list[dict[str, np.ndarray]]:
    """A run whose stages stored these adapters, and the base beside it; the dense updates in order."""
    stages = [{"name": f"0{t}-x", "title": f"Task {t}", "train_tasks": [f"task{t}"], "eval_tasks": []}
              for t in range(1, len(adapters) + 1)]  # fmt: skip
    folder.mkdir(parents=True)
    told = {**manifest("made", "lora", stages), "tasks": [{"id": f"task{t}"} for t in range(1, len(adapters) + 1)]}
    (folder / "manifest.json").write_text(json.dumps(told))
    config = compose(["benchmark=mini-ucit", "method=lora-mini", f"model.path={folder}/base", "model=mini"])
    (folder / "config.yaml").write_text(yaml.safe_dump(config.model_dump()))
    dense = []
    for t, names in enumerate(adapters):
        home = folder / "stages" / stages[t]["name"]
        for k, name in enumerate(names):
            dense.append(write_adapter(home / "adapter" if len(names) == 1 else home / "adapter" / name, 5 * t + k))
        (home / "method.json").write_text(json.dumps({"adapters": names}))
    if base:
        rng = torch.Generator().manual_seed(3)
        weights = {f"{name.removeprefix('model.')}.weight": torch.randn(OUT, WIDTH, generator=rng) for name in LINEARS}
        # as the files of published models have them: other names, and a vision tower with linears of the same name
        weights |= {f"vision_tower.encoder.layers.{k}.self_attn.q_proj.weight": torch.ones(OUT, WIDTH) for k in (0, 1)}
        (folder / "base").mkdir()
        save_file(weights, folder / "base" / "model.safetensors")
    return dense


def test_the_measures_are_those_of_the_dense_matrices() -> None:
    first, second = factors(1), factors(2)
    one, two = (b @ a for a, b in (first, second))
    wanted = [[(x * y).sum() for y in (one, two)] for x in (one, two)]
    np.testing.assert_allclose(products([first, second]), wanted)
    u, v = spaces(first)
    np.testing.assert_allclose(u @ u.T @ one @ v @ v.T, one, atol=1e-10)
    left, right = np.linalg.svd(one)[0][:, :RANK], np.linalg.svd(two)[0][:, :RANK]
    wanted = np.linalg.svd(left.T @ right, compute_uv=False).mean()
    assert mean_cosine(u, spaces(second)[0]) == pytest.approx(wanted)
    assert mean_cosine(u, u) == pytest.approx(1) and mean_cosine(u, u[:, :0]) is None
    fused = (first[1] + second[1]) @ (first[0] + second[0])
    cross = ((fused - one - two) ** 2).sum()
    assert cross_share([first, second]) == pytest.approx(cross / (cross + ((one + two) ** 2).sum()))
    assert cross_share([first, factors(2, rank=3)]) is None and cross_share([first]) is None
    assert sum_ratio(products([first, second])) == pytest.approx(
        np.linalg.norm(one + two) / (np.linalg.norm(one) + np.linalg.norm(two)))  # fmt: skip
    assert sum_ratio(products([first, first])) == pytest.approx(1)


def test_an_update_of_zero_has_no_space() -> None:
    a, b = factors(1)
    u, v = spaces((a, 0 * b))
    assert u.shape == (OUT, 0) and v.shape == (WIDTH, 0)
    assert sum_ratio(products([(a, 0 * b), (a, 0 * b)])) is None


def test_unrelated_experts_have_the_shares_that_the_report_compares_with() -> None:
    """1 − 1/T of a fusion is cross terms, and the sum is 1/√T as long as its parts."""
    rng = np.random.default_rng(0)
    experts = [(rng.standard_normal((4, 400)), rng.standard_normal((300, 4))) for _ in range(4)]
    assert cross_share(experts) == pytest.approx(0.75, abs=0.03)
    assert sum_ratio(products(experts)) == pytest.approx(0.5, abs=0.02)
    u, v = (spaces(one)[0] for one in experts[:2])
    assert mean_cosine(u, v) == pytest.approx(np.sqrt(4 / 300), rel=0.3)


def test_experts_of_a_run(tmp_path: Path) -> None:
    dense = write_run(tmp_path / "run", [["expert-01"], ["expert-02"], ["expert-03"]])
    report = analyse(read_run(tmp_path / "run"))
    assert report.updates == ["Task 1", "Task 2", "Task 3"] and report.layers == [0, 1] and report.notes == []
    weights = {name: torch.randn(OUT, WIDTH, generator=rng) for rng in [torch.Generator().manual_seed(3)] for name in LINEARS}
    for one in report.linears:
        own = [update[one.module] for update in dense]
        np.testing.assert_allclose(one.norms, [np.linalg.norm(x) for x in own], rtol=1e-6)
        assert one.base == pytest.approx(float(weights[one.module].norm()), rel=1e-6)
        assert one.ratio == pytest.approx(np.linalg.norm(sum(own)) / sum(map(np.linalg.norm, own)), rel=1e-6)
        assert one.cosines[0][1] == pytest.approx((own[0] * own[1]).sum() / one.norms[0] / one.norms[1], rel=1e-5)
        assert 0 < one.cross < 1
    wanted = np.sqrt(sum(np.linalg.norm(dense[1][n]) ** 2 for n in LINEARS) / sum(float(weights[n].norm()) ** 2 for n in LINEARS))
    assert report.relative(1) == pytest.approx(wanted, rel=1e-6)


def test_one_adapter_that_is_trained_on_changes_by_the_difference(tmp_path: Path) -> None:
    dense = write_run(tmp_path / "run", [["lora"], ["lora"]])
    report = analyse(read_run(tmp_path / "run"))
    for one in report.linears:
        first, second = (update[one.module] for update in dense)
        np.testing.assert_allclose(one.norms, [np.linalg.norm(first), np.linalg.norm(second - first)], rtol=1e-6)
        assert one.cross is None and one.columns[0][1] is one.rows[0][1] is None and one.by_chance == (None, None)
        assert one.cosines[0][1] == pytest.approx(float((first * (second - first)).sum() / one.norms[0] / one.norms[1]), abs=1e-6)
        assert one.ratio == pytest.approx(np.linalg.norm(second) / sum(one.norms), rel=1e-6)  # of the changes, which add up
    said = findings(report)
    assert any("nothing to fuse" in line for line in said.lines) and "columns" not in said.figures
    assert list(said.tables[-1][1]) == ["Layer", "sum"]
    assert not any("Spaces of two" in line for line in said.lines) and any("as matrices" in line for line in said.lines)


def test_an_adapter_that_is_trained_on_beside_experts(tmp_path: Path) -> None:
    """Angles are of the experts alone."""
    write_run(tmp_path / "run", [["expert-01", "first"], ["expert-02", "first"]])
    report = analyse(read_run(tmp_path / "run"))
    assert report.adapters == ["expert-01", "first", "expert-02", "first"]
    for one in report.linears:
        assert [v is None for v in one.columns[2]] == [False, False, False, True] and one.cross is None
    assert "columns" in findings(report).figures


def test_several_adapters_of_a_stage(tmp_path: Path) -> None:
    write_run(tmp_path / "run", [["branch-1", "branch-2"], ["branch-1", "branch-2"]])
    report = analyse(read_run(tmp_path / "run"))
    assert report.updates == [f"Task {t}: branch-{k}" for t in (1, 2) for k in (1, 2)]
    assert all(len(one.norms) == 4 and one.cross is None for one in report.linears)


def test_the_command_without_the_base_model(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_run(run, [["expert-01"], ["expert-02"]], base=False)
    out = tmp_path / "out"
    called = call("analyze", "weights", run, "--output", out)
    assert called.code == 0, called.err
    assert "No relative change: the base model" in called.out and "cross terms" in called.out
    text = (out / "weights.md").read_text()
    assert "norm, since the base's weights are not known" in text and "change-light.png" not in text
    table = (out / "change.csv").read_text().splitlines()
    assert len(table) == 1 + 2 * len(LINEARS) and table[1].endswith(",,")
    assert json.loads((out / "weights.json").read_text())["linears"][0]["base"] is None
    names = {p.name for p in out.iterdir()}
    assert names >= {f"{stem}{end}" for stem in ("fusion", "columns", "rows") for end in ENDS}
    assert "section.json" not in names  # another folder is no part of the run's page


def test_a_line_for_each_update(tmp_path: Path) -> None:
    write_run(tmp_path / "run", [["expert-01"], ["expert-02"]])
    assert len(change(analyse(read_run(tmp_path / "run")), DARK).axes[0].lines) == 2


def test_what_cannot_be_measured_is_told(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_run(run, [["expert-01"]])
    (run / "stages" / "01-x" / "adapter" / "adapter_model.safetensors").write_bytes(b"cut")
    refused("analyze", "weights", run, says=("adapter_model.safetensors", "cannot be read"))
    (run / "stages" / "01-x" / "method.json").write_text(json.dumps({"adapters": []}))
    refused("analyze", "weights", run, says=("no finished stage holds a LoRA adapter",))


def test_a_base_in_the_older_format(tmp_path: Path) -> None:
    """Weights of pytorch_model*.bin, as LLaVA-1.5 was published; files of safetensors beside them count alone."""
    write_run(tmp_path / "run", [["expert-01"]])
    run, base = read_run(tmp_path / "run"), tmp_path / "run" / "base"
    wanted = [one.base for one in analyse(run).linears]
    torch.save(load_file(base / "model.safetensors"), base / "pytorch_model-00001-of-00001.bin")
    assert [one.base for one in analyse(run).linears] == wanted
    (base / "model.safetensors").unlink()
    assert [one.base for one in analyse(run).linears] == wanted and None not in wanted
