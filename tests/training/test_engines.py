"""DeepSpeed engines on two gloo processes: the adapters of one process, also after a kill."""

import importlib.util
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import LlavaForConditionalGeneration

from hide_llava.errors import UserError
from hide_llava.methods.base import Method
from hide_llava.methods.keeplora import KeepLora
from hide_llava.methods.lora import SequentialLora
from hide_llava.pipeline import run
from hide_llava.training.engines import check_engine
from tests.tiny import arguments, configuration
from tests.torchrun import COMMAND_LINE, launch

pytestmark = [
    pytest.mark.xdist_group("deepspeed"),  # its first start builds an extension
    pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed"),
    pytest.mark.skipif(shutil.which("g++") is None, reason="DeepSpeed builds its CPU communication with g++"),
]
PLAIN = ("method.dropout=0", "train.save_steps=2", "train.per_device_batch_size=2", "tasks=[task0,task1]")  # same micro-batches


@pytest.fixture(scope="module")
def alone(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone") / "run"
    run(configuration(world, "hide", folder, *PLAIN), evaluate=False, report=False)
    return folder


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    files = sorted(folder.glob("stages/*/**/*.safetensors"))
    return {f"{f.relative_to(folder)}:{k}": v for f in files for k, v in load_file(f).items()}


def assert_near(ours: Path, expected: Path) -> None:
    a, b = tensors(ours), tensors(expected)
    assert a.keys() == b.keys() and a
    for key in a:
        # A text feature's last bits depend on the texts it shares a batch with; image features are computed alike.
        tolerance = 1e-12 if ":image_anchor" in key else 1e-6 if ":text_anchor" in key else 1e-4
        torch.testing.assert_close(a[key].double(), b[key].double(), atol=tolerance, rtol=tolerance, msg=key)


@pytest.mark.parametrize("engine", [pytest.param("zero2", marks=pytest.mark.nightly), "zero3"])
def test_killed_and_resumed_under_deepspeed_equals_one_process(
    engine: str, world: Path, alone: Path, tmp_path: Path
) -> None:
    words = arguments(world, "hide", tmp_path / "run", *PLAIN, f"train.engine={engine}")
    killed = launch("tests.faults.run_and_die", "step", "3", "train", *words)
    assert killed.returncode != 0 and "Signal 9" in killed.stderr, killed.stderr[-3000:]
    checkpoint = tmp_path / "run" / "state" / "01-task0" / "checkpoint-2"
    assert (checkpoint / "complete").read_text().splitlines()[0] == engine
    frozen = sum(p.stat().st_size for p in checkpoint.rglob("*.pt"))
    assert frozen < (world / "llava" / "model.safetensors").stat().st_size  # no copy of the base
    done = launch(COMMAND_LINE, "train", *words)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_near(tmp_path / "run", alone)
    llava = LlavaForConditionalGeneration.from_pretrained(world / "llava")
    expert = next((tmp_path / "run" / "stages").glob("01-*/adapter"))
    assert isinstance(PeftModel.from_pretrained(llava, expert), PeftModel)


def test_engines_refuse_what_they_cannot_do(world: Path, tmp_path: Path) -> None:
    class ByGradient(SequentialLora):
        name = "by-gradient"

        def on_gradients(self, step: int) -> None: ...

    class ByValue(SequentialLora):
        name = "by-value"
        reads_parameters = True

    def refused(engine: str, method: type[Method], *more: str) -> str:
        config = configuration(world, "lora", tmp_path / "run", f"train.engine={engine}", *more)
        with pytest.raises(UserError) as error:
            check_engine(engine, config.model, method)
        return str(error.value)

    assert "use train.engine=ddp" in refused("zero2", ByGradient)
    assert "use train.engine=zero2 or ddp" in refused("zero3", ByValue)
    assert "fp16" in refused("zero2", SequentialLora, "model.dtype=float16")
    assert "quantised" in refused("zero2", SequentialLora, "model.quantization=4bit")
    check_engine("zero2", configuration(world, "lora", tmp_path / "run").model, ByValue)
    assert "use train.engine=zero2 or ddp" in refused("zero3", KeepLora)  # its state has the frozen A
