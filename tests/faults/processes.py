"""Real processes that are cheap: forked from a server that has imported everything (multiprocessing's forkserver)."""

import ctypes
import datetime
import gc
import json
import multiprocessing
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path
from typing import Any, NamedTuple

import torch

from hide_llava import cli, pipeline  # noqa: F401 the server imports all that a run needs
from tests.cli.call import Called, call
from tests.faults.run_and_die import Fault, arm, keep_journal

CHECKOUT = Path(__file__).parent.parent.parent
NEW_MOUNTS, NEW_USER = 0x00020000, 0x10000000  # linux/sched.h
# imported in the middle of a run, where installed
SLOW = [
    "deepspeed",
    "matplotlib.figure",
    "matplotlib.backends.backend_agg",
    "matplotlib.font_manager",
    "PIL.PngImagePlugin",
]
FORBIDDEN = 77  # exit code
PRIVATE, READ_ONLY, REMOUNT = 1 << 18 | 1 << 14, 1, 32  # linux/mount.h

torch.set_num_threads(1)  # no pool of threads before a fork


def start_server() -> None:
    """One server for each process of the tests; it ends with it."""
    changed = {"PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false",
               "DS_ACCELERATOR": "cpu"}  # fmt: skip
    before = {key: os.environ.get(key) for key in changed}
    os.environ.update(changed)
    multiprocessing.set_forkserver_preload([__name__, "tests.conftest", *SLOW])
    forkserver.ensure_running()
    for key, value in before.items():
        os.environ.pop(key) if value is None else os.environ.__setitem__(key, value)


class Child(NamedTuple):
    process: Any
    streams: Path
    hold: Path

    def wait(self, timeout: float = 240) -> Called:
        """Code (negative: the signal it died of), standard output and standard error."""
        self.process.join(timeout)
        assert self.process.exitcode is not None, "still running"
        out, err = (self.streams.with_suffix(end).read_text() for end in (".out", ".err"))
        return Called(self.process.exitcode, out, err)

    def wait_until_it_hangs(self) -> None:
        while not self.hold.exists():
            assert self.process.is_alive(), self.wait().err
            time.sleep(0.01)

    def go_on(self) -> None:
        self.hold.unlink()


def begin(folder: Path, body: Callable[..., None], *values: Any) -> Child:
    """A new process that calls `body(*values)`; what it prints goes to files in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    streams = folder / f"process-{len(list(folder.glob('process-*.out')))}"
    hold = streams.with_suffix(".hold")
    process = multiprocessing.get_context("forkserver").Process(target=_live, args=(folder, streams, body, *values))
    process.start()
    return Child(process, streams, hold)


def _live(folder: Path, streams: Path, body: Callable[..., None], *values: Any) -> None:
    for number, end in ((1, ".out"), (2, ".err")):
        os.dup2(os.open(streams.with_suffix(end), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), number)
    os.environ["HIDE_CACHE"] = str(folder / "cache")
    gc.freeze()  # what the server imported is never searched for garbage
    body(*values)


def run(folder: Path, words: list[str], fault: Fault | None = None) -> Child:
    """The command line in a new process; the journal of all processes of a folder is `folder/journal`."""
    hold = folder / f"process-{len(list(folder.glob('process-*.out'))) if folder.exists() else 0}.hold"
    return begin(folder, _command, words, fault, folder / "journal", hold)


def run_at(place: Path, words: list[str], packages: Path | None) -> None:
    """The command line as it is given in a folder, perhaps with packages that lie in another one."""
    os.chdir(place)
    sys.path[:0] = [str(path) for path in (place, packages) if path]
    cli.main(words)


def _command(words: list[str], fault: Fault | None, journal: Path, hold: Path) -> None:
    keep_journal(journal)
    if fault is not None:
        arm(fault, hold)
    cli.main(words)


# ------------------------------------------------------------------------------------------------- machines that fail


def run_with_clock(words: list[str], fault: Fault | None, journal: Path, shift: float) -> None:
    """The command line on a machine whose clock is wrong by `shift` seconds."""
    real = time.time

    class Shifted(datetime.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return cls.fromtimestamp(real() + shift, tz)

    time.time, time.time_ns, datetime.datetime = lambda: real() + shift, lambda: int((real() + shift) * 1e9), Shifted
    _command(words, fault, journal, journal)


def run_with_file_limit(words: list[str], limit: int) -> None:
    """The command line where no file may grow beyond `limit` bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    cli.main(words)


def run_without_rights(words: list[str]) -> None:
    """The command line as a user whom permissions bind, also where the tests run as root.

    A user namespace of its own takes root's power over files away: to the kernel it is their owner and no more.
    """
    if os.geteuid() == 0:
        _libc("unshare", NEW_USER)
    cli.main(words)


def run_on_small_disk(
    disk: Path, words: list[str], trained: bool, sizes: list[int], flags: int, answers: Path, result: Path
) -> None:
    """Run on a disk that only this process sees and that has one of `sizes` (KiB) after the other, then on a large one.

    `trained`: train on a large one first, and count sizes from what is used then. `flags`: READ_ONLY or 0, before the
    last call. Codes and texts of all calls go to `answers`; `disk/run` is copied out.
    """
    os.environ["HIDE_CACHE"] = str(disk / "cache")
    _own_disk(disk)
    assert not trained or call("train", *words[1:]).code == 0
    used, calls = shutil.disk_usage(disk).used >> 10, []
    for size, flag in (*((used + size, flags) for size in sizes), (1 << 19, 0)):
        _libc("mount", b"none", str(disk).encode(), b"tmpfs", REMOUNT | flag, f"size={size}k".encode())
        calls.append(call(*words))
    answers.write_text(json.dumps(calls))
    shutil.copytree(disk / "run", result)


def _own_disk(disk: Path) -> None:
    uid, gid = os.geteuid(), os.getegid()
    _libc("unshare", NEW_MOUNTS if uid == 0 else NEW_MOUNTS | NEW_USER)
    if uid:
        for file, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
            Path(f"/proc/self/{file}").write_text(text)
    _libc("mount", b"none", b"/", None, PRIVATE, None)
    _libc("mount", b"none", str(disk).encode(), b"tmpfs", 0, b"size=512m")


def _libc(name: str, *values: Any) -> None:
    """A system call that a container may forbid: then the process ends with the code `FORBIDDEN`."""
    library = ctypes.CDLL(None, use_errno=True)
    if getattr(library, name)(*values) != 0:
        print(f"{name}: {os.strerror(ctypes.get_errno())}", file=sys.stderr)
        sys.exit(FORBIDDEN)
