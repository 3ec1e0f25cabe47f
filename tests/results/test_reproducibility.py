"""docs/REPRODUCIBILITY.md: one honest row for every method preset on every benchmark, with a command that composes."""

from __future__ import annotations

import itertools
import re
import shlex
from pathlib import Path

import pytest

from hide_llava.config import compose, names
from hide_llava.results.published import load, of_benchmark
from hide_llava.sweep import expand, is_sweep

PAGE = (Path(__file__).parents[2] / "docs" / "REPRODUCIBILITY.md").read_text(encoding="utf-8")
STATUS = ("not run", "run at toy scale", "run at 7B")
REST = ("all presets", "all other presets")


def rows() -> list[list[str]]:
    """[benchmarks, presets, status, command] of the table of runs."""
    table = PAGE.split("## Runs")[1].split("\n## ")[0]
    lines = [line.strip("|").split("|") for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line] for line in lines[2:]]


def named(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_every_preset_on_every_benchmark_has_one_row() -> None:
    explicit, rest = [], []
    for benchmarks, presets, status, _ in rows():
        assert status.startswith(STATUS), status
        if named(presets):
            explicit += itertools.product(named(presets), named(benchmarks))
        else:  # what nobody names was not run: a claim needs a name
            assert presets in REST and status == "not run", (presets, status)
            rest += named(benchmarks)
    assert sorted(rest) == names("benchmark")
    assert len(explicit) == len(set(explicit))
    assert set(explicit) <= set(itertools.product(names("method"), names("benchmark")))


def test_the_commands_compose_and_are_about_their_row() -> None:
    for benchmarks, presets, _, command in rows():
        program, verb, *words = shlex.split(command.strip("`"))
        assert (program, verb) == ("hide-llava", "run")
        config = expand(words)[0] if is_sweep(words) else compose(words)
        assert config.benchmark.name in named(benchmarks)
        assert not named(presets) or config.method["preset"] in named(presets)


def test_the_numbers_of_the_page_are_those_of_the_file() -> None:
    assert f"holds {len(load()[0])} published rows" in PAGE
    groups = of_benchmark("ucit")
    table = PAGE.split("| UCIT, LLaVA-1.5-7B, Last |")[1].split("\n\n")[0]
    for title, key in (("sequential LoRA", "lora"), ("MoELoRA", "MoELoRA"), ("O-LoRA", "O-LoRA"), ("HiDe", "hide")):
        entries = [e for e in groups[key, "LLaVA-1.5-7B"] if "last" in e.values]
        low, high, count = re.search(rf"^\| {title} \| ([\d.]+) .*?\| ([\d.]+) .*?\| (\d+) \|$", table, re.M).groups()
        values = [e.values["last"] for e in entries]
        assert (float(low), float(high)) == pytest.approx((min(values), max(values)), abs=0.005) and int(count) == len(
            values
        )
