"""Files that changed between two calls: cut by a power loss, edited by a person, or dated by a clock that was set back."""

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hide_llava.storage import sha256, write_bytes
from tests.cli.call import assert_refusal, content
from tests.faults import processes
from tests.faults.conftest import assert_done_once, assert_equal_runs, words
from tests.faults.run_and_die import Fault

DAY = 86400.0


def cut(file: Path, keep: float = 0.6) -> None:
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * keep)])


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a power loss could leave the new name with half of its content."""
    seen, replace = [], os.replace
    monkeypatch.setattr(os, "fsync", lambda number: seen.append(Path(f"/proc/self/fd/{number}").resolve().read_bytes()))
    monkeypatch.setattr(os, "replace", lambda *names: seen.append("named") or replace(*names))
    write_bytes(tmp_path / "file", b"content")
    assert seen == [b"content", "named"] and (tmp_path / "file").read_bytes() == b"content"


# ------------------------------------------------------------------------------------------------------ a cut file


@pytest.fixture(scope="module")
def in_the_second_task(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that died after the fourth step of its second task, with two checkpoints there."""
    folder = tmp_path_factory.mktemp("half")
    called = processes.run(
        folder, words(world, folder / "run", "train.save_steps=1"), Fault("kill", "trained", 2)
    ).wait()
    assert called.code == -9, called.err
    assert {p.name for p in (folder / "run" / "state" / "02-task1").glob("*-*")} == {"checkpoint-3", "checkpoint-4"}
    return folder / "run"


@pytest.fixture
def run(in_the_second_task: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(in_the_second_task, tmp_path / "run"))


@pytest.mark.parametrize(
    ("files", "keep"),
    [
        (("checkpoint-4/trainable.safetensors",), 0.6),
        (("checkpoint-4/optimizer.pt", "checkpoint-3/method.safetensors"), 0),
    ],
    ids=["the newest", "all"],
)
def test_cut_checkpoint(files: tuple, keep: float, run: Path, world: Path, undisturbed: Path, tmp_path: Path) -> None:
    """The one before it is used, or the task begins again, and a line says which file was cut."""
    home = run / "state" / "02-task1"
    for file in files:
        cut(home / file, keep)
    called = processes.run(tmp_path, words(world, run)).wait()
    assert called.code == 0, called.err[-2000:]
    for file in files:
        assert f"warning: {home / file} is not as long as it was written" in called.out
    assert_equal_runs(run, undisturbed)
    steps = (tmp_path / "journal").read_text().splitlines().count("step")
    assert steps == (1 if len(files) == 1 else 4) + 4  # from checkpoint 3, or from the start; and the third task


def test_cut_stage(run: Path, world: Path, tmp_path: Path, finish: Callable) -> None:
    """A finished stage that later ones build on: refused with the way out, and that way leads to the same end."""
    stage, file = run / "stages" / "01-task0", "adapter/adapter_model.safetensors"
    cut(stage / file)
    before = content(run)
    called = processes.run(tmp_path, words(world, run)).wait()
    assert_refusal(called.code, called.err, stage / file, f"delete {stage} and run again")
    assert content(run) == before
    shutil.rmtree(stage)
    finish()


# ------------------------------------------------------------------------------------------------------ other data


def edit(file: Path) -> bytes:
    """Change one record, neither the size of the file nor its date."""
    old, date = file.read_bytes(), file.stat().st_mtime_ns
    new = old.replace(b"star", b"moon", 1) if b"star" in old else old.replace(b"three", b"seven", 1)
    assert new != old and len(new) == len(old)
    file.write_bytes(new)
    os.utime(file, ns=(date, date))
    return old


@pytest.mark.parametrize("task", ["task0", "task1"], ids=["finished stage", "half-done stage"])
def test_changed_training_file(task: str, run: Path, world: Path, tmp_path: Path, undisturbed: Path) -> None:
    """Refused, whether its stage is finished or not; with the old file back, the run goes on."""
    shutil.copytree(world / "data", tmp_path / "other" / "data")
    shutil.copy(world / "bench.yaml", tmp_path / "other")
    given = [w.replace(f"data_root={world}", f"data_root={tmp_path}/other") for w in words(world, run)]
    file = tmp_path / "other" / "data" / task / "train.json"
    old, before = edit(file), content(run)
    called = processes.run(tmp_path, given).wait()
    stage = {"task0": "01-task0", "task1": "02-task1"}[task]
    assert_refusal(called.code, called.err, file, f"than {stage} was trained on", "put that one back", "output=")
    assert content(run) == before
    file.write_bytes(old)
    called = processes.run(tmp_path, given).wait()
    assert called.code == 0, called.err[-2000:]
    assert_equal_runs(run, undisturbed)


def test_training_file_of_a_task_that_has_not_begun(run: Path, world: Path, tmp_path: Path) -> None:
    """Nothing was learned from it: the corrected file is taken, and the manifest says which."""
    shutil.copytree(world / "data", tmp_path / "other" / "data")
    file = tmp_path / "other" / "data" / "task2" / "train.json"
    edit(file)
    given = [w.replace(f"data_root={world}", f"data_root={tmp_path}/other") for w in words(world, run)]
    called = processes.run(tmp_path, ["train", *given[1:]]).wait()
    assert called.code == 0, called.err[-2000:]
    stages = json.loads((run / "manifest.json").read_text())["stages"]
    assert stages[2]["data"] == {"task2": sha256(file)}


def test_changed_question_file(world: Path, tmp_path: Path, finish: Callable) -> None:
    """In the middle of its cell, and when its cell is scored."""
    run = tmp_path / "run"
    shutil.copytree(world / "data", tmp_path / "other" / "data")
    given = [w.replace(f"data_root={world}", f"data_root={tmp_path}/other") for w in words(world, run)]
    assert processes.run(tmp_path, given, Fault("kill", "batch", 5)).wait().code == -9  # the second of 02-task1/task0
    file = tmp_path / "other" / "data" / "task0" / "test.json"
    before = content(run)
    edit(file)
    called = processes.run(tmp_path, given).wait()
    assert_refusal(called.code, called.err, run / "eval" / "01-task0" / "task0", "question file", "--again")
    assert content(run) == before
    finish()


# ------------------------------------------------------------------------------------------------------ the clock


def test_clock_set_back(world: Path, undisturbed: Path, tmp_path: Path) -> None:
    """Everything that is there comes from the future: what is new is neither taken for old nor thrown away as old."""
    run, command = tmp_path / "run", words(world, tmp_path / "run", "train.save_steps=1")
    faults = [Fault("kill", "step", 3), Fault("kill", "step", 2), Fault("kill", "batch", 2)]
    for back, fault in enumerate([*faults, None]):
        body = (command, fault, tmp_path / "journal", -back * DAY)
        called = processes.begin(tmp_path, processes.run_with_clock, *body).wait()
        assert called.code == (0 if fault is None else -9), called.err[-2000:]
        for file in (run, *run.rglob("*")):
            os.utime(file, (time.time() + DAY,) * 2)
    assert_equal_runs(run, undisturbed)
    assert_done_once(tmp_path, deaths=len(faults), stops=0)
