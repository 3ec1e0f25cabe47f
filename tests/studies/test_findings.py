"""What every study writes: the same bytes for the same findings, and nothing of an earlier call beside it."""

import json
from pathlib import Path

import pytest

from hide_llava.results.drawing import LIGHT, Theme, new_figure
from hide_llava.studies.findings import Findings, vector, write_findings


def drawn(theme: Theme):
    figure, axes = new_figure(theme, 2, 2)
    axes.plot([0, 1], [0, 1], label="a")
    return figure


def test_what_is_not_written_again_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table, csv = ("T", ["k", "v"], [["a|b", "1"]]), {"a": (["k"], [["x,y"]])}
    first = Findings("One", ["a line"], [table], {"old": ("Old", drawn)}, csv, {"n": 1})
    write_findings(tmp_path, "made", first)
    (tmp_path / "mine.csv").write_text("kept")
    assert {p.name for p in tmp_path.iterdir()} == {
        "made.md", "made.json", "a.csv", "old-light.png", "old-dark.png", "old.pdf", "old.svg", "mine.csv"}  # fmt: skip
    assert (tmp_path / "a.csv").read_text() == 'k\n"x,y"\n' and "![Old](old-light.png)" in (tmp_path / "made.md").read_text()
    assert r"| a\|b | 1 |" in (tmp_path / "made.md").read_text()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)  # no matplotlib
    write_findings(tmp_path, "made", Findings("Two", [], figures={"old": ("Old", drawn)}, csv={"b": (["k"], [])}))
    assert {p.name for p in tmp_path.iterdir()} == {"made.md", "made.json", "b.csv", "mine.csv"}
    assert "matplotlib is not installed" in (tmp_path / "made.md").read_text()
    assert json.loads((tmp_path / "made.json").read_text()) == {"files": ["b.csv"]}


def test_a_name_cannot_leave_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    folder.mkdir()
    (tmp_path / "other").write_text("kept")
    for content in ('{"files": ["../other"]}', "{", "[]", '{"files": 3}'):
        (folder / "made.json").write_text(content)
        write_findings(folder, "made", Findings("Made", []))
        assert (tmp_path / "other").read_text() == "kept"


@pytest.mark.parametrize("form", ["pdf", "svg"])
def test_a_figure_is_the_same_file_whenever_it_is_drawn(form: str) -> None:
    first, second = (vector(drawn(LIGHT), form) for _ in range(2))
    assert first == second and first.startswith(b"%PDF" if form == "pdf" else b"<?xml")
