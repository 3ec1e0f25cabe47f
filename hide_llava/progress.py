"""How far a piece of work is: a bar in a terminal, and else a plain line every some seconds, as a log file wants it."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

from hide_llava.distributed import is_main

SECONDS = 10.0  # between two plain lines


class Progress:
    """Counts from `done` to `total` and says so, in the main process alone.

    `what` and `unit` name the work and one piece of it ("01-iconqa: training", "step"). Call `at` with how many pieces are
    done; `close` leaves a terminal as a plain line would find it. Use it as a context manager where that is simpler.
    """

    def __init__(self, what: str, total: int, unit: str, done: int = 0, seconds: float = SECONDS):
        self.what, self.total, self.unit, self.seconds = what, total, unit, seconds
        self.first, self.begun = done, time.monotonic()
        self.said: float | None = None  # when the last plain line was printed
        self.bar: tqdm | None = None
        self.silent = not is_main()
        if not self.silent and sys.stderr.isatty():
            self.bar = tqdm(desc=what, total=total, initial=done, unit=unit, dynamic_ncols=True)

    def at(self, done: int, note: str = "") -> None:
        """`done` pieces of `total` are finished; `note` is a word on the last one."""
        if self.bar is not None:
            self.bar.set_postfix_str(note, refresh=False)
            self.bar.update(done - self.bar.n)
            return
        now = time.monotonic()
        if self.silent or (self.said is not None and done < self.total and now - self.said < self.seconds):
            return
        self.said = now
        print("  " + ", ".join(filter(None, [f"{self.unit} {done}/{self.total}", note, self._pace(done, now)])), flush=True)

    def _pace(self, done: int, now: float) -> str:
        made = done - self.first
        if made < 1:
            return ""
        each = (now - self.begun) / made
        left = f", {duration(each * (self.total - done))} left" if done < self.total else ""
        return f"{duration(each)} a {self.unit}{left}"

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def duration(seconds: float) -> str:
    """0.42 s, 12 s, 3 min 20 s, 5 h 07 min."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
