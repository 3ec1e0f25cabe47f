"""Several processes: two simulated machines, a rank that dies (by torchrun), evaluation cut over 1, 2 and 3 processes."""

import json
import shutil
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from hide_llava.pipeline import run
from hide_llava.training.run_folder import RunFolder
from tests.cli.call import call
from tests.tiny import arguments, configuration
from tests.torchrun import COMMAND_LINE, forked, free_port, launch, start

MORE = (
    "method.dropout=0",
    "train.epochs=1",
    "train.per_device_batch_size=2",
    "eval.max_new_tokens=4",
    "eval.batch_size=2",
)


@pytest.fixture(scope="module")
def alone(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone") / "run"
    run(configuration(world, "hide", folder, *MORE), report=False)
    return folder


def answers(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("predictions.jsonl")}


def tokens(folder: Path) -> dict[str, list]:
    """Without the routing weights: after training in another layout their sixth digit may differ."""
    rows = {name: [json.loads(x) for x in data.splitlines()] for name, data in answers(folder).items()}
    return {name: [(row["question_id"], row["token_ids"]) for row in found] for name, found in rows.items()}


def assert_same_adapters(ours: Path, expected: Path) -> None:
    files = sorted(p.relative_to(expected) for p in expected.glob("stages/*/adapter/*.safetensors"))
    assert len(files) == 3
    for file in files:
        a, b = load_file(ours / file), load_file(expected / file)
        assert a.keys() == b.keys() and all((a[k] - b[k]).abs().max() <= 1e-5 for k in a), file


def test_two_machines_train_and_evaluate(world: Path, alone: Path, tmp_path: Path) -> None:
    """Two torchrun agents that meet at a c10d rendezvous, as RDZV=host:port does in scripts/launch.sh."""
    flags = ("--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-id", "test",
             "--rdzv-endpoint", f"127.0.0.1:{free_port()}")  # fmt: skip
    words = ["run", *arguments(world, "hide", tmp_path / "run", *MORE)]
    nodes = [start(COMMAND_LINE, *words, flags=flags) for _ in range(2)]
    ends = [node.communicate(timeout=280) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], ends[0][1][-2000:] + ends[1][1][-2000:]
    assert_same_adapters(tmp_path / "run", alone)
    assert tokens(tmp_path / "run") == tokens(alone)
    assert all(s["status"] == "complete" for s in RunFolder(tmp_path / "run").manifest["stages"])


def test_a_dead_rank_ends_the_others_and_the_run_goes_on(world: Path, alone: Path, tmp_path: Path) -> None:
    words = ["run", *arguments(world, "hide", tmp_path / "run", *MORE, "train.save_steps=1")]
    # stage 2, first step: rank 1 kills itself, rank 0 waits for it in the all-reduce
    killed = launch("tests.training.kill_rank_one", "3", *words)
    died = [line for line in killed.stdout.splitlines() if line.startswith("DYING ")]
    assert killed.returncode != 0 and died and time.time() - float(died[0].split()[1]) < 60, killed.stderr[-2000:]
    assert "Signal 9 (SIGKILL)" in killed.stderr
    done = launch(COMMAND_LINE, *words)
    assert done.returncode == 0, done.stderr[-2000:]
    assert_same_adapters(tmp_path / "run", alone)
    assert tokens(tmp_path / "run") == tokens(alone)


@pytest.mark.parametrize("processes", [2, pytest.param(3, marks=pytest.mark.nightly)])
def test_sharded_evaluation_writes_the_same_files(processes: int, world: Path, alone: Path, tmp_path: Path) -> None:
    """Killed once in the middle, then run again."""
    folder = tmp_path / "run"
    run(configuration(world, "hide", folder, *MORE), evaluate=False, report=False)
    words = ["eval", *arguments(world, "hide", folder, *MORE)]
    killed = forked("tests.faults.run_and_die", "batch", "2", *words, count=processes)
    assert killed.returncode == -9, killed.stderr[-2000:]
    done = forked(COMMAND_LINE, *words, count=processes)
    assert done.returncode == 0, done.stderr[-2000:]
    assert answers(folder) == answers(alone)
    for file in alone.rglob("score.json"):
        ours = json.loads((folder / file.relative_to(alone)).read_text())
        assert ours["score"] == json.loads(file.read_text())["score"]
    assert not list(folder.rglob("part-*.jsonl"))


def test_a_grid_of_variants_by_two_processes(alone: Path, tmp_path: Path) -> None:
    here, there = (Path(shutil.copytree(alone, tmp_path / name / "run")) for name in ("here", "there"))
    grid = ("method.temperature=0.05,0.5", "method.fusion=factor_sum", "--stages", "last")
    called = call("eval", here, *grid)
    assert called.code == 0, called.err
    done = forked(COMMAND_LINE, "eval", str(there), *grid)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(answers(here)) == 6 + 2 * 3 and answers(there) == answers(here)
    assert len(list(there.rglob("variants.csv"))) == 1
