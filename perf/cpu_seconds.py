"""The clock of harnesses whose work is shared by processes. Standard library and psutil alone: any environment can read it."""

from __future__ import annotations

import contextlib
import os
import time


def cpu_seconds() -> float:
    """CPU seconds of this process and of all its children, those still running included."""
    import psutil

    ended = os.times()
    seconds = time.process_time() + ended.children_user + ended.children_system
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            seconds += sum(child.cpu_times()[:2])
    return seconds
