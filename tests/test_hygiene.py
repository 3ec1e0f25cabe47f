"""Rules that are about the text of the repository."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

from hide_llava.config import compose

ROOT = Path(__file__).parent.parent
MACHINE = re.compile(r"(?<![\w.:$}])/(?:home|root|mnt|data\d?|scratch|Users|workspace|work|storage|export|nfs)/[\w.-]+")


def tracked(*suffixes: str) -> list[Path]:
    """Files git would commit: tracked, or new and not ignored."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    files = [ROOT / name for name in listed if name.endswith(suffixes) and "tests/golden/" not in name]
    files = [file for file in files if file.is_file()]
    assert files, f"no {suffixes} files found in {ROOT}"
    return files


def calls(file: Path) -> list[tuple[str, ast.Call]]:
    """(dotted name, call) of every call in a Python file."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return [(ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


def is_true(call: ast.Call, keyword: str) -> bool:
    values = [k.value for k in call.keywords if k.arg == keyword]
    return bool(values) and isinstance(values[0], ast.Constant) and values[0].value is True


def faults_of(file: Path) -> list[str]:
    """Calls that would run what a file, or a user's text, says."""
    found = []
    for name, call in calls(file):
        where = f"{file.name}:{call.lineno}: {name}"
        if name == "torch.load" and not is_true(call, "weights_only"):
            found.append(f"{where} without weights_only=True")
        if name in ("pickle.load", "pickle.loads", "pickle.Unpickler", "eval", "exec", "os.system", "yaml.load"):
            found.append(where)
        if any(k.arg == "shell" and ast.unparse(k.value) != "False" for k in call.keywords):
            found.append(f"{where} with shell=")
    return found


def test_nothing_runs_what_a_file_says() -> None:
    assert [fault for file in tracked(".py") for fault in faults_of(file)] == []


@pytest.mark.parametrize(
    "line",
    ["torch.load(p)", "torch.load(p, weights_only=False)", "pickle.load(f)", "run(c, shell=True)", "eval(x)"],
)
def test_the_rule_sees_each_fault(line: str, tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text(line)
    assert len(faults_of(tmp_path / "x.py")) == 1
    (tmp_path / "y.py").write_text("torch.load(p, weights_only=True)\nsubprocess.run(c)\nmodel.eval()")
    assert faults_of(tmp_path / "y.py") == []


def test_no_path_of_one_machine() -> None:
    found = []
    for file in tracked(".py", ".sh", ".yaml", ".yml", ".md", ".toml"):
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            found += [f"{file.relative_to(ROOT)}:{number}: {hit}" for hit in MACHINE.findall(line)]
    assert found == []


def test_the_path_rule_sees_paths() -> None:
    bad = ["x = '" + "/home" + "/me/x'", "cd " + "/mnt" + "/disk", "a: " + "/data" + "/UCIT"]
    good = ["https://host.org/data/x", "$HIDE_DATA/data/x", "the train/data/folder", "--data /path/to/data"]
    assert all(MACHINE.search(line) for line in bad) and not any(MACHINE.search(line) for line in good)


def named(file: Path) -> str:
    return f"{file.parent.name}/{file.stem}"


PARTNERS = {"benchmark": "mini-ucit", "method": "hide", "model": "mini", "train": "default"}
CONFIGS = sorted((ROOT / "configs").glob("*/*.yaml"))


@pytest.mark.parametrize("file", CONFIGS, ids=named)
def test_every_config_starts_with_the_command_that_uses_it(file: Path) -> None:
    group, first = file.parent.name, file.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# hide-llava "), f"first line: {first}"
    if group not in PARTNERS:
        return
    verb, *words = first.removeprefix("# hide-llava ").split()
    assert verb in ("run", "train", "eval") and f"{group}={file.stem}" in words, first
    config = compose(words)  # the line can be pasted
    assert config.benchmark.tasks


@pytest.mark.parametrize("file", [f for f in CONFIGS if f.parent.name in PARTNERS], ids=named)
def test_every_config_composes(file: Path) -> None:
    group = file.parent.name
    config = compose([f"{k}={v}" for k, v in {**PARTNERS, group: file.stem}.items()])
    found = {"benchmark": config.benchmark.name, "model": config.model.name, "train": config.train.name}
    assert {**found, "method": config.method["preset"]}[group] == file.stem
