"""A disk that is full, read-only or forbidden: one sentence with the place and the way out, and nothing is lost."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.call import assert_refusal, content
from tests.faults import processes
from tests.faults.conftest import assert_equal_runs, words
from tests.faults.run_and_die import Fault


def on_small_disk(trained: bool, sizes: list[int], flags: int, world: Path, folder: Path) -> list[tuple[int, str, str]]:
    """Code, output and errors of each call; skips where a container gives the tests no file system of their own."""
    disk, answers = folder / "disk", folder / "answers.json"
    disk.mkdir()
    command = words(world, disk / "run", "train.save_steps=100")
    values = (disk, command, trained, sizes, flags, answers, folder / "run")
    called = processes.begin(folder, processes.run_on_small_disk, *values).wait(500)
    if called.code == processes.FORBIDDEN:
        pytest.skip(f"no file system of its own here: {called.err}")
    assert called.code == 0, called.err
    return json.loads(answers.read_text())


@pytest.mark.parametrize(
    ("trained", "sizes", "places"),
    [
        (False, [4, 20, 100, 184, 408, 536], ("cache/", "run/manifest", "run/state/", "run/stages/")),
        (True, [4, 24, 100], ("run/eval/", "run/results/")),
    ],
    ids=["training", "evaluation"],
)
def test_full_disk(
    trained: bool, sizes: list[int], places: tuple, world: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """Full again and again at another place of the run; with more space the same command goes on."""
    *failed, (code, _, err) = on_small_disk(trained, sizes, 0, world, tmp_path)
    named = []
    for call in failed:
        sentence = assert_refusal(call[0], call[2], tmp_path / "disk", "No space left on device", "make space", "again")
        named.append(sentence.split(f"{tmp_path}/disk/")[1].split(":")[0])
    assert code == 0, err
    assert_equal_runs(tmp_path / "run", undisturbed)
    assert all(any(name.startswith(place) for name in named) for place in places), named


def test_read_only_disk(world: Path, undisturbed: Path, tmp_path: Path) -> None:
    (code, _, err), (after, _, problem) = on_small_disk(True, [65536], processes.READ_ONLY, world, tmp_path)
    assert_refusal(code, err, tmp_path / "disk", "Read-only file system", "make it writable", "again")
    assert after == 0, problem
    assert_equal_runs(tmp_path / "run", undisturbed)


def test_limit_on_file_sizes(world: Path, tmp_path: Path, finish: Callable) -> None:
    """The same on every machine: no file may grow beyond so many bytes."""
    command = words(world, tmp_path / "run", "train.save_steps=1")
    called = processes.begin(tmp_path, processes.run_with_file_limit, command, 30000).wait()
    assert_refusal(called.code, called.err, tmp_path, "File too large", "ulimit -f", "again")
    finish()


@pytest.mark.parametrize("place", [".", "state/02-task1"])
def test_permission_denied(place: str, world: Path, tmp_path: Path, finish: Callable) -> None:
    """A folder of a half-done run that this user may not write to."""
    run = tmp_path / "run"
    assert processes.run(tmp_path, words(world, run), Fault("kill", "step", 7)).wait().code == -9
    closed, before = run / place, content(run)
    before.pop("state/02-task1/trainer_log.jsonl", None)  # goes on in place
    mode = closed.stat().st_mode
    closed.chmod(0o555)
    try:
        called = processes.begin(tmp_path, processes.run_without_rights, words(world, run)).wait()
    finally:
        closed.chmod(mode)
    if called.code == processes.FORBIDDEN:
        pytest.skip(f"root cannot be bound by permissions here: {called.err}")
    assert_refusal(called.code, called.err, closed, "Permission denied", "give this user the right to it", "again")
    assert content(run).items() >= before.items()
    finish()


def test_data_that_may_not_be_read(world: Path, tmp_path: Path) -> None:
    file = world / "data" / "task1" / "test.json"
    mode = file.stat().st_mode
    file.chmod(0)
    try:
        called = processes.begin(tmp_path, processes.run_without_rights, words(world, tmp_path / "run")).wait()
    finally:
        file.chmod(mode)
    if called.code == processes.FORBIDDEN:
        pytest.skip(f"root cannot be bound by permissions here: {called.err}")
    assert_refusal(called.code, called.err, file, "Permission denied", "give this user the right to it", "again")
    assert not (tmp_path / "run").exists() and os.access(file, os.R_OK)
