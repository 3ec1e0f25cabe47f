"""Several processes, engines, kills and quantised weights on models of other families than LLaVA-1.5."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest

from hide_llava.config import compose
from hide_llava.pipeline import run
from tests import zoo
from tests.methods.test_contract import assert_same, comparable, preset, small, tensors_of
from tests.tiny import arguments, configuration, write_world, write_world_of
from tests.torchrun import COMMAND_LINE, forked, launch
from tests.training.test_engines import assert_near

KINDS = ("qwen3_vl", "internvl")
PAIRS = [(kind, method) for kind, methods in zip(KINDS, (("hide", "lwf", "modalprompt", "mrlora"), ("hide", "individual")))
         for method in methods]  # fmt: skip
PLAIN = ("tasks=[task0,task1]", "train.epochs=1", "train.per_device_batch_size=2")


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Nine records a task: in the last step one record is left, and of two processes one has none."""
    made = {kind: write_world_of(kind, tmp_path_factory.mktemp(kind), 9) for kind in KINDS}
    return {**made, "llava": write_world(tmp_path_factory.mktemp("llava"), 9)}


def words(world: Path, method: str, output: Path, *more: str) -> list[str]:
    return arguments(world, preset(world, method), output, *small(method), *comparable(method), *PLAIN, *more)


@pytest.mark.timeout(900)
def test_two_processes_end_where_one_ends(worlds: dict[str, Path], tmp_path: Path) -> None:
    """One launch for all: starting it takes longer than training a tiny model."""
    places = {pair: tmp_path / "-".join(pair) for pair in PAIRS}
    (tmp_path / "each").write_text(json.dumps([words(worlds[k], m, places[k, m] / "two") for k, m in PAIRS]))
    done = forked(COMMAND_LINE, "each", str(tmp_path / "each"), seconds=800)
    for kind, method in PAIRS:
        place = places[kind, method]
        run(compose(words(worlds[kind], method, place / "one")), evaluate=False, report=False)
        stages = json.loads((place / "two" / "manifest.json").read_text())["stages"]
        assert all(stage["status"] == "complete" for stage in stages), done.stderr[-3000:]
        assert_same(tensors_of(place / "two"), tensors_of(place / "one"), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_killed_and_resumed_equals_undisturbed(kind: str, worlds: dict[str, Path], tmp_path: Path) -> None:
    """Killed in a step and while answers are written; what is gone on with ends bit for bit the same."""
    command = words(worlds[kind], "hide", tmp_path / "run", "train.save_steps=1")
    killed = forked("tests.faults.run_and_die", "step", "3", "run", *command, count=1)
    assert killed.returncode == -9, killed.stderr[-3000:]
    run(compose(command), report=False)
    run(compose(words(worlds[kind], "hide", tmp_path / "whole")), report=False)
    assert_same(tensors_of(tmp_path / "run"), tensors_of(tmp_path / "whole"))
    for file in (tmp_path / "whole").rglob("predictions.jsonl"):
        assert file.read_bytes() == (tmp_path / "run" / file.relative_to(tmp_path / "whole")).read_bytes()


@pytest.mark.xdist_group("deepspeed")
@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed")
@pytest.mark.skipif(shutil.which("g++") is None, reason="DeepSpeed builds its CPU communication with g++")
@pytest.mark.parametrize(
    ("kind", "engine"),
    [("qwen3_vl", "zero3"), *(pytest.param(*pair, marks=pytest.mark.nightly) for pair in
                              (("qwen3_vl", "zero2"), ("internvl", "zero2"), ("internvl", "zero3"), ("llava", "zero3")))],
)  # fmt: skip
def test_an_engine_ends_where_one_process_ends(
    kind: str, engine: str, worlds: dict[str, Path], tmp_path: Path
) -> None:
    """Also where one process has no picture in a batch and the other has."""
    layout = ("method.dropout=0", *PLAIN)
    run(configuration(worlds[kind], "hide", tmp_path / "one", *layout), evaluate=False, report=False)
    done = launch(
        COMMAND_LINE, "train", *arguments(worlds[kind], "hide", tmp_path / "two", *layout, f"train.engine={engine}")
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert_near(tmp_path / "two", tmp_path / "one")


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_a_quantised_base_trains_and_answers(bits: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the decoder's linears are quantised, and their experts stay beside them when they are folded."""
    bnb = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed", exc_type=ImportError)
    # its CPU kernel wants rows in blocks of 32 and columns in blocks of 64
    monkeypatch.setattr(zoo, "TEXT", {**zoo.TEXT, "hidden_size": 64, "intermediate_size": 128})
    world = write_world_of("internvl", tmp_path / "world")
    config = configuration(world, "hide", tmp_path / "run", *PLAIN, f"model.quantization={bits}")
    run(config, report=False)
    assert len(list((tmp_path / "run").rglob("score.json"))) == 3
    assert bnb
