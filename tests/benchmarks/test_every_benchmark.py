"""Every YAML of configs/benchmark, from its own file layout to a report: two steps a task of a tiny model, real metrics."""

import json
from pathlib import Path

import pytest

from hide_llava.benchmarks.mini.generate import SUITES
from hide_llava.config import RunConfig, compose, names
from tests.benchmarks.synthetic import write_benchmark
from tests.cli.call import call
from tests.tiny import OVERRIDES

pytest.importorskip("pycocoevalcap")
OWN = [name for name in names("benchmark") if name not in SUITES]  # those write their own data


def words(name: str, model: Path, root: Path, *more: str) -> list[str]:
    return [f"benchmark={name}", f"model={model}", "method=lora", f"data_root={root}", f"output={root}/run", *OVERRIDES,
            "train.max_steps=1", "caption.tokenizer=python", "eval.max_new_tokens=2", *more]  # fmt: skip


def expected(config: RunConfig) -> set[str]:
    """All cells: learned tasks after each stage, the others after the last one, general ones after every stage."""
    learned = [t.id for t in config.benchmark.tasks if t.train is not None]
    unseen = [t.id for t in config.benchmark.tasks if t.train is None]
    stages = [f"{i + 1:02d}-{task}" for i, task in enumerate(learned)]
    cells = {f"{stage}/{task}" for i, stage in enumerate(stages) for task in learned[: i + 1]}
    cells |= {f"{stages[-1]}/{task}" for task in unseen}
    return cells | {f"{stage}/{task.id}" for stage in stages for task in config.benchmark.general}


@pytest.mark.parametrize("name", OWN)
def test_from_files_to_a_report(name: str, model: Path, tmp_path: Path) -> None:
    arguments = words(name, model, tmp_path)
    config = compose(arguments)
    write_benchmark(config, tmp_path)
    called = call("run", *arguments)
    assert called.code == 0, called.err
    run = tmp_path / "run"
    scores = {
        str(p.parent.relative_to(run / "eval")): json.loads(p.read_text()) for p in run.glob("eval/*/*/score.json")
    }
    assert set(scores) == expected(config)
    assert all(s["n_scored"] == s["n_expected"] == 4 for s in scores.values())
    tasks = {task.id: task for task in [*config.benchmark.tasks, *config.benchmark.general]}
    for cell, score in scores.items():
        task = tasks[cell.split("/")[1]]
        assert score["metric"] == task.metric and score["prompt_suffix"] == task.prompt_suffix
        assert score["image_transform"] == (task.image_transform or config.benchmark.image_transform)
        assert any("the question file holds 4" in label for label in score["labels"]) == (task.n_test is not None)
    stages = json.loads((run / "manifest.json").read_text())["stages"]
    assert [s["status"] for s in stages] == ["complete"] * len(stages) and all(s["records"] == 8 for s in stages)
    assert (run / "results" / "report.html").is_file()
