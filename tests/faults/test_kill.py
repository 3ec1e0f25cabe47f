"""A run killed anywhere and started again ends bit for bit like one that was never disturbed.

In CI every seam of a run is tried once or twice, several deaths to one run. HIDE_FAULT_TRIALS=N adds N runs whose
deaths are drawn at random.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.cli.call import assert_refusal, call
from tests.faults.run_and_die import PLACES
from tests.tiny import arguments, write_world

CHECKOUT = Path(__file__).parent.parent.parent
Deaths = list[tuple[str, int]]

# Six runs. A death counts from the start of its own process, so that a small number is soon after a resume.
SCRIPTS: dict[str, Deaths] = {
    "training": [("config not written", 1), ("step", 3), ("checkpoint half written", 2)],
    "checkpoints": [("checkpoint unmarked", 2), ("step", 1), ("trained", 1)],
    "stages": [("stage half written", 1), ("stage unnamed", 2), ("stage unlisted", 1)],
    "answers": [("batch", 2), ("batch", 3), ("answers unmerged", 2), ("unscored", 1)],
}
SEEDS = range(2 + int(os.environ.get("HIDE_FAULT_TRIALS", "0")))


def draw(seed: int) -> Deaths:
    """Three deaths at random seams, at a random visit."""
    generator = random.Random(seed)
    most = {"step": 12, "batch": 12, "file unnamed": 30, "answers half written": 9,
            "unscored": 6, "answers unmerged": 6}  # fmt: skip
    places = [p for p in PLACES if p != "config not written"]
    chosen = generator.choices(places, k=3)
    return [(place, generator.randint(1, most.get(place, 3))) for place in chosen]


def environment(cache: Path) -> dict[str, str]:
    paths = {"PYTHONPATH": str(CHECKOUT), "HIDE_CACHE": str(cache)}
    return {**os.environ, **paths, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def start(place: str, count: int, words: list[str], cache: Path, **options) -> subprocess.Popen:
    command = [sys.executable, "-m", "tests.faults.run_and_die", place, str(count), *words]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=CHECKOUT, env=environment(cache), **pipes, **options)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world"))


def words(world: Path, output: Path) -> list[str]:
    """Two epochs of eight records in batches of four: four steps a task, a checkpoint after every second."""
    more = ("train.save_steps=2", "eval.batch_size=2", "benchmark.max_new_tokens=4")
    return ["run", *arguments(world, "hide", output, *more)]


@pytest.fixture(scope="module")
def undisturbed(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    called = call(*words(world, folder))
    assert called.code == 0, called.err
    return folder


def assert_equal_runs(run: Path, expected: Path) -> None:
    """Tensors, answers, scores and matrix; nothing is left over and the manifest says it is finished."""
    files = {p.relative_to(expected) for p in expected.rglob("*") if p.is_file()}
    assert {p.relative_to(run) for p in run.rglob("*") if p.is_file() and p.suffix != ".tmp"} == files
    tensors = [f for f in files if f.suffix == ".safetensors"]
    answers = [f for f in files if f.name == "predictions.jsonl"]
    assert len(tensors) == 9 and len(answers) == 6
    for file in tensors:
        one, two = load_file(run / file), load_file(expected / file)
        assert one.keys() == two.keys() and all(one[k].equal(two[k]) for k in one), file
    for file in [*answers, *(f for f in files if f.name == "score.json"), Path("results/matrix.json")]:
        assert (run / file).read_bytes() == (expected / file).read_bytes(), file
    states = [json.loads((folder / "manifest.json").read_text())["stages"] for folder in (run, expected)]
    assert states[0] == states[1] and all(s["status"] == "complete" for s in states[0])


def kill_and_finish(deaths: Deaths, world: Path, output: Path, cache: Path) -> int:
    """Run with one death after the other, then to the end; the number of deaths that really came."""
    died = 0
    for place, count in deaths:
        process = start(place, count, words(world, output), cache)
        _, err = process.communicate(timeout=240)
        assert process.returncode in (0, -signal.SIGKILL), f"{place} {count}: {process.returncode} {err[-2000:]}"
        died += process.returncode != 0
        if process.returncode == 0:  # this death lies behind the end of the run
            break
    called = call(*words(world, output))
    assert called.code == 0, called.err
    return died


@pytest.mark.parametrize("script", SCRIPTS)
def test_killed_at_every_seam(script: str, world: Path, undisturbed: Path, tmp_path: Path) -> None:
    died = kill_and_finish(SCRIPTS[script], world, tmp_path / "run", tmp_path / "cache")
    assert died == len(SCRIPTS[script])
    assert_equal_runs(tmp_path / "run", undisturbed)


@pytest.mark.parametrize("seed", SEEDS)
def test_killed_at_random(seed: int, world: Path, undisturbed: Path, tmp_path: Path) -> None:
    assert kill_and_finish(draw(seed), world, tmp_path / "run", tmp_path / "cache") >= 1
    assert_equal_runs(tmp_path / "run", undisturbed)


def test_a_line_cut_by_the_kill_is_asked_again(world: Path, undisturbed: Path, tmp_path: Path) -> None:
    """What a power loss leaves of a file that is appended to."""
    run = Path(shutil.copytree(undisturbed, tmp_path / "run"))
    cell = run / "eval" / "02-task1" / "task1"
    lines = (cell / "predictions.jsonl").read_bytes().split(b"\n")
    for file in cell.iterdir():
        file.unlink()
    (cell / "part-0.jsonl").write_bytes(b"\n".join(lines[:3]) + b"\n" + lines[3][:25])
    assert call(*words(world, run)).code == 0
    assert_equal_runs(run, undisturbed)


@pytest.mark.parametrize(
    ("place", "count"), [("step", 3), ("step", 4), ("batch", 4)], ids=["step", "last step", "evaluation"]
)
def test_terminated(place: str, count: int, world: Path, undisturbed: Path, tmp_path: Path) -> None:
    """SIGTERM, as a scheduler sends it: 143, a sentence that says how to go on, and nothing is lost."""
    process = start(f"hang {place}", count, words(world, tmp_path / "run"), tmp_path / "cache")
    while "HERE" not in (line := process.stdout.readline()):
        assert line, process.stderr.read()
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate("\n", timeout=120)
    assert process.returncode == 143, err[-2000:]
    sentence = err.strip().splitlines()[-1]
    assert sentence.startswith("stopped") and "run the same command again" in sentence and "Traceback" not in err
    if count == 3:
        assert "step 3 of 4 of 01-task0" in sentence
        assert (tmp_path / "run" / "state" / "01-task0" / "checkpoint-3" / "complete").is_file()
    assert call(*words(world, tmp_path / "run")).code == 0
    assert_equal_runs(tmp_path / "run", undisturbed)


def test_two_processes_on_one_run(world: Path, undisturbed: Path, tmp_path: Path) -> None:
    """The second is refused while the first works, and the first does not notice."""
    process = start("hang step", 3, words(world, tmp_path / "run"), tmp_path / "cache")
    while "HERE" not in (line := process.stdout.readline()):
        assert line, process.stderr.read()
    before = {p for p in (tmp_path / "run").rglob("*")}
    second = call(*words(world, tmp_path / "run"))
    assert_refusal(second.code, second.err, tmp_path / "run", "another process", "wait for it or stop it")
    assert {p for p in (tmp_path / "run").rglob("*")} == before
    _, err = process.communicate("\n", timeout=240)
    assert process.returncode == 0, err[-2000:]
    assert_equal_runs(tmp_path / "run", undisturbed)
