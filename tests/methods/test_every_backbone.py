"""Every method on tiny models of other families: what the contract (test_contract.py) says of LLaVA-1.5 holds for them.

The gate has every method on a model like Qwen-VL or on one that cuts pictures into tiles, in turn; `-m nightly` has the other
one and all families.
HIDE_BACKBONE=FOLDER is a tiny model of a family that lives elsewhere (docs/ADD_A_BACKBONE.md).
"""

import json
import os
from pathlib import Path

import pytest
import torch

from hide_llava.backbones.auto import family_in
from hide_llava.config import RunConfig
from hide_llava.errors import UserError
from hide_llava.evaluation.cells import _Collate, answer_batch
from hide_llava.pipeline import run
from hide_llava.training.run import Run
from hide_llava.training.run_folder import RunFolder
from hide_llava.training.session import Session
from tests import zoo
from tests.methods.test_contract import TESTED, assert_same, one_of_each, preset, questions, setup, tensors_of
from tests.stops import stopped_after, until_done
from tests.tiny import write_world_of

IN_GATE = ("qwen3_vl", "internvl")
KINDS = [kind for kind in zoo.KINDS if kind != "llava"]  # which the whole contract is about
if os.environ.get("HIDE_BACKBONE"):
    KINDS = list(IN_GATE := (str(Path(os.environ["HIDE_BACKBONE"]).resolve()),))
METHODS = [m for m in one_of_each(TESTED) if not m.startswith("test_")]
RESUMED = (
    "lora",
    "hide",
    "modalprompt",
    "mrlora",
    "same",
)  # in the gate: an adapter, anchors, prompts, a router, a basis
LAYOUT = ("tasks=[task0,task1]", "train.epochs=1", "train.gradient_checkpointing=true", "train.per_device_batch_size=2")
FEW = ("method.samples=2",)  # records that are looked at again after a task, one by one: more only take time
QUICK = {"branchlora": (*FEW, "method.branches=4"), "clmoe": FEW, "passmoe": FEW, "same": FEW}


def pairs(methods: list[str] | tuple[str, ...], in_gate: tuple[str, ...] = (), in_turn: bool = False) -> list:
    """(kind, method), all of a kind in one process; outside IN_GATE, or of a method that is not in `in_gate`, as nightly.
    in_turn: of IN_GATE one kind a method."""

    def nightly(kind: str, place: int) -> bool:
        chosen = (IN_GATE[place % len(IN_GATE)],) if in_turn else IN_GATE
        return kind not in chosen or methods[place] not in (in_gate or methods)

    return [
        pytest.param(kind, method, marks=[pytest.mark.xdist_group(f"{kind}-{place % 2}"),
                     *([pytest.mark.nightly] if nightly(kind, place) else [])])
        for kind in KINDS for place, method in enumerate(methods)
    ]  # fmt: skip


class Worlds(dict):
    """The tiny world of each kind, and one undisturbed run of each method in it, made when first asked for."""

    def __init__(self, folder: Path):
        super().__init__()
        self.folder = folder

    def __missing__(self, kind: str) -> Path:
        self[kind] = write_world_of(kind, self.folder / Path(kind).name)
        return self[kind]

    def run(self, kind: str, method: str) -> Path:
        output = self[kind] / f"run-{method}"
        if not output.exists():
            run(of(self[kind], method, output), report=False)
        return output


def of(world: Path, method: str, output: Path, *more: str) -> RunConfig:
    return setup(world, method, output, *LAYOUT, *QUICK.get(method, ()), *more)


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Worlds:
    return Worlds(tmp_path_factory.mktemp("worlds"))


def fits(worlds: Worlds, kind: str, method: str) -> bool:
    """Whether the pair goes together; if not, it is refused in a sentence when the configuration is read."""
    try:
        Run(setup(worlds[kind], method, worlds[kind] / "never"))
    except UserError as error:
        assert "does not go with" in str(error) and str(error).endswith(".")
        assert family_in(Path(worlds[kind] / kind)).lacks
        return False
    return True


@pytest.mark.parametrize(("kind", "method"), pairs(METHODS, in_turn=True))
def test_a_run_answers_as_its_stages_do(kind: str, method: str, worlds: Worlds) -> None:
    """Two tasks, trained with checkpointing and accumulation, folded, answered: complete, idempotent; every stage restored
    in a new session gives the answers that the run wrote; a batch with and without pictures answers as its rows alone."""
    if not fits(worlds, kind, method):
        return
    folder = RunFolder(worlds.run(kind, method))
    assert all(stage["status"] == "complete" for stage in folder.manifest["stages"])
    files = [*folder.path.rglob("*.safetensors"), *folder.path.rglob("predictions.jsonl")]
    stamps = {file: file.stat().st_mtime_ns for file in files}
    run(of(worlds[kind], method, folder.path), report=False)
    assert stamps == {file: file.stat().st_mtime_ns for file in files}
    session = Session(Run.at(folder.path))
    for stage in reversed(session.stages):
        if session.method.trains:
            session.restore(stage.index)
        data = questions(session, worlds[kind], 0)
        items = [data[i] for i in range(6)]
        with session:
            together = answer_batch(session, _Collate()(items), 6, 0)
            last = stage is session.stages[-1]
            alone = [answer_batch(session, _Collate()([item]), 6, 0)[0] for item in items] if last else together
        assert [row["token_ids"] for row in together] == [row["token_ids"] for row in alone]
        for one, other in zip(together, alone):
            assert one["routing"] == pytest.approx(other["routing"], abs=1e-5)
        cell = folder.cell(f"{stage.index + 1:02d}-{stage.id}", "task0") / "predictions.jsonl"
        stored = [json.loads(line) for line in cell.read_text().splitlines()]
        assert {r["question_id"]: r["token_ids"] for r in together} == {
            r["question_id"]: r["token_ids"] for r in stored
        }


@pytest.mark.parametrize(("kind", "method"), pairs([m for m in METHODS if m != "zero_shot"], RESUMED))
def test_resumed_equals_uninterrupted(kind: str, method: str, worlds: Worlds, tmp_path: Path) -> None:
    """Stopped inside every task and gone on with in a new session, the stages come out bit for bit the same."""
    if not fits(worlds, kind, method):
        return
    undisturbed = tensors_of(worlds.run(kind, method))
    config = of(worlds[kind], method, tmp_path / "run")
    with stopped_after(1):
        stops = until_done(lambda: run(config, evaluate=False, report=False))
    assert stops == sum(1 for stage in RunFolder(tmp_path / "run").manifest["stages"] if stage["train_tasks"])
    assert_same(tensors_of(tmp_path / "run"), undisturbed)


@pytest.mark.parametrize(("kind", "method"), pairs(("lora", "hide", "modalprompt", "individual")))
def test_bf16_trains_and_answers(kind: str, method: str, worlds: Worlds, tmp_path: Path) -> None:
    """In bf16 the trained parameters stay fp32, finite, and every question is answered."""
    if not fits(worlds, kind, method):
        return
    run(of(worlds[kind], method, tmp_path / "run", "model.dtype=bfloat16"), report=False)
    found = {key: value for key, value in tensors_of(tmp_path / "run").items() if "adapter_model" in key}
    assert all(value.dtype == torch.float32 and value.isfinite().all() for value in found.values())
    assert found or method == "modalprompt"
    assert len(list((tmp_path / "run").rglob("score.json"))) == 3


@pytest.mark.parametrize(("kind", "method"), pairs(("hide", "modalprompt")))
def test_routing_by_the_models_own_tower(kind: str, method: str, worlds: Worlds, tmp_path: Path) -> None:
    if not fits(worlds, kind, method):
        return
    config = of(worlds[kind], method, tmp_path / "run", "router.encoder=own", "model.clip=null")
    run(config, report=False)
    assert len(list((tmp_path / "run").rglob("score.json"))) == 3


def test_presets_are_the_contracts(worlds: Worlds) -> None:
    assert len(METHODS) >= 22 and all(preset(Path("x"), m) == m for m in METHODS)
