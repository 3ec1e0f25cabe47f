"""Two gloo processes at the same global batch end where one ends: one preset of each method, in fp32 and in bf16.

All of them run in one pair of processes, because starting it takes longer than training a tiny model; so do those that are
`slow`: in bf16 the gate has the methods that gather something beside gradients, and plain LoRA. HIDE_ALL_ENGINES=1 also runs
ZeRO-2, each in a launch of its own; tests/training/test_engines.py runs one method under it in every gate.
"""

import importlib.util
import json
import os
from pathlib import Path

import pytest

from hide_llava.config import compose
from hide_llava.errors import UserError
from hide_llava.methods.base import Method
from hide_llava.methods.registry import method_class
from hide_llava.pipeline import run
from hide_llava.training.engines import check_engine
from tests.methods.test_contract import (
    TRAINED,
    VECTORS,
    assert_same,
    comparable,
    make_world,
    one_of_each,
    preset,
    small,
    tensors_of,
)
from tests.tiny import arguments
from tests.torchrun import COMMAND_LINE, forked, launch

# The reference's running-mean anchors are per process by definition.
METHODS = [m for m in TRAINED if m not in ("hide-official", "hide-mcitlib")]
FIRST = one_of_each(METHODS)
# Means, counts, bases, Fisher.
GATHERS = ("branchlora", "clmoe", "eblora", "ewc", "hide", "keeplora", "llavac", "many", "modalprompt", "octopus", "passmoe",
           "same", "smolora")  # fmt: skip
GATE = [*((m, "float32") for m in FIRST), *((m, "bfloat16") for m in FIRST if m in (*GATHERS, "lora"))]
REST = [(m, "bfloat16") for m in FIRST if (m, "bfloat16") not in GATE]
ZERO = METHODS if os.environ.get("HIDE_ALL_ENGINES") and importlib.util.find_spec("deepspeed") else []


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine records a task: in the last step of an epoch one record is left, and the second process has none."""
    return make_world(tmp_path_factory.mktemp("world"), 9)


def words(world: Path, method: str, output: Path, engine: str = "ddp", dtype: str = "float32") -> list[str]:
    # In bf16 the last bits of a product depend on the batch it is in: there every record is a micro-batch by itself.
    size = 2 if dtype == "float32" else 1
    layout = ("tasks=[task0,task1]", "train.epochs=1", f"train.per_device_batch_size={size}", f"train.engine={engine}")
    return arguments(world, preset(world, method), output, *small(method), *comparable(method), *layout, f"model.dtype={dtype}")


class InTwo:
    """The folders of runs with two processes: all of a lane when the first is asked for."""

    def __init__(self, world: Path, folder: Path):
        self.world, self.folder = world, folder
        self.errors: dict[str, str] = {}

    def __call__(self, method: str, dtype: str) -> Path:
        lane = "gate" if (method, dtype) in GATE else "rest"
        if lane not in self.errors:
            runs = [words(self.world, m, self.place(m, d), dtype=d) for m, d in (GATE if lane == "gate" else REST)]
            (self.folder / lane).write_text(json.dumps(runs))
            done = forked(COMMAND_LINE, "each", str(self.folder / lane), seconds=1500)
            self.errors[lane] = f"{done.returncode} {done.stderr[-3000:]}"
        place = self.place(method, dtype)
        stages = json.loads((place / "manifest.json").read_text())["stages"] if place.is_dir() else []
        assert stages and all(s["status"] == "complete" for s in stages), self.errors[lane]
        return place

    def place(self, method: str, dtype: str) -> Path:
        return self.folder / f"{Path(method).stem}-{dtype}"


@pytest.fixture(scope="module")
def in_two(world: Path, tmp_path_factory: pytest.TempPathFactory) -> InTwo:
    return InTwo(world, tmp_path_factory.mktemp("two"))


def assert_equal_runs(one: Path, two: Path, atol: float, products: bool = False) -> None:
    assert_same(tensors_of(one), tensors_of(two), atol=atol, products=products)
    for file in sorted(one.rglob("predictions.jsonl")):
        ids = [
            [json.loads(x)["token_ids"] for x in f.read_text().splitlines()]
            for f in (file, two / file.relative_to(one))
        ]
        assert ids[0] == ids[1]


@pytest.mark.timeout(1800)  # the first of them waits for the launch of all
@pytest.mark.xdist_group("two-processes")
@pytest.mark.parametrize(("method", "dtype"), [*GATE, *(pytest.param(*run, marks=pytest.mark.nightly) for run in REST)])
def test_two_processes_equal_one(method: str, dtype: str, world: Path, in_two: InTwo, tmp_path: Path) -> None:
    two = in_two(method, dtype)
    run(compose(words(world, method, tmp_path / "one", dtype=dtype)), report=False)
    vectors = Path(method).stem.startswith(VECTORS)
    assert_equal_runs(tmp_path / "one", two, 5e-5 if vectors else 1e-6, products=vectors)


@pytest.mark.xdist_group("two-processes")
def test_reference_anchors_answer_as_they_are_stored(world: Path, tmp_path: Path) -> None:
    """Each process gathers a running mean of its own, as published; the main one's is stored, and all answer by it."""
    mine = words(world, "hide-official", tmp_path / "two")
    done = forked(COMMAND_LINE, "run", *mine)
    assert done.returncode == 0, done.stderr[-3000:]
    (tmp_path / "two" / "eval").rename(tmp_path / "first")
    run(compose(mine), report=False)  # the stages are there: they are asked again, by one process
    files = sorted((tmp_path / "first").rglob("predictions.jsonl"))
    for file in files:
        again = tmp_path / "two" / "eval" / file.relative_to(tmp_path / "first")
        first, second = ([json.loads(line) for line in path.read_text().splitlines()] for path in (file, again))
        assert len(first) == len(second) == 6
        for one, two in zip(first, second):
            assert one["question_id"] == two["question_id"] and one["routing"] == pytest.approx(two["routing"], abs=1e-5)
    assert len(files) == 3


@pytest.mark.xdist_group("deepspeed")
@pytest.mark.parametrize("method", ZERO)
def test_zero2_equals_one_process_or_is_refused(method: str, world: Path, tmp_path: Path) -> None:
    mine = words(world, method, tmp_path / "two", "zero2")
    cls = method_class(compose(mine).method["name"])
    if cls.on_gradients is not Method.on_gradients:
        with pytest.raises(UserError, match=r"leaves no whole gradients.* use train.engine=ddp"):
            check_engine("zero2", compose(mine).model, cls)
        return
    run(compose(words(world, method, tmp_path / "one")), report=False)
    done = launch(COMMAND_LINE, "run", *mine)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_equal_runs(tmp_path / "one", tmp_path / "two", 1e-4)
