"""The speed harnesses run at toy size and print complete tables. Nothing here looks at how fast anything is."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TOY = {"hidden": 32, "layers": 2, "heads": 2, "vocabulary": 64, "vision-hidden": 16, "image-tokens": 4,
       "prompt-tokens": 6, "experts": 2, "rank": 2, "rounds": 1}  # fmt: skip


def harness(name: str, *more: str) -> str:
    words = [sys.executable, str(ROOT / "perf" / f"{name}.py"), *(f"--{k}={v}" for k, v in TOY.items()), *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def rows(output: str) -> list[dict[str, str]]:
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in output.splitlines() if line[:1] == "|"]
    return [dict(zip(lines[0], line)) for line in lines[2:]]


@pytest.fixture(scope="module")
def generation() -> str:
    return harness("generation", "--batch", "1,2", "--new-tokens", "3", "--no-memory")


def test_generation_prints_every_variant(generation: str) -> None:
    table = rows(generation)
    wanted = [("base", "1"), ("hide", "1"), ("naive", "1"), ("base", "2"), ("hide", "2")]
    assert [(row["variant"], row["batch"]) for row in table] == wanted
    for row in table:
        assert all(float(row[key]) > 0 for key in ("ms/sample", "ratio to base", "CPU-time ratio", "ratio to hide"))


def test_the_folded_and_the_naive_model_are_the_same_function(generation: str) -> None:
    assert "hide and naive give the same tokens: yes" in generation


def test_training_step_prints_every_variant_and_trains_one_task_only() -> None:
    table = rows(harness("training_step", "--batch", "1", "--answer-tokens", "3"))
    assert [row["variant"] for row in table] == ["peft", "hide", "naive"]
    for row in table:
        assert all(float(row[key]) > 0 for key in ("ms/sample", "ratio to peft", "CPU-time ratio", "peak MiB"))
    peft, hide, naive = (int(row["optimizer state bytes"]) for row in table)
    assert hide == peft < naive
