"""The examples run by the commands that their pages print, with fewer records."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from hide_llava.config import compose
from tests.test_docs import ROOT, hide_llava
from tests.tiny import arguments

EXAMPLES = ROOT / "examples"
FEW = ["limit=4", "train.epochs=1", "train.num_workers=0"]


def test_the_method_runs(world: Path, tmp_path: Path) -> None:
    """By the command of its docstring; every question takes one expert, and the second stage keeps the first task's anchor."""
    code = (EXAMPLES / "add_a_method.py").read_text()
    words = shlex.split(re.search(r"^    (hide-llava run .*)$", code, re.MULTILINE)[1])
    own = [w for w in words if w.startswith("method")]
    assert own == ["method=./examples/add_a_method.py", "method.rank=4"]
    tiny = [w for w in arguments(world, "", tmp_path / "run") if not w.startswith("method=")]
    hide_llava("run", *tiny, *own, folder=ROOT)
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert [s["status"] for s in manifest["stages"]] == ["complete"] * 3 and manifest["method"] == "nearest-expert"
    rows = [json.loads(line) for file in tmp_path.glob("run/eval/03-*/*/predictions.jsonl") for line in file.open()]
    assert len(rows) == 18 and all(sorted(row["routing"].values()) == [0.0, 0.0, 1.0] for row in rows)
    stored = [load_file(file) for file in sorted(tmp_path.glob("run/stages/*/method.safetensors"))]
    assert [sorted(k for k in s if k.endswith("count")) for s in stored][1] == ["anchor.0.count", "anchor.1.count"]
    assert all(bool((stored[0]["anchor.0.sum"] == s["anchor.0.sum"]).all()) for s in stored)


@pytest.fixture(scope="module")
def commands() -> list[list[str]]:
    (block,) = re.findall(r"^```\n(.*?)^```$", (EXAMPLES / "add_a_benchmark" / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    return [shlex.split(line) for line in block.splitlines()]


def test_the_benchmark_runs(commands: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(EXAMPLES, tmp_path / "examples")
    draw, check, lora, hide, compare = commands
    assert draw[0] == "python" and all(c[0] == "hide-llava" for c in commands[1:])
    subprocess.run([sys.executable, *draw[1:]], cwd=tmp_path, check=True, timeout=120)
    assert "error" not in hide_llava(*check[1:], folder=tmp_path).lower()
    hide_llava(*lora[1:], *FEW, folder=tmp_path)
    (run,) = (tmp_path / "runs").iterdir()
    assert len(list(run.glob("eval/*/*/score.json"))) == 3
    hide_llava("compare", f"runs/{run.name}", folder=tmp_path)
    monkeypatch.chdir(tmp_path)
    named = [compose(words[2:]).run_folder() for words in (lora, hide)]
    assert [folder.match(pattern) for folder, pattern in zip(named, compare[2:], strict=True)] == [True, True]
