"""docs/REPRODUCIBILITY.md: a mark for every preset on every benchmark, as the results have it, and commands that compose."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from hide_llava.config import compose, names
from hide_llava.results.published import load, of_benchmark
from hide_llava.schema import RunConfig
from hide_llava.sweep import expand, is_sweep

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "REPRODUCIBILITY.md").read_text(encoding="utf-8")
MARKS = ("three seeds", "one run", "test", "not run", "–")


def table(first: str) -> list[list[str]]:
    """The cells of the table whose heading begins with that column, without their backticks."""
    lines = PAGE.split(f"\n| {first} |")[1].split("\n\n")[0].splitlines()[1:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if not line.startswith("|---")]


def columns() -> list[str]:
    return [c.strip() for c in PAGE.split("\n| preset | ")[1].split("\n")[0].strip(" |").split("|")][:-1]


def named(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_every_preset_has_a_row_and_every_benchmark_a_column() -> None:
    rows = table("preset")
    assert sorted(named(row[0])[0] for row in rows) == names("method")
    assert all(set(row[1:-1]) <= set(MARKS) and len(row) == len(columns()) + 2 for row in rows)
    benchmarks = [name for row in table("column") for name in named(row[1])]
    beside = named(re.search(r"^On (.*) no preset was run", PAGE, re.MULTILINE)[1])
    assert sorted([*benchmarks, *beside, "mini-ucit", "mini-dcl"]) == names("benchmark")
    assert [row[0] for row in table("column")] == columns()[1:]
    assert not [row for row in rows if set(row[2:-1]) - {"not run", "–"}]  # nothing was run at 7B


def test_what_was_run_is_on_the_pages_of_results() -> None:
    """A mark of a run is one that the pages of results show, and they show none that is not marked."""
    scores = (DOCS / "COMPARISON.md").read_text(encoding="utf-8").split("## Scores")[1].split("## Costs")[0]
    compared = {name: "three seeds" if "[1]" in notes else "one run"
                for name, notes in re.findall(r"^\| ([\w-]+)((?: ?\[\d\])*) +\|", scores, re.MULTILINE)}  # fmt: skip
    mini = (DOCS / "MINI_UCIT.md").read_text(encoding="utf-8").split("## Results")[1]
    found = re.findall(r"^\| `([\w-]+)`(.*?)\|", mini, re.MULTILINE)
    compared |= {name: "one run" if "one" in rest else "three seeds" for name, rest in found}
    compared["lora-mini"] = "one run"  # README prints the demo
    marked = {named(row[0])[0]: row[1] for row in table("preset") if row[1] in ("three seeds", "one run")}
    assert marked == compared
    other = (DOCS / "COMPARISON.md").read_text(encoding="utf-8").split("## mini-DCL")[1].split("\n## ")[0]
    rows = re.findall(r"^\| ([\w-]+) \|.* ± ", other, re.MULTILINE)
    assert sorted(rows) == sorted(marked.keys() - {"lora-mini"})
    assert "On `mini-dcl` every preset that has three seeds above" in PAGE


def test_the_commands_compose_and_are_about_their_row() -> None:
    for row in table("preset"):
        command, preset = named(row[-1])[0], named(row[0])[0]
        if command.startswith("METHODS="):
            assert command == f"METHODS={preset} bash scripts/compare_methods.sh"
            assert preset in re.search(r'METHODS:-([^}"]+)', (DOCS.parent / "scripts/compare_methods.sh").read_text())[1].split()
            continue
        config = composed(command)
        assert (config.benchmark.name, config.method["preset"]) == ("mini-ucit", preset)
    for row in table("column"):
        assert composed(named(row[2])[0]).benchmark.name in named(row[1])


def composed(command: str) -> RunConfig:
    program, verb, *words = shlex.split(command)
    assert (program, verb) == ("hide-llava", "run")
    return expand(words)[0] if is_sweep(words) else compose(words)


def test_the_numbers_of_the_page_are_those_of_the_file() -> None:
    assert f"holds {len(load()[0])} published rows" in PAGE
    groups = of_benchmark("ucit")
    table = PAGE.split("| UCIT, LLaVA-1.5-7B, Last |")[1].split("\n\n")[0]
    for title, key in (("sequential LoRA", "lora"), ("MoELoRA", "moelora"), ("O-LoRA", "olora"), ("HiDe", "hide")):
        entries = [e for e in groups[key, "LLaVA-1.5-7B"] if "last" in e.values]
        low, high, count = re.search(rf"^\| {title} \| ([\d.]+) .*?\| ([\d.]+) .*?\| (\d+) \|$", table, re.M).groups()
        values = [e.values["last"] for e in entries]
        assert (float(low), float(high)) == pytest.approx((min(values), max(values)), abs=0.005) and int(count) == len(
            values
        )
