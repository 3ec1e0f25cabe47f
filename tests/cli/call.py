"""The command line called in process, and what every refusal has in common."""

import contextlib
import hashlib
import io
import json
from pathlib import Path
from typing import Any, NamedTuple

from hide_llava.cli import main, verbs
from hide_llava.parser import Call, parse


class Called(NamedTuple):
    """Exit code and both streams of one call."""

    code: int
    out: str
    err: str


def call(*words: str | Path) -> Called:
    """`hide-llava WORDS…` in this process."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main([str(word) for word in words])
        except SystemExit as stop:
            code = stop.code or 0
    return Called(code, out.getvalue(), err.getvalue())


def assert_refusal(code: int, err: str, *fragments: str | Path) -> str:
    """Exit code 2 and a short message with these fragments, in which nothing of Python shows."""
    assert code == 2, f"exit {code}: {err}"
    assert err.startswith("error: ") and "Traceback" not in err and "Error(" not in err, err
    assert len(err.splitlines()) <= 2 and len(err) < 900, err  # a sentence or two, and at most one line of detail
    for fragment in fragments:
        assert str(fragment) in err, f"{fragment!r} is not in: {err}"
    return err


def refused(*words: str | Path, says: tuple[str | Path, ...]) -> str:
    """Call, and check the refusal."""
    called = call(*words)
    return assert_refusal(called.code, called.err, *says)


def content(folder: Path) -> dict[str, str]:
    """Hashes of all files of a folder, for "nothing was lost"."""
    files = (p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != ".lock")
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def manifest(run: Path) -> dict[str, Any]:
    """Without what depends on the machine."""
    found = json.loads((run / "manifest.json").read_text())
    found["stages"] = [{k: v for k, v in s.items() if not k.endswith(("_seconds", "_gib"))} for s in found["stages"]]
    return found


def understood(*words: str) -> Call:
    """What these words ask for, without doing it."""
    asked = parse(verbs(), list(words))
    assert asked is not None
    return asked


def known_verbs() -> list[str]:
    return list(verbs().commands)
