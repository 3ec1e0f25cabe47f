"""What a training step leaves out changes no number: logits that nobody reads, and casts that autocast undoes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor

import hide_llava.methods.all  # noqa: F401
import tests.methods.extra  # noqa: F401
from hide_llava.data.collator import Collator
from hide_llava.data.sampler import StandIns
from hide_llava.methods.base import REGISTRY, Method, reads_logits
from hide_llava.training.sequence import build_trainer, finish_stage, training_data
from tests.tiny import configuration, opened, write_world

METHODS = ["lora", "hide", "dualprompt", "test_prompts"]
OF_TESTS = ("test_prompts", "test_fisher")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_world(tmp_path_factory.mktemp("world"))
    for name in OF_TESTS:
        (folder / f"{name}.yaml").write_text(f"method: {{name: {name}}}")
    return folder


class Step:
    """A method's trainer at its first task, and one batch of it: three records, one of them text only."""

    def __init__(self, world: Path, folder: Path, method: str, dtype: str, *more: str):
        dropout = ("method.dropout=0",) if method in ("lora", "hide") and "dropout" not in str(more) else ()
        preset = f"{world}/{method}.yaml" if method in OF_TESTS else method
        config = configuration(world, preset, folder, f"model.dtype={dtype}", *dropout, *more)
        self.session = opened(config)
        stage = self.session.stages[0]
        self.data = training_data(self.session, stage)
        self.trainer, _ = build_trainer(self.session, stage, self.data)
        self.routed = self.session.routed.train()
        self.parameters = [p for group in self.session.method.params() for p in group["params"]]
        with torch.no_grad():
            torch.manual_seed(0)
            for parameter in self.parameters:  # B = 0 has no gradient in A
                parameter.add_(0.05 * torch.randn_like(parameter))
        self.dtype = getattr(torch, dtype)

    def batch(self, *indices: int) -> dict[str, Any]:
        return Collator()([StandIns(self.data)[i] for i in indices])

    def gradients(self, batch: dict[str, Any], **more: Any) -> tuple[Any, list[Tensor]]:
        """The output and every gradient, in the autocast of training."""
        self.routed.zero_grad()
        with torch.autocast("cpu", self.dtype, enabled=self.dtype != torch.float32):
            output = self.routed(**batch, num_items_in_batch=7, **more)
        output.loss.backward()
        return output, [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in self.parameters]


def difference(some: list[Tensor], others: list[Tensor]) -> float:
    """The largest difference of two lists of gradients, relative to the largest number of the second."""
    largest = max(float(g.abs().max()) for g in others)
    return max(float((a - b).abs().max()) for a, b in zip(some, others, strict=True)) / largest


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", METHODS)
def test_loss_on_labelled_positions_is_the_loss(method: str, dtype: str, world: Path, tmp_path: Path) -> None:
    step = Step(world, tmp_path, method, dtype)
    batch = step.batch(0, 3, 7)
    before = copy.deepcopy({k: v for k, v in batch.items() if isinstance(v, Tensor)})
    pixels = [row["pixel_values"].clone() for row in batch["pixels"] if row is not None]
    full, expected = step.gradients(batch)
    heads: list[torch.Size] = []
    hook = step.session.core.llava.lm_head.register_forward_pre_hook(lambda _, args: heads.append(args[0].shape))
    narrow, found = step.gradients(batch, loss_only=True)
    hook.remove()
    assert heads[0][1] == len(batch["targets"]) < batch["labels"].shape[1] / 2
    assert full.logits is not None and narrow.logits is None
    assert float((narrow.loss - full.loss).detach().abs()) <= 1e-6 * float(full.loss.detach())
    assert difference(found, expected) <= 1e-6 and any(g.any() for g in expected)
    assert all(torch.equal(batch[k], v) for k, v in before.items())
    assert all(torch.equal(row["pixel_values"], v) for row, v in zip(filter(None, batch["pixels"]), pixels, strict=True))


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_without_a_label(method: str, world: Path, tmp_path: Path) -> None:
    """Of a process that has no record left: its loss is 0, and what had a gradient has one, of zeros."""
    step = Step(world, tmp_path, method, "float32")
    step.gradients(step.batch(0))
    with_gradient = [p.grad is not None for p in step.parameters]
    batch = step.batch(~0)
    assert len(batch["targets"]) == 0
    output, found = step.gradients(batch, loss_only=True)
    assert float(output.loss.detach()) == 0 and all(not g.any() for g in found)
    assert [p.grad is not None for p in step.parameters] == with_gradient


def test_targets_are_what_any_row_predicts(world: Path, tmp_path: Path) -> None:
    batch = Step(world, tmp_path, "lora", "float32").batch(0, 3, 7)
    assert batch["targets"].tolist() == sorted({int(p) for p in (batch["labels"][:, 1:] != -100).nonzero()[:, 1] + 1})
    questions = [{"input_ids": torch.tensor([1, 2]), "types": {}, "pixels": None, "sizes": [], "text": "",
                  "question_id": 0}]  # fmt: skip
    assert "targets" not in Collator()(questions)


def test_which_methods_get_logits() -> None:
    """A class that defines `loss` and does not say that it reads no logits gets them, whatever its parents said."""

    class Silent(REGISTRY["olora"]):
        def loss(self, output: Any, batch: dict, features: Any) -> dict[str, Tensor]:
            return {"entropy": output.logits.mean()}

    class Said(Silent):
        reads_logits = False

    class Child(Said):
        def before_task(self, task: Any, context: Any) -> None: ...

    assert reads_logits(Silent) and not reads_logits(Said) and not reads_logits(Child)
    ours = {name for name, cls in REGISTRY.items() if cls.__module__.startswith("hide_llava.") and reads_logits(cls)}
    assert ours == {"lwf"} and not reads_logits(Method) and reads_logits(REGISTRY["test_fisher"])


@pytest.mark.parametrize("method", ["lora", "lwf", "test_fisher"])
def test_the_trainer_asks_for_what_is_read(method: str, world: Path, tmp_path: Path) -> None:
    step = Step(world, tmp_path, method, "float32")
    shapes: list[tuple | None] = []
    step.routed.register_forward_hook(lambda _, args, output: shapes.append(getattr(output.logits, "shape", None)))
    step.trainer.args.max_steps = 1
    step.trainer.train()
    assert shapes and all((shape is None) == (method == "lora") for shape in shapes)


@pytest.mark.parametrize("method", ["lora", "hide"])
def test_gradients_without_the_cast_are_the_same_bits(method: str, world: Path, tmp_path: Path) -> None:
    """bf16 under autocast, no dropout: peft's cast of inputs to fp32 is undone by autocast, so leaving it out changes nothing."""
    step = Step(world, tmp_path, method, "bfloat16")
    batch = step.batch(0, 3, 7)
    assert {layer.cast_input_dtype_enabled for layer in lora_layers(step)} == {False}
    without, found = step.gradients(batch)
    step.session.cast_inputs(True)
    with_cast, expected = step.gradients(batch)
    assert torch.equal(without.loss, with_cast.loss) and torch.equal(without.logits, with_cast.logits)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)) and any(g.any() for g in found)


def test_the_cast_is_back_when_a_stage_is_finished(world: Path, tmp_path: Path) -> None:
    """An fp32 model keeps it, and so does everything that runs without autocast: statistics and answers."""
    assert {layer.cast_input_dtype_enabled for layer in lora_layers(Step(world, tmp_path / "a", "lora", "float32"))} == {True}
    step = Step(world, tmp_path / "b", "lora", "bfloat16")
    finish_stage(step.session, step.session.stages[0], [], step.data)
    assert {layer.cast_input_dtype_enabled for layer in lora_layers(step)} == {True}
    with step.session, torch.no_grad():
        assert step.routed(**step.batch(0)).logits.isfinite().all()


def lora_layers(step: Step) -> list[LoraLayer]:
    return [layer for _, _, layer in step.session.core.layers(step.session.method.adapters()[0])]
