"""Every preset through the real command line on the embedded benchmark, from `run` to the report.

The first preset of a method in fp32, its others in bf16: so all are run, and half of them in each precision.
"""

import json
import math
from pathlib import Path

import pytest

from hide_llava.cli import main
from hide_llava.config import names
from hide_llava.results.run_reader import read_run
from tests.methods.test_contract import one_of_each

PRESETS = names("method")
QUICK = {  # records that are looked at again after a task, branches, epochs of a router of its own: more only take time
    **dict.fromkeys(["mrlora", "mrlora-mini"], ("method.router_epochs=1",)),
    **dict.fromkeys(["clmoe", "passmoe", "same"], ("method.samples=4",)),
    "branchlora": ("method.samples=4", "method.branches=2"),
}


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mini")


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_runs_on_mini_ucit(preset: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    dtype = "float32" if preset in one_of_each(PRESETS) else "bfloat16"
    limit = 16 if dtype == "float32" else 4  # a CPU without bf16 takes four times as long
    words = ["benchmark=mini-ucit", f"method={preset}", "tasks=[imagenet-r,iconqa]", f"limit={limit}", f"data_root={data}"]
    words += [f"model.dtype={dtype}", "train.max_steps=1", *QUICK.get(preset, ()), f"output={tmp_path / 'run'}"]
    main(["run", *words])
    printed = capsys.readouterr().out
    assert "Last" in printed and f"report: {tmp_path / 'run'}" in printed
    run = read_run(tmp_path / "run")
    assert not run.problems and run.evaluated_stages == len(run.manifest["stages"]) > 0
    assert all(cell is not None for cell in run.matrix.cells[-1])
    for stage in run.manifest["stages"]:
        log = tmp_path / "run" / "stages" / stage["name"] / "trainer_log.jsonl"
        losses = [json.loads(line)["loss"] for line in log.read_text().splitlines() if '"loss"' in line] if log.exists() else []
        assert bool(losses) == bool(stage["train_tasks"]) and all(map(math.isfinite, losses))
    assert (tmp_path / "run" / "results" / "report.html").stat().st_size > 10_000
