"""The guides' code, YAML, JSON and commands are taken out of the pages and run on the tiny world."""

import json
import re
import shlex
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import hide_llava.methods.all
from hide_llava.config import compose
from hide_llava.methods import base
from hide_llava.methods.base import Method
from hide_llava.metrics import METRICS
from hide_llava.sweep import expand, is_sweep
from tests.cli.call import known_verbs, understood
from tests.faults import processes
from tests.tiny import OVERRIDES, arguments

DOCS = Path(__file__).parent.parent / "docs"
ROOT = DOCS.parent
README = ROOT / "README.md"


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one test registers is not known to the next."""
    monkeypatch.setattr("hide_llava.methods.base.REGISTRY", dict(base.REGISTRY))


def blocks(page: str, language: str) -> list[str]:
    """The fenced code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", (DOCS / page).read_text(), re.DOTALL | re.MULTILINE)


def files(page: str) -> dict[str, str]:
    """JSON blocks by the file that the line before them names."""
    text = (DOCS / page).read_text()
    return dict(re.findall(r"`(\S+\.json)`:\n\n```json\n(.*?)^```$", text, re.DOTALL | re.MULTILINE))


def hide_llava(*words: str | Path, path: Path | None = None, folder: Path | None = None) -> str:
    """`hide-llava WORDS…` in a new process, perhaps with a folder of plug-ins; its standard output."""
    processes.start_server()
    with tempfile.TemporaryDirectory() as streams:
        done = processes.begin(Path(streams), processes.run_at, folder or ROOT, [*map(str, words)], path).wait(300)
    assert done.code == 0, done.err[-3000:]
    return done.out


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


def test_the_guides_method_runs(world: Path, tmp_path: Path) -> None:
    """As a file, by the guide's command; its preset lies beside it, and its penalty does what the page says."""
    (code,), (preset,), (command,) = (blocks("ADD_A_METHOD.md", x) for x in ("python", "yaml", "sh"))
    (tmp_path / "orthogonal.py").write_text(code)
    (tmp_path / "orthogonal.yaml").write_text(preset)
    words = shlex.split(command)
    assert words[:2] == ["hide-llava", "run"]
    own = [w for w in words[2:] if w.startswith("method")]
    assert own == ["method=./orthogonal.py", "method.rank=4"]
    compose([w for w in words[2:] if not w.startswith("method")] + ["method=lora"])  # the rest of it composes
    overlaps = {}
    for strength in (None, 0.0):
        run = tmp_path / f"run-{strength}"
        tiny = [w for w in arguments(world, "", run) if not w.startswith("method=")]
        hide_llava("run", *tiny, *own, *([] if strength is None else ["method.strength=0"]), folder=tmp_path)
        manifest = json.loads((run / "manifest.json").read_text())
        assert [s["status"] for s in manifest["stages"]] == ["complete"] * 3 and manifest["method"] == "orthogonal"
        assert len(list(run.glob("eval/*/*/score.json"))) == 6
        logs = {p.parent.name: p.read_text() for p in run.glob("stages/*/trainer_log.jsonl")}
        assert ["loss/overlap" in logs[name] for name in sorted(logs)] == [False, True, True]
        stored = [load_file(p) for p in sorted(run.glob("stages/*/adapter/adapter_model.safetensors"))]
        assert len(stored) == 3 and all(t.shape[0] == 4 for t in stored[0].values() if t.shape[0] < t.shape[1])
        pairs = [(stored[1][k], stored[0][k]) for k in stored[0] if "lora_A" in k]
        overlaps[strength] = float(sum((new @ old.T).abs().sum() for new, old in pairs))
    assert overlaps[None] < 0.8 * overlaps[0.0]  # the preset's strength is 0.1


def test_the_guides_method_is_found_in_a_package(plugin: Path, world: Path, tmp_path: Path) -> None:
    """By its entry point: its name means the defaults of its Config."""
    tiny = [w for w in arguments(world, "", tmp_path / "run") if not w.startswith("method=")]
    text = hide_llava("plan", *tiny, "method=orthogonal", path=plugin, folder=plugin)
    assert text.startswith("orthogonal on tiny with tiny") and "'orthogonal' has no cost()" in text
    assert "orthogonal" in hide_llava("ls", "methods", path=plugin)


def test_the_hook_table_is_complete() -> None:
    """Every public member of the contract is in the table, and nothing else."""
    table = (DOCS / "ADD_A_METHOD.md").read_text().split("## The hooks")[1].split("## The route")[0]
    first = "\n".join(row.split("|")[1] for row in table.splitlines() if "|" in row)
    named = set(re.findall(r"`(\w+)(?:\([^`]*\))?`", first))
    members = {n for n in vars(Method) if not n.startswith("_") and n != "name"}
    assert named == members


# --------------------------------------------------------------------------------------------------------- the README


def test_the_readmes_method_runs(tmp_path: Path) -> None:
    """Its lines as they are printed, with a few records of two tasks instead of all; nothing but that is added."""
    text = README.read_text()
    (code,) = re.findall(r"^```python\n# my_method\.py.*?\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    (tmp_path / "my_method.py").write_text(code)
    lines = re.search(r"^```\n(echo .*?)^```$", text, re.DOTALL | re.MULTILINE)[1].splitlines()
    lines = [line.partition("  #")[0].strip() for line in lines]
    assert [line.split()[0] for line in lines] == ["echo", "hide-llava", "hide-llava"]
    preset, file = re.fullmatch(r"echo '(.*)' > (\S+)", lines[0]).groups()
    (tmp_path / file).write_text(f"{preset}\n")
    few = ["tasks=[imagenet-r,iconqa]", "limit=6", "train.num_workers=0"]
    run, again = (shlex.split(line)[1:] for line in lines[1:])
    out = hide_llava(*run, *few, folder=tmp_path)
    (made,) = (tmp_path / "runs").iterdir()
    assert made.name == "mini-ucit-my_method-mini-seed42-imagenet-r+iconqa-limit6" and f"run: runs/{made.name}" in out
    assert Path(again[1]).name == compose(["benchmark=mini-ucit", f"method={tmp_path}/my_method.py"]).run_folder().name
    out = hide_llava(again[0], f"runs/{made.name}", folder=tmp_path)
    assert "loading" not in out and "Last" in out


def printed() -> list[str]:
    """Every command line of the README and the guides, in code blocks and in running text, without its comment."""
    found: dict[str, None] = {}
    for page in [README, *sorted(DOCS.rglob("*.md"))]:
        text = page.read_text()
        blocks = re.findall(r"^ *```\w*\n(.*?)^ *```$|((?:^    \S.*\n)+)", text, re.DOTALL | re.MULTILINE)
        lines = [line.strip() for block in blocks for line in "".join(block).splitlines()]
        prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
        inline = [" ".join(code.split()) for code in re.findall(r"`(hide-llava [a-z][^`]*)`", prose)]
        for line in [*lines, *inline]:
            line = re.split(r"\s+#", line)[0].strip()
            if line.startswith("hide-llava "):
                found[line] = None
    return list(found)


PLACEHOLDERS = ("…", "|", " N")  # `… score --option case=insensitive …`, `ls methods|benchmarks`, `--seed N`


@pytest.mark.parametrize("line", printed())
def test_every_printed_command_is_understood(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its verb and options parse, and its configuration composes; `compare`, `report`, … of runs need those runs."""
    monkeypatch.chdir(tmp_path)
    verb = line.split()[1]
    assert verb in known_verbs(), line
    if any(mark in line for mark in PLACEHOLDERS) or len(line.split()) == 2:
        return
    words = understood(*shlex.split(line)[1:]).options.get("overrides")
    if not words or "=" not in words[0]:
        return
    (tmp_path / "my_method.py").write_text(re.search(r"^```python\n(.*?)^```$", README.read_text(), re.DOTALL | re.M)[1])
    (tmp_path / "orthogonal.py").write_text(blocks("ADD_A_METHOD.md", "python")[0])
    (tmp_path / "shapes.yaml").write_text(blocks("ADD_A_BENCHMARK.md", "yaml")[0])
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    if verb in ("check", "analyze", "preview", "fetch"):
        words = ["method=zero_shot", "model=llava-1.5-7b", *words]
    configs = expand(words) if is_sweep(words) else [compose(words)]
    assert configs, line


def test_installs_that_are_named_exist() -> None:
    """The package is on no index, so what a message tells to install must work in a checkout, by an extra that exists."""
    section = (ROOT / "pyproject.toml").read_text().split("[project.optional-dependencies]")[1].split("\n[")[0]
    extras = set(re.findall(r"^([\w-]+) = \[", section, re.MULTILINE))
    files = [p for d in ("hide_llava", "docs", "scripts", "configs") for p in (ROOT / d).rglob("*") if p.suffix in
             (".py", ".md", ".sh", ".yaml")] + [README]  # fmt: skip
    named = [(p.name, name) for p in files for name in re.findall(r"pip install -e '\.\[([\w,-]+)\]'", p.read_text())]
    assert len(named) > 10 and all(set(name.split(",")) <= extras for _, name in named), named
    assert not [p.name for p in files if "install 'hide-llava" in p.read_text()]


def test_the_readme_says_how_the_command_is_found() -> None:
    """Before it is used the first time in a block: a newcomer types it."""
    text = README.read_text()
    assert text.index("source .venv/bin/activate") < text.index("\nhide-llava ")


# ------------------------------------------------------------------------------------------------------ the benchmark


def test_the_guides_benchmark_runs(world: Path, tmp_path: Path) -> None:
    """Its YAML composes, its files are read, planned, trained and scored by the guide's three commands."""
    (description,) = blocks("ADD_A_BENCHMARK.md", "yaml")
    (tmp_path / "shapes.yaml").write_text(description)
    written = files("ADD_A_BENCHMARK.md")
    for name, text in written.items():
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_text(text)
    for colour in ("red", "blue", "green", "yellow"):
        picture = tmp_path / "data" / "shapes" / "images" / "a" / f"{colour}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (30, 20), colour).save(picture)
    (commands,) = blocks("ADD_A_BENCHMARK.md", "sh")
    check, plan, run = (shlex.split(line)[1:] for line in commands.splitlines())
    config = compose([w if not w.startswith("benchmark=") else f"benchmark={tmp_path}/shapes.yaml" for w in run[1:]])
    named = [f for t in config.benchmark.tasks for f in (t.train, t.test, t.references) if f]
    assert {f"{config.benchmark.instructions}/{f}" for f in named} == set(written)
    tiny = [f"model={world}/model.yaml", *OVERRIDES, "train.global_batch_size=2", "eval.batch_size=2"]

    def here(words: list[str]) -> list[str]:
        return [*(w for w in words if not w.startswith(("model=", "train="))), *tiny, f"output={tmp_path}/run"]

    assert "shapes under data: sound" in hide_llava(*check, folder=tmp_path)
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
