"""`analyze` finds our studies and those of installed packages; a broken one is told in a sentence and hurts no other."""

import sys
from pathlib import Path

import pytest

from tests.cli.call import call, refused, understood

CODE = """
from pathlib import Path
from typing import Annotated
import typer
from hide_llava.studies.registry import Study, results_folder

def drift(run: Path, steps: Annotated[int, typer.Option(min=1, help="How far.")] = 3) -> None:
    \"\"\"Measure how far the weights have moved.\"\"\"
    print("drift of", run, steps, results_folder(run, "drift"))

STUDY = Study("drift", drift)
NOT_ONE = drift

def unreadable(run: int | Path) -> None:
    pass

UNREADABLE = Study("unreadable", unreadable)
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package that announces studies of which one works; another one takes the name of ours."""
    points = ("drift = my_studies:STUDY", "gone = my_studies.nowhere:STUDY", "odd = my_studies:NOT_ONE",
              "unreadable = my_studies:UNREADABLE", "cka = my_studies:STUDY")  # fmt: skip
    info = tmp_path / "my_studies-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-studies\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("\n".join(["[hide_llava.studies]", *points]) + "\n")
    (tmp_path / "my_studies.py").write_text(CODE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_studies", raising=False)
    return tmp_path


def test_our_own() -> None:
    text = call("analyze", "--help").out
    assert "cka " in text and "leakage " in text and "cannot be used" not in text
    assert understood("analyze", "cka", "runs/x", "--stage", "2").options["samples"] == 100


def test_a_package_adds_one(package: Path) -> None:
    assert "drift " in call("analyze", "--help").out
    assert "--steps" in call("analyze", "drift", "--help").out
    called = call("analyze", "drift", "runs/x", "--steps", "5")
    assert (called.code, called.err) == (0, "") and called.out.split() == ["drift", "of", "runs/x", "5", "runs/x/results/drift"]
    refused("analyze", "drift", "runs/x", "--steps", "0", says=("--steps", "'0'", "at least 1"))


@pytest.mark.parametrize("name, says", [
    ("gone", "cannot be imported"), ("odd", "no Study"), ("unreadable", "cannot be read"), ("cka", "cka.command:STUDY"),
])  # fmt: skip
def test_a_broken_one_is_told(name: str, says: str, package: Path) -> None:
    refused("analyze", name, "runs/x", says=(f"study '{name}'", "my_studies", says))
    listed = call("analyze", "--help")
    assert listed.code == 0 and f"study '{name}'" in " ".join(listed.out.split()) and "drift " in listed.out
    assert call("analyze", "leakage", "--help").code == 0


def test_an_unknown_one(package: Path) -> None:
    refused("analyze", "drfit", says=("drfit", "Did you mean 'drift'?"))
