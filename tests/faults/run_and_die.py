"""Faults at the seams of a run, between two things that belong together, and a journal of what a process did.

`python -m tests.faults.run_and_die PLACE N run …` is the command line that dies by SIGKILL when it comes to PLACE for
the N-th time (from 1): no handler, no `finally`, no flushed buffer.
"""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from hide_llava import cli, storage
from hide_llava.adapters.core import Core
from hide_llava.evaluation import cells
from hide_llava.methods.hide import HiDe
from hide_llava.results import html, report
from hide_llava.training import checkpoint, run_folder, sequence, trainer
from hide_llava.training import run as run_module

# name → (owner of the function, its name, "before" or "after" it runs)
PLACES: dict[str, tuple[Any, str, str]] = {
    "config not written": (run_module, "to_yaml", "before"),  # the manifest is there, config.yaml is not
    "step": (trainer.RunCallback, "on_step_end", "before"),  # after an optimizer step
    "checkpoint half written": (checkpoint, "save_state", "before"),  # the weights are there, the method's state is not
    "checkpoint unmarked": (trainer.RunCallback, "on_save", "before"),  # all is written but the mark
    "trained": (HiDe, "after_task", "before"),  # all steps are done, the stage does not exist
    "stage half written": (Core, "save", "after"),
    "stage unnamed": (sequence, "publish", "before"),
    "stage unlisted": (run_folder.RunFolder, "close_stage", "before"),  # the manifest does not say so yet
    "answers half written": (cells, "read_part", "after"),
    "batch": (cells, "answer_batch", "after"),  # computed, but in no file
    "answers unmerged": (cells, "merge", "before"),
    "unscored": (cells, "score", "before"),
    "file unnamed": (storage.os, "replace", "before"),  # any file or folder written under a temporary name
    "tables": (report, "write_tables", "before"),  # matrix.json is there, the rest of the report is not
    "report half written": (html, "write", "after"),
    "page": (report, "_page", "before"),  # the figures are there
}  # fmt: skip


class Fault(NamedTuple):
    """What happens (kill, term or hang) when a process comes to `place` for the `visit`-th time."""

    action: str
    place: str
    visit: int


def at(place: str, act: Callable[[], None]) -> None:
    """Call `act` at every visit of a place."""
    owner, name, when = PLACES[place]
    function: Callable = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if when == "before":
            act()
        result = function(*args, **kwargs)
        if when == "after":
            act()
        return result

    setattr(owner, name, wrapped)


def arm(fault: Fault, hold: Path | None = None) -> None:
    """Make a fault happen; a process that hangs makes the file `hold` and goes on when it is taken away."""
    left = [fault.visit]

    def strike() -> None:
        left[0] -= 1
        if left[0]:
            return
        if fault.action == "hang":
            hold.touch()
            while hold.exists():
                time.sleep(0.01)
        else:
            os.kill(os.getpid(), {"kill": signal.SIGKILL, "term": signal.SIGTERM}[fault.action])

    at(fault.place, strike)


def keep_journal(file: Path) -> None:
    """Append a line for every optimizer step, every batch of answers and every file or folder that got its name."""
    journal = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    replace = os.replace

    def named(source: Any, target: Any, **options: Any) -> None:
        replace(source, target, **options)
        os.write(journal, f"named {target}\n".encode())

    os.replace = named
    at("step", lambda: os.write(journal, b"step\n"))
    at("batch", lambda: os.write(journal, b"batch\n"))


if __name__ == "__main__":
    place, visit, *words = sys.argv[1:]
    arm(Fault("kill", place, int(visit)))
    cli.main(words)
