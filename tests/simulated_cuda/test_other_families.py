"""Models of other families on the simulated CUDA device in bf16: nothing that a GPU refuses, and a restart changes nothing.

Upstream's forward and its `generate` make the host wait more often than our decoding of LLaVA-1.5: Qwen-VL looks at every
row's tokens for its positions. The limits are what was measured, so that a wait of ours that is added shows.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulated_cuda import device
from tests.tiny import write_world_of

METHODS = ("hide", "modalprompt", "individual", "mrlora", "llavac")
IN_GATE = [("internvl", "hide"), ("qwen3_vl", "modalprompt")]
# Waits in a step, in a batch beside decoding, for a token.
LIMITS = {"internvl": (11, 54, 6), "qwen3_vl": (80, 161, 20)}


@pytest.mark.timeout(900)
@pytest.mark.skipif(device.compiler() is None, reason="no C++ compiler: the device is compiled when it is tested")
@pytest.mark.parametrize(
    ("kind", "method"),
    [pytest.param(kind, method, marks=[] if (kind, method) in IN_GATE else [pytest.mark.nightly])
     for kind in LIMITS for method in METHODS],
)  # fmt: skip
def test_a_method_runs_and_restarts(kind: str, method: str, tmp_path: Path) -> None:
    world = write_world_of(kind, tmp_path / "world")
    environment = {**os.environ, "LD_PRELOAD": str(device.library()), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.simulated_cuda.walk", str(world), str(tmp_path / "out"), method]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=800)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("walked ")] or [f"walked {{}}{done.stderr[-3000:]}"]
    report = json.loads(line.removeprefix("walked "))
    assert "error" not in report, report["error"]
    step, batch, token = LIMITS[kind]
    assert max(report["steps"]) <= step, report["places"]["step"]
    assert max(b["waits"] for b in report["batches"]) <= batch, report["places"]["batch"]
    assert max(b["a token"] for b in report["batches"]) <= token, report["places"]["batch"]
