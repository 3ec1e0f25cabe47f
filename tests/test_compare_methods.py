"""scripts/compare_methods.sh: every method takes part, with the same rank per task, linears, steps, projector and search."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import hide_llava.methods.all  # noqa: F401
from hide_llava.config import compose
from hide_llava.methods.base import REGISTRY
from hide_llava.methods.registry import method_config
from hide_llava.results.searches import Search, write_search

ROOT = Path(__file__).parent.parent
SCRIPT = (ROOT / "scripts" / "compare_methods.sh").read_text()
PRESETS = re.search(r"METHODS:-([^}]*)", SCRIPT)[1].split()
TASKS, RANK = 6, 4
NAMES = ["imagenet-r", "arxivqa", "vizwiz", "iconqa", "clevr-math"]


def settings(preset: str, tasks: int = TASKS) -> list[str]:
    """The overrides that the script gives a preset of a benchmark of so many tasks."""
    function = re.search(r"^settings\(\).*?^}", SCRIPT, re.MULTILINE | re.DOTALL)[0]
    done = subprocess.run(
        ["bash", "-ec", f"TASKS={tasks}\n{function}\nsettings {preset}"], capture_output=True, text=True, check=True
    )
    return done.stdout.split()


def test_every_method_takes_part() -> None:
    methods = {compose(["benchmark=mini-ucit", "model=mini", f"method={p}"]).method["name"] for p in PRESETS}
    assert methods == {name for name in REGISTRY if not name.startswith("test_")}


@pytest.mark.parametrize("preset", PRESETS)
def test_methods_are_compared_on_equal_terms(preset: str) -> None:
    words = ["benchmark=mini-ucit", "model=mini", "train=mini", "train.max_steps=60", f"method={preset}"]
    config = compose([*words, *settings(preset)])
    method = method_config(config.method)
    assert config.train.max_steps == (60 * TASKS if preset == "multitask" else 60)
    assert getattr(method, "projector", "frozen") == "frozen"
    if hasattr(method, "rank"):
        assert method.targets == "all" and method.alpha == 2 * method.rank and method.dropout == 0
        shared = hasattr(method, "experts")  # a mixture that all tasks share has the rank of all of them together
        assert method.rank == (RANK * TASKS if shared else RANK)


@pytest.mark.parametrize("preset", ["multitask", "moelora", "smolora", "clmoe", "branchlora", "replay"])
def test_what_depends_on_the_number_of_tasks_follows_it(preset: str) -> None:
    """Five of them, an odd number: SMoLoRA has half of its experts for each gate, so it gets twice as many of half the rank."""
    words = ["benchmark=mini-ucit", f"tasks=[{','.join(NAMES)}]", "model=mini", "train=mini", f"method={preset}"]
    config = compose([*words, *settings(preset, 5)])
    expected = {"moelora": {"experts": 5, "rank": 20}, "smolora": {"experts": 10, "rank": 20}, "replay": {"buffer": 50},
                "clmoe": {"experts": 5, "rank": 20}, "branchlora": {"branches": 5, "rank": 4}}.get(preset, {})  # fmt: skip
    assert expected.items() <= config.method.items()
    assert config.train.max_steps == (300 if preset == "multitask" else -1)


# ---- the script itself, with tools that print their words instead of training ------------------------------------------
LISTED = "BENCHMARK TASKS ORDER\nmini-ucit 6 a, b\nmini-other 5 c, d\n"


@pytest.fixture
def call(tmp_path: Path):
    """The script with a `hide-llava` and a `python` that note their words; `python -c` and the list of benchmarks are real."""
    tools, noted = tmp_path / "venv" / "bin", tmp_path / "noted"
    tools.mkdir(parents=True)
    (tools / "hide-llava").write_text(
        f'#!/bin/sh\nif [ "$1" = ls ]; then printf "{LISTED}"; else echo hide-llava "$@" >> {noted}; echo Last 1.00; fi\n'
        'case "$*" in *method=ewc*gamma=9*) exit 1;; esac\n'
    )
    (tools / "python").write_text(
        f'#!/bin/sh\nif [ "$1" = -c ]; then exec {sys.executable} "$@"; fi\necho python "$@" >> {noted}\n'
        'case "$*" in *method=lwf*) exit 1;; esac\n'
    )
    for tool in tools.iterdir():
        tool.chmod(0o755)
    stamp = ["bash", "-c", "cat pyproject.toml constraints.txt | cksum"]
    told = subprocess.run(stamp, cwd=ROOT, capture_output=True, text=True)
    (tmp_path / "venv" / ".hide-llava").write_text(f"{told.stdout.strip()} caption,report\n")

    def run(*words: str, **environment: str) -> tuple[subprocess.CompletedProcess, list[str]]:
        own = {"HIDE_VENV": str(tmp_path / "venv"), "HIDE_EXTRAS": "caption,report", "OUT": str(tmp_path / "out")}
        own |= environment
        noted.unlink(missing_ok=True)
        done = subprocess.run(["bash", ROOT / "scripts" / "compare_methods.sh", *words], env={**os.environ, **own},
                              capture_output=True, text=True)  # fmt: skip
        return done, noted.read_text().splitlines() if noted.exists() else []

    return run


def test_a_search_of_every_method_and_its_table(call, tmp_path: Path) -> None:
    """One that fails stops no other; the words of a trial are those that the method's runs will have."""
    done, noted = call("--search", "eval.limit=3", METHODS="ewc lwf moelora", BENCHMARK="mini-other", TRIALS="4")
    searched = [line for line in noted if "--trials 4" in line]
    assert [re.search(r"method=(\S+)", line)[1] for line in searched] == ["ewc", "lwf", "moelora"]
    assert all(f"search_strengths.py {tmp_path}/out/search" in line and line.endswith(" eval.limit=3") for line in searched)
    assert all("benchmark=mini-other" in line and "seed=" not in line for line in searched)
    assert "method.experts=5" in searched[2] and "method.rank=20" in searched[2]
    assert noted[-1].endswith("--table") and done.returncode == 1 and "out/search/lwf.log" in done.stderr
    done, noted = call(METHODS="ewc", SEEDS="1", BENCHMARK="mini-other")
    (run, compare) = noted
    same = searched[0].split("--trials 4 ")[1].removesuffix(" eval.limit=3")
    assert run == f"hide-llava run {same} seed=1 output={tmp_path}/out/ewc-seed1" and compare.startswith("hide-llava compare ")


def test_a_search_has_the_trials_of_the_protocol(call) -> None:
    """A third, once and three times the learning rate; more only where they are asked for."""
    _, noted = call("--search", METHODS="ewc lora")
    assert ["--trials 3 " in line for line in noted] == [True, True, False]


def test_one_that_fails_leaves_the_table_of_the_others(call, tmp_path: Path) -> None:
    done, noted = call("method.gamma=9", METHODS="ewc lora", SEEDS="0")
    assert done.returncode == 1 and f"failed: {tmp_path}/out/ewc-seed0.log" in done.stderr
    assert len(noted) == 3 and noted[-1].startswith("hide-llava compare ")


def test_what_was_chosen_is_used_and_said(call, tmp_path: Path) -> None:
    common = ["benchmark=mini-ucit", "model=mini", "train=mini", "train.max_steps=60", "eval.batch_size=50"]
    values = {"train.learning_rate": 0.001667, "method.strength": 5e-05, "method.weight": None}
    file = tmp_path / "out" / "search" / "ewc.json"
    for preset, chosen in (("ewc", values), ("lwf", None), ("zero_shot", {})):  # the second is not finished
        words = [*common, f"method={preset}", *settings(preset), "method.gamma=0.5", "eval.split=val", "seed=0"]
        write_search(file.with_name(f"{preset}.json"), Search(preset, 2, words, [], chosen))
    done, noted = call("method.gamma=0.5", METHODS="ewc lora zero_shot", SEEDS="0")
    assert done.returncode == 0, done.stderr
    assert f"lora: its usual values; there is no {file.with_name('lora.json')}" in done.stderr
    words = "train.learning_rate=0.001667 method.strength=5e-05 method.weight=null"
    assert f"method.fisher_examples=120 {words} seed=0 output={tmp_path}/out/ewc-seed0 method.gamma=0.5" in noted[0]
    assert f"ewc-seed0: {words} ({tmp_path}/out/search/ewc.json)" in done.stdout
    assert "learning_rate" not in noted[1] and "search" not in done.stdout.split("lora-seed0")[1]
    gamma, limit = "method.gamma=0.5", "eval.limit=3"
    for given, benchmark, lacking in (([gamma], "mini-other", "benchmark=mini-ucit"), ([], "mini-ucit", gamma),
                                      ([gamma, limit], "mini-ucit", limit)):  # fmt: skip
        done, noted = call(*given, METHODS="ewc", SEEDS="0", BENCHMARK=benchmark)
        assert done.returncode and not noted
        assert f"ewc.json is of a search with other words ({lacking} is in one of both)" in done.stderr
    done, noted = call("method.gamma=0.5", METHODS="lwf", SEEDS="0")
    assert done.returncode and not noted
    assert "lwf.json: the search is not finished;" in done.stderr
    elsewhere = {"OUT": f"{tmp_path}/other", "SEARCH": f"{tmp_path}/out/search"}  # what was chosen on one benchmark, on another
    done, noted = call(METHODS="ewc zero_shot", SEEDS="0", BENCHMARK="mini-other", **elsewhere)
    assert done.returncode == 0, done.stderr
    assert f"{words} seed=0 output={tmp_path}/other/ewc-seed0" in noted[0] and "benchmark=mini-other" in noted[0]
    assert f"ewc-seed0: {words} ({tmp_path}/out/search/ewc.json)" in done.stdout and "learning_rate" not in noted[1]


def test_an_unknown_benchmark_needs_its_number_of_tasks(call) -> None:
    done, noted = call(METHODS="moelora", BENCHMARK="elsewhere.yaml")
    assert done.returncode == 2 and not noted and "TASKS=" in done.stderr
    done, noted = call(METHODS="moelora", BENCHMARK="elsewhere.yaml", TASKS="3", SEEDS="0")
    assert done.returncode == 0 and "benchmark=elsewhere.yaml" in noted[0] and "method.experts=3" in noted[0]
    done, noted = call("tasks=[a,b]", METHODS="moelora")
    assert done.returncode == 2 and not noted and "TASKS=2" in done.stderr
    done, noted = call("tasks=[a,b]", METHODS="moelora", TASKS="2", SEEDS="0")
    assert done.returncode == 0 and "method.experts=2" in noted[0]
