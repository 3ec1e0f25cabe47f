"""Stops inside a task, as after a signal, for tests of going on."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from hide_llava.errors import Interrupted
from hide_llava.training import sequence


@contextmanager
def stopped_after(*steps: int) -> Iterator[None]:
    """Inside, every trainer stops when it has done one of `steps`."""
    build = sequence.build_trainer

    def stopping(*args: Any) -> Any:
        trainer, callback = build(*args)
        end = callback.on_step_end

        def on_step_end(arguments: Any, state: Any, control: Any, **rest: Any) -> Any:
            callback.stopped = state.global_step in steps
            return end(arguments, state, control, **rest)

        callback.on_step_end = on_step_end
        return trainer, callback

    sequence.build_trainer = stopping
    try:
        yield
    finally:
        sequence.build_trainer = build


def until_done(go: Callable[[], Any]) -> int:
    """Call what may be stopped again and again until it ends; how often it was stopped."""
    for stops in range(20):
        try:
            go()
            return stops
        except Interrupted:
            continue
    raise AssertionError("it was stopped twenty times and never ended")
