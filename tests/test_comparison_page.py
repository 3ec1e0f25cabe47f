"""docs/COMPARISON.md: its searched table is that of the runs whose scores and answers lie beside it."""

import tarfile
from pathlib import Path

import pytest

from hide_llava.results.comparison import compare
from hide_llava.results.comparison_text import columns, rows
from hide_llava.results.searches import read_search

DOCS = Path(__file__).parent.parent / "docs"
SECTION = "## Searched\n"
REFERENCES = ("multitask", "individual", "lora", "zero_shot")  # below the methods
LEFT_OUT = ("n", "BWT (CoIN)", "Learning gain", "Intransigence")  # of a comparison, in the page's table
STEPS = ("÷ 3", "usual", "× 3")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs and searches of docs/comparison-searched.tar.xz, unpacked."""
    folder = tmp_path_factory.mktemp("recorded")
    with tarfile.open(DOCS / "comparison-searched.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder / "compare-searched"


def tables() -> list[list[list[str]]]:
    """The tables of the section, each as its rows of cells without marks."""
    text = (DOCS / "COMPARISON.md").read_text(encoding="utf-8").split(SECTION)[1].split("\n## ")[0]
    found = []
    for block in text.split("\n\n"):
        lines = [line for line in block.splitlines() if line.startswith("|")]
        if lines:
            found.append([[cell.strip() for cell in line.strip("|").split("|")] for line in (lines[0], *lines[2:])])
    return found


def test_the_scores_are_those_of_the_runs(recorded: Path) -> None:
    runs = sorted(path.parent for path in recorded.glob("*-seed*/manifest.json"))
    (view,) = compare(runs)
    titles, keys = columns(view)
    ours = dict(zip(view.names, rows(view, keys)))
    kept = [k for k, title in enumerate(titles) if title not in LEFT_OUT]
    head, *body = tables()[0]
    assert head == ["Method preset", "Learning rate", *(titles[k] for k in kept)]
    shown = {row[0]: row[1:] for row in body if row[0] != "commonest answer"}
    assert shown.keys() == set(view.names)
    for name, (rate, *cells) in shown.items():
        assert cells == [ours[name][k] for k in kept], name
        chosen = read_search(recorded / "search" / f"{name}.json").chosen
        assert rate == (f"{next(iter(chosen.values())):g}" if chosen else "")
    last = [float(cells[head.index("Last") - 1].split()[0]) for name, cells in shown.items() if name not in REFERENCES]
    assert last == sorted(last, reverse=True)


def test_the_trials_are_those_of_the_searches(recorded: Path) -> None:
    """Three learning rates for every method; bold: what was chosen."""
    head, *body = tables()[1]
    assert head == ["Method preset", *STEPS]
    found = {}
    for file in sorted((recorded / "search").glob("*.json")):
        search = read_search(file)
        if search.chosen:
            first = next(iter(search.tried[0].values))
            tried = sorted(search.tried, key=lambda trial: trial.values[first])
            assert len(tried) == search.trials == 3 and search.words[-2:] == ["eval.split=val", "seed=0"]
            texts = ["diverged" if trial.last is None else f"{trial.last:.2f}" for trial in tried]
            found[search.method] = [f"**{text}**" if trial.values == search.chosen else text for trial, text in zip(tried, texts)]
    assert {row[0]: row[1:] for row in body} == found
