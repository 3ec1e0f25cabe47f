"""`--help` teaches, on wide and narrow terminals and without one."""

import contextlib
import fcntl
import os
import pty
import re
import shlex
import struct
import subprocess
import sys
import termios

import pytest

from hide_llava.cli import verbs
from tests.cli.call import call, known_verbs, understood

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))


def on_terminal(columns: int, *words: str) -> tuple[int, str]:
    """Exit code and what a terminal of that width shows, without its colours."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    environment = {**os.environ, "TERM": "xterm", "PYTHONPATH": ROOT}
    environment.pop("COLUMNS", None)
    process = subprocess.Popen([sys.executable, "-m", "hide_llava.cli", *words], stdin=theirs, stdout=theirs, stderr=theirs,
                               env=environment)  # fmt: skip
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # how the end of the other side reads
        while block := os.read(ours, 65536):
            shown += block
    os.close(ours)
    return process.wait(60), re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode()).replace("\r\n", "\n")


@pytest.mark.parametrize("columns", [50, 80, 200])
def test_help_fits_the_terminal(columns: int) -> None:
    code, text = on_terminal(columns, "run", "--help")
    assert code == 0 and "Traceback" not in text
    for word in ("benchmark=", "method=", "model=", "train=", "task_order=[a,b,c;c,b,a]", "$HIDE_DATA"):
        assert word in text
    example = text.partition("example:")[0]  # which is not cut, so that it can be copied
    assert max(map(len, example.splitlines())) <= min(columns, 110)
    assert ("╭" in text) == (columns >= 72)


def test_a_mistake_on_a_terminal_is_one_line() -> None:
    code, text = on_terminal(80, "trian", "benchmark=ucit")
    assert code == 2 and text.startswith("error: ") and "'train'" in text and len(text.splitlines()) == 1


@pytest.mark.parametrize("verb", known_verbs())
def test_help_shows_an_example_that_parses(verb: str) -> None:
    called = call(verb, "--help")
    assert called.code == 0 and "\x1b" not in called.out
    for example in called.out.rpartition("example:\n")[2].strip().splitlines():
        words = shlex.split(example)
        assert words[:2] == ["hide-llava", verb]
        assert understood(*words[1:]).work


def test_everything_is_explained() -> None:
    """Each verb by sentences, each word and option by a phrase."""
    group = verbs()
    kinds = group.commands["analyze"]
    for command in [*group.commands.values(), *(kinds.get_command(None, kind) for kind in kinds.list_commands(None))]:
        assert command.help.endswith(".") and command.epilog, command.name
        assert all(param.help.endswith(".") for param in command.params), command.name


def test_help_groups_the_verbs() -> None:
    called = call("--help")
    assert called.code == 0
    assert all(re.search(rf"^ +{verb} +\w", called.out, re.MULTILINE) for verb in known_verbs())
    assert called.out == call("-h").out
    panels = ["Run and train:", "Look at results:", "Data:", "Setup:"]
    assert [line for line in called.out.splitlines() if line in panels] == panels and "Commands:" not in called.out


def test_defaults_are_shown() -> None:
    assert "[default: 100; x>=1]" in " ".join(call("analyze", "cka", "--help").out.split())
