"""A module in several processes: under torchrun, as scripts/launch.sh starts the command line, or forked, which is cheap."""

import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from hide_llava.training.engines import free_port
from tests.faults import processes

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


def forked(
    module: str, *words: str, count: int = 2, place: Path = processes.CHECKOUT, seconds: int = 900
) -> subprocess.CompletedProcess:
    """`python -m MODULE WORDS` in `count` processes that find each other by torchrun's variables, as torchrun's workers do.

    place: the folder in which they are started.

    They are forked from a server that has imported everything: importing it in each takes longer than a tiny run. As under
    torchrun, one that fails ends the others. returncode: −9 where one was killed, else that of the first that failed.
    """
    processes.start_server()
    port, until = free_port(), time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        children = [processes.begin(Path(folder), _member, rank, count, port, place, module, words) for rank in range(count)]
        codes: list[int | None] = [None]
        while None in codes and not any(codes):
            assert time.monotonic() < until, "still running"
            time.sleep(0.02)
            codes = [child.process.exitcode for child in children]
        for child in children if any(codes) else ():
            child.process.join(5)  # it may be about to be killed as well, or to say that it lost the others
            child.process.terminate()
        ends = [child.wait() for child in children]
    own = [end.code for end in ends if end.code not in (0, -signal.SIGTERM)]
    code = -signal.SIGKILL if -signal.SIGKILL in own else next(iter(own), 0)
    return subprocess.CompletedProcess([module, *words], code, *("".join(texts) for texts in list(zip(*ends))[1:]))


def _member(rank: int, count: int, port: str, place: Path, module: str, words: tuple[str, ...]) -> None:
    """One process of a group."""
    os.chdir(place)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count),
                   "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}  # fmt: skip
    sys.argv = [module, *words]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
