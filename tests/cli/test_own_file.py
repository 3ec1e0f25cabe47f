"""`method=./my_method.py`: found by every verb from then on, refused when it changed, its errors told in a sentence."""

import re
import shutil
import sys
from pathlib import Path

import pytest
import yaml

import hide_llava.methods.all  # noqa: F401  (so that the copy of the registry has them)
from hide_llava.config import compose, from_yaml, to_yaml
from hide_llava.errors import UserError
from hide_llava.methods import base
from tests.cli.call import assert_refusal, call, content
from tests.tiny import arguments
from tests.torchrun import forked

CODE = """
from hide_llava.methods.base import register
from hide_llava.methods.lora import SequentialLora


@register
class Mine(SequentialLora):
    name = "mine"

    class Config(SequentialLora.Config):
        strength: float = 0.5
"""


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hide_llava.methods.base.REGISTRY", dict(base.REGISTRY))
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "my_method.py").write_text(CODE)
    return tmp_path / "mine" / "my_method.py"


def own(method: Path, *more: str) -> object:
    return compose(["benchmark=ucit", "model=llava-1.5-7b", f"method={method}", *more])


def forget() -> None:
    """As in a new process, which has not loaded the file."""
    if cls := base.REGISTRY.pop("mine", None):
        sys.modules.pop(cls.__module__)


def test_every_verb_finds_it_by_the_run_alone(
    file: Path, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trained from the file's folder by two processes, then evaluated, planned and asked from elsewhere by the run's name."""
    run = tmp_path / "run"
    short = arguments(world, "./my_method.py", run, "train.max_steps=1", "method.rank=2")
    done = forked("hide_llava.cli", "train", *short, place=file.parent, seconds=500)
    assert done.returncode == 0, done.stderr[-3000:]
    section = yaml.safe_load((run / "config.yaml").read_text())["method"]
    assert (section["name"], section["preset"], section["file"]) == ("mine", "my_method", str(file))
    assert (section["rank"], section["strength"]) == (2, 0.5) and re.fullmatch("[0-9a-f]{64}", section["file_sha256"])

    monkeypatch.chdir(tmp_path)
    asked = ("--stage", "1", "--questions", world / "data" / "task0" / "test.json", "--images", world / "data")
    stages = {f: h for f, h in content(run).items() if f.startswith("stages/")}
    for words in (("eval", run), ("plan", run), ("report", run), ("run", *short[:2], f"method={file}", *short[3:]),
                  ("predict", run, *asked, "--output", tmp_path / "a.jsonl")):  # fmt: skip
        forget()
        called = call(*words)
        assert called.code == 0, called.err
    assert len(list(run.glob("eval/*/*/score.json"))) == 6
    assert {f: h for f, h in content(run).items() if f.startswith("stages/")} == stages

    moved = shutil.move(file, tmp_path / "elsewhere.py")
    forget()
    called = call("eval", run)
    assert_refusal(called.code, called.err, f"{file}: no such file", "Put it back", "method.file=PATH")
    called = call("eval", run, "method.file=elsewhere.py")
    assert called.code == 0, called.err
    Path(moved).write_text(CODE + "\n# another comment\n")
    forget()
    called = call("eval", run, "method.file=elsewhere.py")
    assert_refusal(called.code, called.err, "elsewhere.py has changed since this run was made", "another output=")


def test_its_preset_lies_beside_it_or_names_it(file: Path) -> None:
    assert own(file).method["strength"] == 0.5 and own(file, "method.strength=2").method["strength"] == 2
    file.with_suffix(".yaml").write_text("method: {strength: 0.1}\ntrain: {epochs: 3}\n")
    beside = own(file)
    assert (beside.method["strength"], beside.train.epochs, beside.method["preset"]) == (0.1, 3, "my_method")
    (file.parent / "strong.yaml").write_text("method: {file: my_method.py, strength: 9}\n")
    strong = own(file.parent / "strong.yaml")
    assert (strong.method["strength"], strong.method["preset"], strong.method["file"]) == (9, "strong", str(file))
    assert beside.run_folder() == Path("runs/ucit-my_method-llava-1.5-7b-seed42")
    (file.parent / "run.yaml").write_text(to_yaml(strong))
    assert from_yaml(file.parent / "run.yaml").method == strong.method


def test_a_changed_file_is_no_longer_the_runs(file: Path) -> None:
    (file.parent / "run.yaml").write_text(to_yaml(own(file)))
    file.write_text(CODE.replace("0.5", "0.7"))
    with pytest.raises(UserError, match=r"my_method.py has changed since this run was made \(sha256 .* then, .* now\)"):
        from_yaml(file.parent / "run.yaml")
    assert own(file).method["strength"] == 0.7  # a new run takes the file as it is


@pytest.mark.parametrize(
    "code, says",
    [
        (None, "my_method.py: no such file"),
        ("import does_not_exist_xyz\n", "my_method.py, line 1: ModuleNotFoundError: No module named 'does_not_exist_xyz'"),
        ("x = 1\ndef (:\n", "my_method.py, line 2: SyntaxError"),
        ("\n\nraise SystemExit(3)\n", "my_method.py, line 3: SystemExit: 3"),
        ("x = 1\n", "registers no method; put @register above a subclass of Method"),
        (CODE.replace("@register\n", ""), "registers no method"),
        (CODE + CODE.replace("Mine", "Other").replace('"mine"', '"other"'), "registers several methods (mine, other)"),
        (CODE.replace('"mine"', '"lora"'), "method 'lora' is both hide_llava.methods.lora:SequentialLora and"),
    ],
)
def test_errors_in_the_file_are_sentences(code: str | None, says: str, file: Path, world: Path, tmp_path: Path) -> None:
    file.unlink() if code is None else file.write_text(code)
    called = call("run", *arguments(world, str(file), tmp_path / "run"))
    assert_refusal(called.code, called.err, says)
    assert not (tmp_path / "run").exists()


def test_of_several_the_yaml_chooses(file: Path) -> None:
    file.write_text(CODE + CODE.replace("Mine", "Other").replace('"mine"', '"other"'))
    file.with_suffix(".yaml").write_text("method: {name: other}\n")
    assert own(file).method["name"] == "other"
    file.with_suffix(".yaml").write_text("method: {name: third}\n")
    with pytest.raises(UserError, match="registers no method 'third', but mine, other"):
        own(file)


def test_two_files_with_one_name_are_refused(file: Path) -> None:
    """Otherwise the one that was read last would be trained under both presets."""
    shutil.copy(file, file.parent / "copy.py")
    own(file)
    with pytest.raises(UserError, match=r"method 'mine' is both .*my_method.py:Mine and .*copy.py:Mine; rename one"):
        own(file.parent / "copy.py")


def test_a_name_without_its_ending_is_a_hint(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.parent)
    with pytest.raises(UserError, match=r"unknown method 'my_method'. Did you mean method=./my_method.py\?"):
        own(Path("my_method"))
