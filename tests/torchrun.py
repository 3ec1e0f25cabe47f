"""A module under torchrun, as scripts/launch.sh starts the command line."""

import os
import subprocess
import sys
from pathlib import Path

COMMAND_LINE = "tests.methods.run_cli"  # with the methods that live in the tests only
TWO = ("--standalone", "--nproc-per-node", "2")


def start(module: str, *words: str, flags: tuple[str, ...] = TWO) -> subprocess.Popen:
    """`python -m torch.distributed.run FLAGS -m MODULE WORDS` on CPU, one thread a process, with both streams piped."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    command = [sys.executable, "-m", "torch.distributed.run", *flags, "-m", module, *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=Path(__file__).parent.parent, env=environment, **pipes)


def launch(module: str, *words: str, flags: tuple[str, ...] = TWO, seconds: int = 900) -> subprocess.CompletedProcess:
    """The same, waited for; killed with what it started after so many seconds."""
    process = start(module, *words, flags=flags)
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.terminate()  # torchrun ends its workers; a kill would leave them
        process.communicate()
        raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)
