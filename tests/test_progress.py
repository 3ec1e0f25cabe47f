"""A bar in a terminal, plain lines with pace and what is left elsewhere."""

import pytest

from hide_llava import progress
from hide_llava.progress import Progress, duration


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


def test_a_bar_in_a_terminal(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True, raising=False)
    with Progress("01-a", 3, "step") as bar:
        for done in (1, 2, 3):
            bar.at(done, "loss 1")
    captured = capsys.readouterr()
    assert captured.out == "" and "01-a" in captured.err and "3/3" in captured.err


def test_other_processes_are_silent(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "is_main", lambda: False)
    with Progress("01-a", 3, "step") as bar:
        bar.at(3)
    assert capsys.readouterr() == ("", "")
