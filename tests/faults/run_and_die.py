"""The command line with a death sentence: `python -m tests.faults.run_and_die PLACE N run …`.

At the N-th time (from 1) the run comes to PLACE, the process kills itself with SIGKILL: no handler, no `finally`, no
flushed buffer. Places are the seams of a run, between two things that belong together.
"""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from hide_llava import cli, storage
from hide_llava.adapters.core import Core
from hide_llava.evaluation import cells
from hide_llava.methods.hide import HiDe
from hide_llava.training import checkpoint, run_folder, sequence, trainer

# name → (owner of the function, its name, "before" or "after" it runs)
PLACES: dict[str, tuple[Any, str, str]] = {
    "config not written": (run_folder, "to_yaml", "before"),  # the manifest is there, config.yaml is not
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
}  # fmt: skip


def die_at(place: str, count: int) -> None:
    """Arm one death."""
    owner, name, when = PLACES[place]
    function: Callable = getattr(owner, name)
    left = [count]

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        left[0] -= 1
        if left[0] == 0 and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*args, **kwargs)
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, wrapped)


def hang_at(place: str, count: int) -> None:
    """Say so on standard output and wait, for a parent that sends signals or starts a second process."""
    owner, name, _ = PLACES[place]
    function: Callable = getattr(owner, name)
    left = [count]

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            print("HERE", flush=True)
            sys.stdin.readline()
        return function(*args, **kwargs)

    setattr(owner, name, wrapped)


if __name__ == "__main__":
    place, count, *words = sys.argv[1:]
    (hang_at if place.startswith("hang ") else die_at)(place.removeprefix("hang "), int(count))
    cli.main(words)
