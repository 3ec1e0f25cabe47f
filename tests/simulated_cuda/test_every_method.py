"""Every method on a simulated CUDA device in bf16: what a GPU refuses, where it waits, and that a restart changes nothing.

The gate walks one preset of each method; `-m nightly` walks all presets. Skipped where there is no C++ compiler.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hide_llava.config import configs_folder, names, read_yaml
from tests.methods.test_contract import make_world
from tests.simulated_cuda import device

PRESETS = names("method")
NAMES = {preset: read_yaml(configs_folder() / "method" / f"{preset}.yaml")["method"]["name"] for preset in PRESETS}
ONE_EACH = [preset for preset in PRESETS if NAMES[preset] == preset]
REST = [preset for preset in PRESETS if preset not in ONE_EACH]

# How often the host may wait for the device, as measured; fewer is better, more is a fault.
# A step: is the loss finite, does the mask hide anything (upstream), is there a place for every patch.
# A batch: its tensors go there, answers come back. A token, of four: which one it is, and two looks of upstream's forward at
# the mask, one of them also before the first.
STEP, BATCH, TOKEN = 4, 6, 3.5
# CLIP features in a step: the text goes there and upstream looks at its mask; rows without an image are left out.
CLIP_STEP = 6
# Beside those: what a method asks for in a step, and in a batch of answers. Octopus reads gradients of 14 linears from
# page-locked memory, for which only this device waits.
MORE_STEP = {"disco": CLIP_STEP, "dualprompt": CLIP_STEP, "hide": CLIP_STEP, "l2p": CLIP_STEP, "branchlora": CLIP_STEP,
             "modalprompt": CLIP_STEP + 1, "smolora": 6, "llavac": 7, "lwf": 9, "same": 8, "ewc": 1, "many": 2, "olora": 1,
             "passmoe": 2, "sefe": 1, "octopus": 2 + 14}  # fmt: skip
MORE_BATCH = {"disco": 13, "dualprompt": 6, "hide": 13, "l2p": 6, "branchlora": 6, "many": 5, "modalprompt": 6,
              "mrlora": 14, "smolora": 2,
              "individual": 30}  # fmt: skip  # the first of a cell folds its expert and measures what is kept, twice a linear


def limits(method: str) -> tuple[int, int, float]:
    """Waits allowed in a step, in a batch beside decoding, and for a token."""
    name = NAMES[method]
    zeros = 1 if method in ("hide-official", "hide-mcitlib") else 0  # text-only rows have the feature of a black image
    return STEP + MORE_STEP.get(name, 0) + zeros, BATCH + MORE_BATCH.get(name, 0) + 4 * zeros, TOKEN


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"))


class Walked(dict):
    """The report of every method of a list, made by one process when the first is asked for: starting it takes longest."""

    def __init__(self, world: Path, folder: Path):
        super().__init__()
        self.world, self.folder = world, folder

    def walk(self, methods: list[str]) -> None:
        environment = {**os.environ, "LD_PRELOAD": str(device.library()), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "tests.simulated_cuda.walk", str(self.world), str(self.folder), *methods]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1500)
        for line in done.stdout.splitlines():
            if line.startswith("walked "):
                report = json.loads(line.removeprefix("walked "))
                self[report["method"]] = report
        for method in methods:
            self.setdefault(method, {"error": f"no report; the process ended with {done.returncode}\n{done.stderr[-3000:]}"})


@pytest.fixture(scope="module")
def walked(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Walked:
    if device.compiler() is None:
        pytest.skip("no C++ compiler: the simulated CUDA device is compiled when it is tested")
    return Walked(world, tmp_path_factory.mktemp("walked"))


def grouped(presets: list[str], *marks: pytest.MarkDecorator) -> list:
    """Half of the presets in one process, half in another."""
    halves = [presets[::2], presets[1::2]]
    return [
        pytest.param(half, preset, marks=[*marks, pytest.mark.xdist_group(f"cuda-{i}")])
        for i, half in enumerate(halves)
        for preset in half
    ]


@pytest.mark.timeout(1500)
@pytest.mark.parametrize(("half", "method"), [*grouped(ONE_EACH), *grouped(REST, pytest.mark.nightly)])
def test_a_method_runs_restarts_and_does_not_wait(half: list[str], method: str, walked: Walked) -> None:
    if method not in walked:
        walked.walk(half)
    report = walked[method]
    assert "error" not in report, report["error"]
    step, batch, token = limits(method)
    assert max(report["steps"], default=0) <= step, report["places"]["step"]
    assert max(b["waits"] for b in report["batches"]) <= batch, report["places"]["batch"]
    assert max(b["a token"] for b in report["batches"]) <= token, report["places"]["batch"]
