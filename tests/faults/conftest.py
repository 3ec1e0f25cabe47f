"""A world, a run in it that nothing disturbed, and what every other run must equal."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.cli.call import manifest
from tests.faults import processes
from tests.tiny import arguments, write_world

SAVE_STEPS = 2
STEPS, BATCHES = 3 * 4, 6 * 3  # of an undisturbed run: two epochs of eight records, six cells of six questions


def words(world: Path, output: Path, *more: str) -> list[str]:
    """Four steps a task, a checkpoint after every second; questions in three batches."""
    own = (f"train.save_steps={SAVE_STEPS}", "eval.batch_size=2", "benchmark.max_new_tokens=4")
    return ["run", *arguments(world, "hide", output, *own, *more)]


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    processes.start_server()
    return write_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def undisturbed(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    called = processes.run(folder, words(world, folder / "run")).wait()
    assert called.code == 0, called.err
    assert_done_once(folder, 0, 0)
    return folder / "run"


@pytest.fixture
def finish(world: Path, undisturbed: Path, tmp_path: Path) -> Callable[[], None]:
    """Give the command of `tmp_path/run` once more: it completes, and equals the undisturbed run."""

    def check() -> None:
        called = processes.run(tmp_path, words(world, tmp_path / "run")).wait()
        assert called.code == 0, called.err[-2000:]
        assert_equal_runs(tmp_path / "run", undisturbed)

    return check


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
    stages = manifest(run)["stages"]
    assert stages == manifest(expected)["stages"] and all(s["status"] == "complete" for s in stages)


def assert_done_once(folder: Path, deaths: int, stops: int) -> None:
    """By the journal of all processes: every stage and score was made once, and a death costs no more than promised.

    `deaths` by SIGKILL lose a checkpoint's distance of steps or a batch of answers; `stops` by SIGTERM only a batch.
    """
    lines = (folder / "journal").read_text().splitlines()
    named = Counter(line.removeprefix("named ") for line in lines)
    made = {name: n for name, n in named.items() if name.endswith("score.json") or Path(name).parent.name == "stages"}
    assert len(made) == 6 + 3 and set(made.values()) == {1}, made
    assert STEPS <= named["step"] <= STEPS + deaths * SAVE_STEPS, named["step"]
    assert BATCHES <= named["batch"] <= BATCHES + deaths + stops, named["batch"]
