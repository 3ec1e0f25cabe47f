"""The guides' code, YAML, JSON and commands are taken out of the pages and run on the tiny world."""

import json
import os
import re
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from hide_llava.config import compose
from hide_llava.methods.base import Method
from hide_llava.metrics import METRICS
from tests.tiny import OVERRIDES, arguments

DOCS = Path(__file__).parent.parent / "docs"
ROOT = DOCS.parent


def blocks(page: str, language: str) -> list[str]:
    """The fenced code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", (DOCS / page).read_text(), re.DOTALL | re.MULTILINE)


def files(page: str) -> dict[str, str]:
    """JSON blocks by the file that the line before them names."""
    text = (DOCS / page).read_text()
    return dict(re.findall(r"`(\S+\.json)`:\n\n```json\n(.*?)^```$", text, re.DOTALL | re.MULTILINE))


def hide_llava(*words: str | Path, path: Path | None = None, folder: Path | None = None) -> str:
    """`hide-llava WORDS…` in a new process, perhaps with a folder of plug-ins; its standard output."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{path or ROOT}{os.pathsep}{ROOT}"}
    done = subprocess.run(
        [sys.executable, "-m", "hide_llava.cli", *map(str, words)],
        capture_output=True, text=True, timeout=300, env=environment, cwd=folder or ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


# -------------------------------------------------------------------------------------------------------- the method


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The guide's files as a package that pip installs, with its entry point; the preset lies beside it."""
    folder = tmp_path_factory.mktemp("plugin")
    (code,), (preset,), (project,) = (blocks("ADD_A_METHOD.md", x) for x in ("python", "yaml", "toml"))
    group, entry, target = re.fullmatch(r'\[project\.entry-points\."(\S+)"\]\n(\S+) = "(\S+)"\n', project).groups()
    info = "orthogonal_method-1.0.dist-info"
    files = {
        "orthogonal.py": code,
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: orthogonal-method\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": f"[{group}]\n{entry} = {target}\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
    wheel = folder / "orthogonal_method-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-index",
        "--no-deps",
        "--target",
        str(folder / "site"),
    ]
    subprocess.run([*pip, str(wheel)], check=True, timeout=120)
    (folder / "site" / "orthogonal.yaml").write_text(preset)
    return folder / "site"


def test_the_guides_method_runs(plugin: Path, world: Path, tmp_path: Path) -> None:
    """As a plug-in found by its entry point, by the guide's command; its penalty does what the page says."""
    (command,) = blocks("ADD_A_METHOD.md", "sh")
    words = shlex.split(command)
    assert words[:2] == ["hide-llava", "run"]
    own = [w for w in words[2:] if w.startswith("method")]
    assert own == ["method=orthogonal.yaml", "method.rank=4"]
    compose([w for w in words[2:] if not w.startswith("method")] + ["method=lora"])  # the rest of it composes
    overlaps = {}
    for strength in (0.0, 0.1):
        run = tmp_path / f"run-{strength}"
        tiny = [w for w in arguments(world, "", run) if not w.startswith("method=")]
        hide_llava("run", *tiny, *own, f"method.strength={strength}", path=plugin, folder=plugin)
        manifest = json.loads((run / "manifest.json").read_text())
        assert [s["status"] for s in manifest["stages"]] == ["complete"] * 3 and manifest["method"] == "orthogonal"
        assert len(list(run.glob("eval/*/*/score.json"))) == 6
        logs = {p.parent.name: p.read_text() for p in run.glob("stages/*/trainer_log.jsonl")}
        assert ["loss/overlap" in logs[name] for name in sorted(logs)] == [False, True, True]
        stored = [load_file(p) for p in sorted(run.glob("stages/*/adapter/adapter_model.safetensors"))]
        assert len(stored) == 3 and all(t.shape[0] == 4 for t in stored[0].values() if t.shape[0] < t.shape[1])
        pairs = [(stored[1][k], stored[0][k]) for k in stored[0] if "lora_A" in k]
        overlaps[strength] = float(sum((new @ old.T).abs().sum() for new, old in pairs))
    assert overlaps[0.1] < 0.8 * overlaps[0.0]
    assert "orthogonal" in hide_llava("ls", "methods", path=plugin)


def test_the_hook_table_is_complete() -> None:
    """Every public member of the contract is in the table, and nothing else."""
    table = (DOCS / "ADD_A_METHOD.md").read_text().split("## The hooks")[1].split("## The route")[0]
    first = "\n".join(row.split("|")[1] for row in table.splitlines() if "|" in row)
    named = set(re.findall(r"`(\w+)(?:\([^`]*\))?`", first))
    members = {n for n in vars(Method) if not n.startswith("_") and n != "name"}
    assert named == members


# ------------------------------------------------------------------------------------------------------ the benchmark


def test_the_guides_benchmark_runs(world: Path, tmp_path: Path) -> None:
    """Its YAML composes, its files are read, planned, trained and scored by the guide's two commands."""
    (description,) = blocks("ADD_A_BENCHMARK.md", "yaml")
    (tmp_path / "shapes.yaml").write_text(description)
    written = files("ADD_A_BENCHMARK.md")
    for name, text in written.items():
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_text(text)
    for name, colour in (("red", "red"), ("blue", "blue")):
        picture = tmp_path / "data" / "shapes" / "images" / "a" / f"{name}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (30, 20), colour).save(picture)
    (commands,) = blocks("ADD_A_BENCHMARK.md", "sh")
    plan, run = (shlex.split(line)[1:] for line in commands.splitlines())
    config = compose([w if not w.startswith("benchmark=") else f"benchmark={tmp_path}/shapes.yaml" for w in run[1:]])
    named = [f for t in config.benchmark.tasks for f in (t.train, t.test, t.references) if f]
    assert {f"{config.benchmark.instructions}/{f}" for f in named} == set(written)
    tiny = [f"model={world}/model.yaml", *OVERRIDES, "train.global_batch_size=2", "eval.batch_size=2"]

    def here(words: list[str]) -> list[str]:
        return [*(w for w in words if not w.startswith(("model=", "train="))), *tiny, f"output={tmp_path}/run"]

    text = hide_llava(*here(plan), folder=tmp_path)
    assert "3 records × 2 epoch(s)" in text and "2 records × 2 epoch(s)" in text
    pytest.importorskip("pycocoevalcap")
    hide_llava(*here(run), folder=tmp_path)
    scores = {str(p.parent.relative_to(tmp_path / "run" / "eval")): json.loads(p.read_text())
              for p in tmp_path.glob("run/eval/*/*/score.json")}  # fmt: skip
    assert set(scores) == {"01-name/name", "02-describe/name", "02-describe/describe"}
    assert all(s["n_scored"] == s["n_expected"] == 2 for s in scores.values())
    stored = load_file(tmp_path / "run" / "stages" / "02-describe" / "method.safetensors")
    counts = {k: int(v) for k, v in stored.items() if k.endswith("count")}
    assert counts == {"image_anchor.0.count": 4, "text_anchor.0.count": 6, "image_anchor.1.count": 4,
                      "text_anchor.1.count": 4}  # fmt: skip
    assert all(torch.isfinite(t).all() for t in stored.values())


def test_the_metric_table_is_complete() -> None:
    table = (DOCS / "ADD_A_BENCHMARK.md").read_text().split("## The metrics")[1].split("## Check it")[0]
    first = "\n".join(row.split("|")[1] for row in table.splitlines() if row.startswith("| `") and "metric:" not in row)
    assert set(re.findall(r"`(\w+)`", first)) == set(METRICS)
