"""How far a piece of work is: a bar in a terminal, and else a plain line every some seconds, as a log file wants it."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

from hide_llava.distributed import is_main

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

T = TypeVar("T")
SECONDS = 10.0  # between two plain lines
REDRAWN = 0.1  # seconds between two drawings of a bar
DELAY = 5.0  # seconds before a bar of work that is mostly short


class Bar:
    """A bar with the time that is left, drawn on a terminal alone, by the main process alone, and from `delay` seconds on.

    It is one line, written where `at` is called: no thread whose locks a forked process would inherit, no hidden cursor and no
    exchanged streams that a failure would leave behind.
    """

    def __init__(self, what: str, total: int | None, unit: str, done: int = 0, delay: float = DELAY):
        self.what, self.total, self.unit = what, total, unit
        self.first, self.done, self.note = done, done, ""
        self.wanted = is_main() and sys.stderr.isatty()
        self.begun = time.monotonic()
        self.next = self.begun + delay
        self.columns: RichProgress | None = None

    def at(self, done: int, note: str = "") -> None:
        """`done` pieces are finished; `note` is a word on the last one."""
        self.done, self.note = done, note
        if self.wanted and time.monotonic() >= self.next:
            self._draw()

    def _draw(self) -> None:
        self.next = time.monotonic() + REDRAWN
        if self.columns is None:
            self._start()
        self.columns.update(self.columns.task_ids[0], completed=self.done, note=self.note)
        console = self.columns.console
        with console.capture() as captured:
            console.print(self.columns.get_renderable())
        line = captured.get().partition("\n")[0]
        print(f"\r{line}" if console.is_dumb_terminal else f"\r{line}\x1b[K", end="", file=sys.stderr, flush=True)

    def _start(self) -> None:
        from rich import progress  # here, because most processes draw no bar
        from rich.console import Console

        def column(text: str) -> progress.TextColumn:
            return progress.TextColumn(text, markup=False)  # a task's name may hold square brackets

        left = [column("ETA"), progress.TimeRemainingColumn()] if self.total is not None else []
        count = "{task.completed:.0f}" + ("" if self.total is None else "/{task.total:.0f}") + f" {self.unit}s"
        self.columns = progress.Progress(
            column("{task.description}"), progress.BarColumn(20), column(count), progress.TimeElapsedColumn(), *left,
            column("{task.fields[note]}"),
            console=Console(stderr=True), auto_refresh=False, speed_estimate_period=3600,
        )  # fmt: skip
        self.columns.add_task(self.what, total=self.total, completed=self.first, note="")
        self.columns.tasks[0].start_time = self.begun

    def close(self) -> None:
        """Leave the terminal as a plain line would find it."""
        if self.columns is not None:
            self._draw()
            print(file=sys.stderr, flush=True)
        self.wanted, self.columns = False, None

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def watched(pieces: Iterable[T], what: str, total: int | None = None, unit: str = "record") -> Iterator[T]:
    """The pieces, with a bar where they take long."""
    with Bar(what, total, unit) as bar:
        for done, piece in enumerate(pieces, 1):
            yield piece
            bar.at(done)


class Progress:
    """Counts from `done` to `total` and says so, in the main process alone.

    `what` and `unit` name the work and one piece of it ("01-iconqa: training", "step"). Call `at` with how many pieces are
    done; `close` leaves a terminal as a plain line would find it. Use it as a context manager where that is simpler.
    """

    def __init__(self, what: str, total: int, unit: str, done: int = 0, seconds: float = SECONDS):
        self.total, self.unit, self.seconds = total, unit, seconds
        self.first, self.begun = done, time.monotonic()
        self.said: float | None = None  # when the last plain line was printed
        self.silent = not is_main()
        self.bar = Bar(what, total, unit, done, delay=0) if not self.silent and sys.stderr.isatty() else None

    def at(self, done: int, note: str = "") -> None:
        """`done` pieces of `total` are finished; `note` is a word on the last one."""
        if self.bar is not None:
            self.bar.at(done, note)
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
