"""The last global batch of an epoch holds what is left, and every layout learns the same from it; resumed inside any
epoch, several processes go on with the batches that come next.

`python -m tests.training.test_uneven FILE` runs what FILE lists: [[words, steps to stop after, times], …], under torchrun.
"""

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

from hide_llava.config import compose
from hide_llava.pipeline import run
from hide_llava.quiet import quiet
from hide_llava.training.sequence import Interrupted
from tests.methods.test_contract import assert_same, comparable, tensors_of
from tests.stops import stopped_after
from tests.tiny import SGD, arguments, configuration, write_world
from tests.torchrun import launch

RECORDS = 7  # in batches of four: a full one, and one of three
STEPS = 3 * 2
ONE_TASK = ("tasks=[task0]", "train.epochs=3", "method.dropout=0")
DEEPSPEED = importlib.util.find_spec("deepspeed") is not None and shutil.which("g++") is not None
# Each stopped after every step, or once inside the second epoch.
RESUMED = {"lora": "every", "hide": "every", "ewc": "once", **({"zero2": "once"} if DEEPSPEED else {})}


def train(words: list[str], stops: list[int], times: int | None = None) -> None:
    """To the end, with a new session after every stop; or only so many `times`."""
    with stopped_after(*stops):
        for _ in range(times or len(stops) + 1):
            try:
                return run(compose(words), evaluate=False, report=False) and None
            except Interrupted:
                continue


if __name__ == "__main__":
    quiet()
    for job in json.loads(Path(sys.argv[1]).read_text()):
        train(*job)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world"), RECORDS)


def words(world: Path, name: str, output: Path, *more: str) -> list[str]:
    method, engine = ("hide", "zero2") if name == "zero2" else (name, "ddp")
    layout = (f"train.engine={engine}", "train.per_device_batch_size=2")
    return arguments(world, method, output, *ONE_TASK, *layout, *more)


@pytest.fixture(scope="module")
def in_two(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of two processes: undisturbed, stopped as RESUMED says, with plain gradient descent, and begun only."""
    folder = tmp_path_factory.mktemp("two")
    jobs = []
    for name, how in RESUMED.items():
        for label, stops in (("whole", []), ("stopped", [*range(1, STEPS)] if how == "every" else [3])):
            jobs.append([words(world, name, folder / f"{name}-{label}"), stops])
        jobs.append([words(world, name, folder / f"{name}-sgd", *SGD), []])
        if name != "zero2":
            jobs.append([words(world, name, folder / f"{name}-begun", *SGD), [3], 1])
    (folder / "jobs.json").write_text(json.dumps(jobs))
    done = launch("tests.training.test_uneven", str(folder / "jobs.json"), seconds=1000)
    (folder / "error.txt").write_text(f"{done.returncode} {done.stderr[-3000:]}")
    return folder


@pytest.mark.xdist_group("deepspeed")
@pytest.mark.parametrize("name", RESUMED)
def test_resumed_in_a_later_epoch_by_two_processes(name: str, in_two: Path) -> None:
    """Killed after any step, the same batches follow: bit for bit."""
    whole = tensors_of(in_two / f"{name}-whole")
    assert whole, (in_two / "error.txt").read_text()
    assert_same(tensors_of(in_two / f"{name}-stopped"), whole)


@pytest.mark.xdist_group("deepspeed")
@pytest.mark.parametrize("name", RESUMED)
def test_two_processes_equal_one_through_uneven_epochs(name: str, world: Path, in_two: Path, tmp_path: Path) -> None:
    train(words(world, "hide" if name == "zero2" else name, tmp_path / "run", *SGD), [])
    assert_same(tensors_of(in_two / f"{name}-sgd"), tensors_of(tmp_path / "run"), atol=1e-6)


@pytest.mark.xdist_group("deepspeed")
@pytest.mark.parametrize("name", ["lora", "hide"])
def test_begun_by_two_processes_and_ended_by_one(name: str, world: Path, in_two: Path) -> None:
    """Inside the second epoch: the global batches that come next are the same in any layout."""
    folder = in_two / f"{name}-begun"
    assert (folder / "state" / "01-task0" / "checkpoint-3").is_dir(), (in_two / "error.txt").read_text()
    train(words(world, name, folder, *SGD), [])
    assert_same(tensors_of(folder), tensors_of(in_two / f"{name}-sgd"), atol=1e-6)


@pytest.mark.parametrize("method", ["l2p", "branchlora", "llavac", "hide"])
def test_layouts_of_an_uneven_batch(method: str, world: Path, tmp_path: Path) -> None:
    """A term of a method is a mean over a micro-batch: each weighs as many rows as it has, in training and in the log."""
    plain = ("train.epochs=1", *comparable(method))
    found = []
    for size in (4, 2, 1):
        folder = tmp_path / str(size)
        layout = ("tasks=[task0,task1]", f"train.per_device_batch_size={size}")
        run(configuration(world, method, folder, *plain, *layout), evaluate=False, report=False)
        logs = [json.loads(x) for f in sorted(folder.glob("stages/*/trainer_log.jsonl")) for x in f.open()]
        found.append((tensors_of(folder), [{k: v for k, v in row.items() if k.startswith("loss")} for row in logs]))
    for tensors, logs in found[1:]:
        assert_same(tensors, found[0][0], atol=1e-6)
        for one, two in zip(logs, found[0][1], strict=True):
            assert one == pytest.approx(two, rel=1e-5, abs=1e-4)
    assert torch.isfinite(torch.tensor([v for row in found[0][1] for v in row.values()])).all()
