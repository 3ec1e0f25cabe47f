"""Three tasks trained by our Trainer in the reference's arithmetic give its losses, adapters, projector and anchors."""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file

from hide_llava.config import compose
from hide_llava.interop.hide_reference import read_checkpoint
from hide_llava.training.sequence import build_trainer, finish_stage, training_data
from hide_llava.training.session import Session
from tests.golden_reference import GOLDEN
from tests.tiny import opened

TASK = "{{id: t{0}, title: T{0}, train: task{0}.json, test: test.json, metric: exact_upper}}"


class Recorded(torch.utils.data.Sampler):
    """The recorded order of samples, epoch by epoch."""

    def __init__(self, epochs: list[list[int]]):
        self.epochs, self.epoch = epochs, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.epochs[0])

    def __iter__(self) -> Iterator[int]:
        return iter(self.epochs[self.epoch])


def golden_config(tmp_path: Path):
    tasks = ", ".join(TASK.format(i) for i in range(3))
    (tmp_path / "bench.yaml").write_text(
        f"benchmark: {{name: golden, instructions: data, images: data, tasks: [{tasks}]}}"
    )
    (tmp_path / "model.yaml").write_text(
        f"model: {{name: golden, path: {GOLDEN}/base, clip: {GOLDEN}/clip, projector: mm_projector.bin, attention: eager}}"
    )
    return compose([
        f"benchmark={tmp_path}/bench.yaml", f"model={tmp_path}/model.yaml", "method=hide-official", "method.rank=4",
        "method.alpha=8", "method.dropout=0", "method.slots=3", f"data_root={GOLDEN}", f"output={tmp_path}/run",
        "train.global_batch_size=2", "train.epochs=2", "train.learning_rate=4e-3", "train.projector_lr=2e-3",
        "train.gradient_checkpointing=false", "train.num_workers=0",
    ])  # fmt: skip


def test_losses_adapters_projector_anchors(tmp_path: Path) -> None:
    config = golden_config(tmp_path)
    session = opened(config)
    start = load_file(GOLDEN / "train_e3" / "init_state.safetensors")
    for stage in session.stages:
        t = stage.index
        recorded = json.loads((GOLDEN / "train_e3" / f"task{t}.json").read_text())["steps"]
        dataset = training_data(session, stage)
        trainer, _ = build_trainer(session, stage, dataset)
        use_recorded_start(session, start, t)
        trainer.sampler = Recorded(order(dataset, recorded))
        trainer.train()
        log = [row for row in trainer.state.log_history if "loss" in row]
        for ours, theirs in zip(log, recorded, strict=True):
            assert abs(ours["loss"] - theirs["loss"]) < 1e-4, (t, ours["step"])
            assert abs(ours["grad_norm"] - theirs["grad_norm"]) < 1e-3 * theirs["grad_norm"], (t, ours["step"])
        finish_stage(session, stage, trainer.state.log_history, dataset)
        check_against(session, read_checkpoint(GOLDEN / "ckpt_e3" / f"Task{t + 1}_llava_lora_ours"), t)


def order(dataset, recorded: list[dict]) -> list[list[int]]:
    index = {json.loads(r["id"]): i for i, r in enumerate(dataset.records)}
    flat = [index[s] for step in recorded for s in step["sample_ids"]]
    return [flat[: len(dataset)], flat[len(dataset) :]]


def use_recorded_start(session: Session, start: dict, t: int) -> None:
    with torch.no_grad():
        for path, layer, module in session.core.layers(f"expert-{t + 1:02d}"):
            proj = path.split(f"layers.{layer}.")[1]
            key = f"base_model.model.model.layers.{layer}.{proj}.lora_A.default.loraA.{t}.weight"
            module.lora_A[f"expert-{t + 1:02d}"].weight.copy_(start[key])
    for kind in ("image", "text"):
        anchors = getattr(session.method, f"{kind}_anchors")
        anchors.sums[t] = start[f"base_model.model.{kind}_anchors.{t}"][0].clone()


def check_against(session: Session, golden, t: int) -> None:
    for slot in range(t + 1):
        for path, layer, module in session.core.layers(f"expert-{slot + 1:02d}"):
            for side in "AB":
                ours = getattr(module, f"lora_{side}")[f"expert-{slot + 1:02d}"].weight
                theirs = golden.experts[slot][layer, path.split(".")[-1], side]
                torch.testing.assert_close(ours.data, theirs.float(), atol=1e-4, rtol=0)
        for kind in ("image", "text"):
            mean = getattr(session.method, f"{kind}_anchors").mean(slot)
            torch.testing.assert_close(mean, golden.anchors[kind][slot], atol=1e-5, rtol=0)
    for key, value in golden.projector.items():
        torch.testing.assert_close(session.core.projector.state_dict()[key], value, atol=1e-4, rtol=0)
