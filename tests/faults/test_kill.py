"""A run killed or stopped anywhere and started again ends bit for bit like one that was never disturbed.

In the gate every seam of a run is tried, and about ten deaths are drawn at random; `-m nightly` draws ten more, and a long test
HIDE_FAULT_TRIALS=N.
"""

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.call import assert_refusal
from tests.faults import processes
from tests.faults.conftest import assert_done_once, assert_equal_runs, words
from tests.faults.run_and_die import PLACES, Fault

# Several deaths to a run. A visit counts from the start of its own process: a small number is soon after a resume.
SCRIPTS: dict[str, list[tuple[str, int]]] = {
    "training": [("config not written", 1), ("step", 3), ("checkpoint half written", 2)],
    "checkpoints": [("checkpoint unmarked", 2), ("step", 1), ("trained", 1)],
    "stages": [("stage half written", 1), ("stage unnamed", 2), ("stage unlisted", 1)],
    "answers": [("batch", 2), ("batch", 3), ("answers unmerged", 2), ("unscored", 1)],
    "report": [("tables", 1), ("report half written", 2), ("page", 1)],
}
ANY = "any moment"  # a fault that the clock brings; its visit is in milliseconds
DEATHS_PER_RUN = 2  # at least, on average
TRIALS = int(os.environ.get("HIDE_FAULT_TRIALS", "0"))
GATE, SLOW = 4, 8
SEEDS = [*range(GATE), *(pytest.param(seed, marks=pytest.mark.nightly) for seed in range(GATE, SLOW))]
SEEDS += range(SLOW, SLOW + TRIALS // DEATHS_PER_RUN)


def draw(seed: int) -> list[Fault]:
    """Up to three faults at random places and visits: the first surely comes, a later one may lie behind the end."""
    generator = random.Random(seed)
    # visits in an undisturbed run, where they are not three
    visits = {"step": 12, "batch": 18, "file unnamed": 68, "answers half written": 12, "unscored": 6, ANY: 2500,
              "answers unmerged": 6, "config not written": 1, "tables": 1, "page": 1, "report half written": 9,
              "checkpoint half written": 6, "checkpoint unmarked": 6}  # fmt: skip
    faults = []
    for number in range(3):
        place = generator.choice([*PLACES, ANY] if number else list(PLACES))
        visit = generator.randint(1, max(1, visits.get(place, 3) // (number + 1)))
        faults.append(Fault(generator.choice(["kill", "kill", "term"]), place, visit))
    return faults


def suffer(folder: Path, world: Path, fault: Fault) -> int:
    """Run with one fault; the exit code is that of the fault, or 0 if it lies behind the end of the run."""
    if fault.place != ANY:
        called = processes.run(folder, words(world, folder / "run"), fault).wait()
    else:
        child = processes.run(folder, words(world, folder / "run"))
        time.sleep(fault.visit / 1000)
        child.process.kill() if fault.action == "kill" else child.process.terminate()
        called = child.wait()
    wanted = [-signal.SIGKILL] if fault.action == "kill" else [143]
    if fault.place == ANY and fault.action == "term":
        wanted.append(-signal.SIGTERM)  # it had not begun yet
    assert called.code in (0, *wanted), f"{fault}: {called.code} {called.err[-2000:]}"
    if called.code == 143:
        sentence = called.err.strip().splitlines()[-1]
        assert (
            sentence.startswith("stopped")
            and "run the same command again" in sentence
            and "Traceback" not in called.err
        )
    return called.code


def suffer_and_finish(faults: list[Fault], folder: Path, world: Path, undisturbed: Path) -> int:
    """One fault after the other, then to the end; the number of faults that really came."""
    codes = []
    for fault in faults:
        codes.append(suffer(folder, world, fault))
        if codes[-1] == 0:
            break
    called = processes.run(folder, words(world, folder / "run")).wait()
    assert called.code == 0, f"{faults}: {called.err[-2000:]}"
    assert_equal_runs(folder / "run", undisturbed)
    came = len(codes) - codes.count(0)
    assert_done_once(folder, codes.count(-signal.SIGKILL), came - codes.count(-signal.SIGKILL))
    return came


@pytest.mark.parametrize("first", ["kill", "term"] if TRIALS else ["kill"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_disturbed_at_every_seam(script: str, first: str, world: Path, undisturbed: Path, tmp_path: Path) -> None:
    """Killed and stopped in turn; the nightly suite also begins with a stop."""
    actions = ("kill", "term") if first == "kill" else ("term", "kill")
    faults = [Fault(actions[i % 2], place, visit) for i, (place, visit) in enumerate(SCRIPTS[script])]
    assert suffer_and_finish(faults, tmp_path, world, undisturbed) == len(faults)


@pytest.mark.parametrize("seed", SEEDS)
def test_disturbed_at_random(seed: int, world: Path, undisturbed: Path, tmp_path: Path) -> None:
    assert suffer_and_finish(draw(seed), tmp_path, world, undisturbed) >= 1
    shutil.rmtree(tmp_path)


def test_a_stop_between_checkpoints_loses_no_step(world: Path, undisturbed: Path, tmp_path: Path) -> None:
    """SIGTERM, as a scheduler sends it: the step is finished and saved."""
    called = processes.run(tmp_path, words(world, tmp_path / "run"), Fault("term", "step", 3)).wait()
    assert called.code == 143 and "step 3 of 4 of 01-task0" in called.err.strip().splitlines()[-1]
    assert (tmp_path / "run" / "state" / "01-task0" / "checkpoint-3" / "complete").is_file()
    assert processes.run(tmp_path, words(world, tmp_path / "run")).wait().code == 0
    assert_equal_runs(tmp_path / "run", undisturbed)
    assert_done_once(tmp_path, deaths=0, stops=0)


def test_a_line_cut_by_the_kill_is_asked_again(undisturbed: Path, tmp_path: Path, finish: Callable) -> None:
    """What a power loss leaves of a file that is appended to."""
    run = Path(shutil.copytree(undisturbed, tmp_path / "run"))
    cell = run / "eval" / "02-task1" / "task1"
    lines = (cell / "predictions.jsonl").read_bytes().split(b"\n")
    for file in {*cell.iterdir()} - {cell / "settings.json"}:  # it is written before the first answer
        file.unlink()
    (cell / "part-0.jsonl").write_bytes(b"\n".join(lines[:3]) + b"\n" + lines[3][:25])
    finish()


def test_two_processes_on_one_run(world: Path, undisturbed: Path, tmp_path: Path) -> None:
    """The second is refused while the first works, and the first does not notice."""
    first = processes.run(tmp_path, words(world, tmp_path / "run"), Fault("hang", "step", 3))
    first.wait_until_it_hangs()
    before = {p for p in (tmp_path / "run").rglob("*")}
    second = processes.run(tmp_path, words(world, tmp_path / "run")).wait()
    assert_refusal(second.code, second.err, tmp_path / "run", "another process", "wait for it or stop it")
    assert {p for p in (tmp_path / "run").rglob("*")} == before
    first.go_on()
    called = first.wait()
    assert called.code == 0, called.err[-2000:]
    assert_equal_runs(tmp_path / "run", undisturbed)
    assert_done_once(tmp_path, deaths=0, stops=0)
