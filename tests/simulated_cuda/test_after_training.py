"""What people do with a finished run, on the simulated CUDA device in bf16: nothing that a GPU refuses."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulated_cuda import device
from tests.simulated_cuda.after import LINES
from tests.tiny import write_world

pytestmark = [
    pytest.mark.xdist_group("cuda-after"),
    pytest.mark.skipif(device.compiler() is None, reason="no C++ compiler: the device is compiled when it is tested"),
]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict]]:
    """The folder of the run, and what each line gave, all by one process."""
    folder = tmp_path_factory.mktemp("after")
    environment = {**os.environ, "LD_PRELOAD": str(device.library()), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.simulated_cuda.after", str(write_world(folder / "world")), str(folder)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=800)
    lines = [json.loads(line.removeprefix("done ")) for line in ended.stdout.splitlines() if line.startswith("done ")]
    missing = {"code": ended.returncode, "out": "", "err": f"no report\n{ended.stderr[-3000:]}"}
    return folder / "run", dict.fromkeys(LINES, missing) | {line["name"]: line for line in lines}


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", LINES)
def test_a_line_is_carried_out(name: str, done: tuple[Path, dict[str, dict]]) -> None:
    line = done[1][name]
    assert line["code"] == 0, line["err"]


@pytest.mark.timeout(900)
def test_ask_tells_weights_and_answers_of_each_expert(done: tuple[Path, dict[str, dict]]) -> None:
    told = json.loads(done[1]["ask"]["out"])
    assert told["stage"] == 2 and sum(told["routing"].values()) == pytest.approx(1, abs=1e-2)
    assert set(told["experts"]) == {"expert-01", "expert-02"} and len(told["token_ids"]) == 4
    assert json.loads(done[1]["ask the first stage"]["out"])["routing"] == {"expert-01": 1.0}
