"""`auto`: what is decided from free memory, that it is kept, that it changes no number, and what happens when it was too much."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

import hide_llava.methods.all  # noqa: F401
from hide_llava.backbones.counts import counted
from hide_llava.backbones.shapes import published
from hide_llava.config import from_yaml
from hide_llava.errors import UserError
from hide_llava.pipeline import run
from hide_llava.training import memory
from hide_llava.training.batching import BatchPlan
from hide_llava.training.memory import activations, host_bytes, layout
from hide_llava.training.run_folder import RunFolder
from hide_llava.training.trainer import MethodTrainer
from tests.tiny import configuration
from tests.training.test_step import Step

GIB = 2**30
AUTO = ("train.gradient_checkpointing=auto",)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the finished stages."""
    files = sorted(folder.glob("stages/*/**/*.safetensors"))
    return {f"{f.relative_to(folder)}:{k}": v for f in files for k, v in load_file(f).items()}


def session_of(**train: Any) -> Any:
    """What `layout` reads of a session."""
    return SimpleNamespace(
        run=SimpleNamespace(train=SimpleNamespace(**train)),
        core=SimpleNamespace(llava=SimpleNamespace(device=torch.device("cuda"))),
    )


@pytest.mark.parametrize(
    "per_device, checkpointing, free, entry, expected",
    [
        (None, True, 0, {}, (12, True)),  # nothing is auto: nobody looks
        (None, False, 0, {}, (12, False)),
        (None, "auto", 200, {}, (12, False)),  # 120 of activations fit into 0.7 · 200
        (None, "auto", 160, {}, (12, True)),
        (None, "auto", 0, {}, (12, True)),  # not known
        ("auto", True, 20, {}, (12, True)),  # 12 fit into 14
        ("auto", True, 10, {}, (6, True)),
        ("auto", False, 70, {}, (4, False)),  # 40 into 49; 60 do not
        ("auto", False, 0, {}, (1, False)),
        ("auto", "auto", 70, {}, (4, False)),
        ("auto", "auto", 10, {}, (6, True)),
        ("auto", "auto", 70, {"per_device": 3, "gradient_checkpointing": True}, (3, True)),  # as the stage was begun
        ("auto", "auto", 70, {"per_device": 5}, (4, False)),  # of another number of processes: 5 does not divide 12
        (None, "auto", 0, {"gradient_checkpointing": False}, (12, False)),
    ],
)
def test_what_is_chosen(
    per_device: Any, checkpointing: Any, free: int, entry: dict, expected: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record takes 10 where activations are kept and 1 where not; a process has 12 of each global batch."""
    monkeypatch.setattr(memory, "free_bytes", lambda device: free)
    monkeypatch.setattr(memory, "needed_bytes", lambda session, data, size, recompute: size * (1 if recompute else 10))
    session = session_of(per_device_batch_size=per_device, gradient_checkpointing=checkpointing)
    chosen = layout(session, BatchPlan(12, 1, 2), None, entry)
    assert (chosen.batch.per_device, chosen.recompute) == expected
    assert chosen.batch.global_batch == 24 and chosen.batch.world == 2


def test_bytes_of_a_7b_micro_batch() -> None:
    """Four records of 700 positions, bf16: 34 d + 9 m bytes per position and layer kept, 2 d when computed again."""
    shape, d, m = counted(published("7b")), 4096, 11008
    kept = activations(shape, 4, 2, False, 700, 20)
    logits = 4 * 80 * 14 * shape.vocabulary
    assert kept == 2800 * 32 * (34 * d + 9 * m) + logits and 20 < kept / 1e9 < 22
    again = activations(shape, 4, 2, True, 700, 20)
    assert again == 2800 * (32 * 2 * d + 34 * d + 9 * m) + logits and again < kept / 10
    assert activations(shape, 4, 2, True, 700, None) - again == 4 * (1400 - 80) * 14 * shape.vocabulary
    assert activations(shape, 4, 2, False, 700, 20, adapters=8) > 3 * kept


def test_memory_of_the_host(tmp_path: Path) -> None:
    proc = tmp_path / "meminfo"
    assert host_bytes(proc, tmp_path) == 0
    proc.write_text("MemTotal: 9 kB\nMemAvailable:    2048 kB\n")
    assert host_bytes(proc, tmp_path) == 2 << 20
    (tmp_path / "memory.max").write_text("1048576\n")
    (tmp_path / "memory.current").write_text("48576\n")
    assert host_bytes(proc, tmp_path) == 1_000_000
    (tmp_path / "memory.max").write_text("max\n")
    assert host_bytes(proc, tmp_path) == 2 << 20


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_checkpointing_changes_no_bit(dtype: str, world: Path, tmp_path: Path) -> None:
    """With dropout: what is computed again draws the same masks."""
    step = Step(world, tmp_path, "hide", dtype, "method.dropout=0.2")
    batch = step.batch(0, 3, 7)
    torch.manual_seed(5)
    kept, expected = step.gradients(batch, loss_only=True)
    step.session.core.llava.gradient_checkpointing_enable({"use_reentrant": False})
    torch.manual_seed(5)
    again, found = step.gradients(batch, loss_only=True)
    assert torch.equal(kept.loss, again.loss)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)) and any(g.any() for g in found)


def test_too_much_is_told_and_goes_on_with_checkpointing(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    """From the last checkpoint, to the same bits as a run that always fitted; the second task too begins by estimate."""
    words = (*AUTO, "tasks=[task0,task1]", "train.save_steps=1")
    run(configuration(world, "hide", tmp_path / "whole", *words), evaluate=False, report=False)
    entries = RunFolder(tmp_path / "whole").manifest["stages"]
    assert [(e["gradient_checkpointing"], e["per_device"]) for e in entries] == [(False, 4)] * 2
    step, failed = MethodTrainer.training_step, []

    def too_much(self: MethodTrainer, *args: Any) -> torch.Tensor:
        if self.state.global_step == 2 and not failed:
            failed.append(any(getattr(m, "gradient_checkpointing", False) for m in self.core.llava.modules()))
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        return step(self, *args)

    monkeypatch.setattr(MethodTrainer, "training_step", too_much)
    run(configuration(world, "hide", tmp_path / "again", *words), evaluate=False, report=False)
    assert failed == [False] and "goes on with gradient checkpointing" in capfd.readouterr().out
    entries = RunFolder(tmp_path / "again").manifest["stages"]
    assert [e["gradient_checkpointing"] for e in entries] == [True, False]
    found, expected = tensors(tmp_path / "again"), tensors(tmp_path / "whole")
    assert found.keys() == expected.keys() and all(torch.equal(found[k], expected[k]) for k in expected)


def test_too_much_with_checkpointing_says_what_takes_less(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_much(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(MethodTrainer, "training_step", too_much)
    with pytest.raises(UserError, match=r"out of memory.*train\.per_device_batch_size below 4"):
        run(configuration(world, "lora", tmp_path, "train.gradient_checkpointing=true"), evaluate=False, report=False)


def test_a_run_begun_with_a_truth_value_goes_on(world: Path, tmp_path: Path) -> None:
    """config.yaml of an earlier version says true, the default now is auto: the same run, as no number depends on it."""
    one = ("tasks=[task0,task1]", "train.gradient_checkpointing=true")
    run(configuration(world, "lora", tmp_path, *one, "train.max_steps=1"), evaluate=False, report=False)
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["train"]["gradient_checkpointing"] is True
    assert from_yaml(tmp_path / "config.yaml").train.gradient_checkpointing is True
    (tmp_path / "stages" / "02-task1" / "method.json").unlink()
    run(configuration(world, "lora", tmp_path, one[0], *AUTO, "train.max_steps=1"), evaluate=False, report=False)
    assert RunFolder(tmp_path).is_complete("02-task1")
