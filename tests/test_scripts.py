"""scripts/train_all.sh and Eval_all.sh: what they call, and what they say to a slip. Nothing is installed or trained."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hide_llava import launch

ROOT = Path(__file__).parent.parent


@pytest.fixture
def call(tmp_path: Path):
    """The scripts with an environment in which `hide-llava` and `python -m` print their words, and torch sees GPUS."""
    tools = tmp_path / "venv" / "bin"
    tools.mkdir(parents=True)
    (tools / "hide-llava").write_text('#!/bin/sh\necho hide-llava "$@"\n')
    (tools / "python").write_text('#!/bin/sh\nif [ "$1" = -c ]; then echo "${GPUS:-0}"; else echo python "$@"; fi\n')
    for tool in tools.iterdir():
        tool.chmod(0o755)
    told = subprocess.run(["bash", "-c", "cat pyproject.toml constraints.txt | cksum"], cwd=ROOT, capture_output=True, text=True)
    (tmp_path / "venv" / ".hide-llava").write_text(f"{told.stdout.strip()} caption,report\n")

    def run(script: str, *words: str, **environment: str) -> subprocess.CompletedProcess:
        own = {"HIDE_VENV": str(tmp_path / "venv"), "HIDE_EXTRAS": "caption,report", **environment}
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "NPROC", "NNODES", "MODEL"))}
        return subprocess.run(["bash", ROOT / "scripts" / script, *words], env={**kept, **own}, capture_output=True, text=True)

    return run


@pytest.mark.parametrize(
    "words, called",
    [
        ((), ["benchmark=ucit", "method=hide", "model=llava-1.5-7b"]),
        (("mini-ucit",), ["benchmark=mini-ucit", "method=hide", "model=llava-1.5-7b"]),
        (("benchmark=mini-ucit",), ["benchmark=mini-ucit", "method=hide", "model=llava-1.5-7b"]),
        (("ucit", "lora", "model=mini", "train.epochs=2"),
         ["benchmark=ucit", "method=lora", "model=mini", "train.epochs=2"]),
        (("train.epochs=2", "method=lora", "task_order=[b, a]"),
         ["benchmark=ucit", "method=lora", "model=llava-1.5-7b", "train.epochs=2", "task_order=[b, a]"]),
    ],
)  # fmt: skip
def test_words_become_a_configuration(words: tuple[str, ...], called: list[str], call) -> None:
    done = call("train_all.sh", *words)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("hide-llava run ")
    assert sorted(done.stdout.removeprefix("hide-llava run ").split()) == sorted(" ".join(called).split())


def test_torch_counts_the_gpus(call) -> None:
    """Not nvidia-smi, which lists those that CUDA_VISIBLE_DEVICES hides."""
    done = call("train_all.sh", GPUS="2")
    assert "python -m hide_llava.launch --nnodes 1 --nproc-per-node 2 " in done.stdout
    assert "-m hide_llava.cli run " in done.stdout
    assert "--nproc-per-node 3 " in call("Eval_all.sh", GPUS="2", NPROC="3").stdout
    assert call("Eval_all.sh", GPUS="1").stdout.startswith("hide-llava eval ")


@pytest.mark.parametrize("name", ["NPROC", "NNODES"])
@pytest.mark.parametrize("count", ["0", "abc", "-1", "1.5"])
def test_what_is_no_number_of_processes_is_told(name: str, count: str, call) -> None:
    done = call("train_all.sh", **{name: count})
    assert done.returncode == 2 and done.stderr == f"error: {name}={count}: how many is a whole number, 1 or more.\n"


@pytest.mark.parametrize("script, says", [("train_all.sh", "hide-llava run"), ("Eval_all.sh", "hide-llava eval")])
def test_help_and_slips(script: str, says: str, call) -> None:
    done = call(script, "--help")
    assert done.returncode == 0 and says in done.stdout and f"bash scripts/{script} [benchmark]" in done.stdout
    for words, sentence in ((("--epochs", "3"), "'--epochs' is no option; write key=value."),
                            (("ucit", "hide", "lora"), "'lora' is neither benchmark nor method")):  # fmt: skip
        done = call(script, *words)
        assert done.returncode == 2 and sentence in done.stderr.splitlines()[0] and says in done.stderr


def test_the_sentence_of_the_first_failure_comes_last() -> None:
    words = ["--standalone", "--nproc-per-node", "2", "-m", "hide_llava.cli", "plan", "benchmark=ucitt"]
    done = subprocess.run([sys.executable, "-m", "hide_llava.launch", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1] == "error: unknown benchmark 'ucitt'. Did you mean 'ucit'?"
    assert "ChildFailedError" not in done.stderr


def test_without_torchrun_a_sentence_is_only_printed(capsys, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(launch.ERROR_FILE, raising=False)
    launch.tell("error: a")
    assert capsys.readouterr().err == "error: a\n" and not list(tmp_path.iterdir())
