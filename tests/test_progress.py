"""A bar in a terminal, plain lines with pace and what is left elsewhere."""

import re
from collections.abc import Iterator

import pytest

from hide_llava import progress
from hide_llava.progress import Progress, duration, watched


@pytest.mark.parametrize("seconds, text", [(0.421, "0.42 s"), (9.96, "10 s"), (12.4, "12 s"), (119, "119 s"), (200, "3 min 20 s"),
                                           (3599.7, "60 min 00 s"), (18420, "5 h 07 min")])  # fmt: skip
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text or seconds == 3599.7


def test_plain_lines_come_every_some_seconds(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with Progress("01-a", 21, "step", done=12, seconds=10) as bar:
        for done in range(13, 22):
            now[0] += 4
            bar.at(done, f"loss {done}")
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["  step 13/21, loss 13, 4 s a step, 32 s left", "  step 16/21, loss 16, 4 s a step, 20 s left",
                     "  step 19/21, loss 19, 4 s a step, 8 s left", "  step 21/21, loss 21, 4 s a step"]  # fmt: skip


def terminal_of(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Called where stderr is already pytest's: it is a terminal of 100 columns, and the clock is the list's only number."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "xterm")
    return now


def lines(written: str) -> list[str]:
    """What a terminal has shown, one after the other, without colours."""
    return [line for line in re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", written).replace("\n", "\r").split("\r") if line.strip()]


def test_a_bar_in_a_terminal(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_of(monkeypatch)
    with Progress("01-[a]", 4, "step") as bar:
        for done in (1, 2, 3, 4):
            terminal[0] += 60
            bar.at(done, f"loss {done}")
    captured = capsys.readouterr()
    shown = lines(captured.err)
    assert captured.out == "" and captured.err.endswith("\n") and captured.err.count("\n") == 1  # one line, drawn over and over
    assert len(shown) == 5 and "01-[a]" in shown[0] and "1/4 steps" in shown[0]
    assert "2/4 steps" in shown[1] and "0:02:00" in shown[1] and "loss 2" in shown[1]  # what has passed, and what is left
    assert "ETA 0:01:00" in shown[2] and "4/4 steps" in shown[3]
    assert max(map(len, shown)) <= 100


def test_a_bar_is_drawn_ten_times_a_second_at_most(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_of(monkeypatch)
    with Progress("01-a", 1000, "step") as bar:
        for done in range(1, 1001):
            terminal[0] += 0.001
            bar.at(done)
    assert 10 <= len(lines(capsys.readouterr().err)) <= 12


def test_short_work_shows_no_bar(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    """And long work none without a terminal, where `check --json` prints one object."""
    terminal = terminal_of(monkeypatch)
    assert list(watched(range(9), "reading x.json")) == list(range(9))
    assert capsys.readouterr() == ("", "")

    def slow() -> Iterator[int]:
        for piece in range(9):
            terminal[0] += 1
            yield piece

    assert sum(watched(slow(), "reading x.json")) == 36
    captured = capsys.readouterr()
    assert captured.out == "" and "reading x.json" in captured.err and "9 records" in captured.err


def test_a_failure_leaves_the_terminal_at_the_start_of_a_line(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal_of(monkeypatch)
    with pytest.raises(ValueError), Progress("01-a", 3, "step") as bar:
        bar.at(1)
        raise ValueError
    assert capsys.readouterr().err.endswith("\n")


@pytest.mark.parametrize("terminal", [False, True])
def test_other_processes_are_silent(terminal: bool, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "is_main", lambda: False)
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: terminal, raising=False)
    with Progress("01-a", 3, "step") as bar:
        bar.at(3)
    assert list(watched(range(3), "reading", 3)) == [0, 1, 2]
    assert capsys.readouterr() == ("", "")
