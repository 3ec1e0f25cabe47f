"""The shell's words are completed: verbs, the keys that name a preset, and the presets, in the way each shell cuts words."""

import os
import subprocess
import sys

import pytest

from hide_llava.cli import verbs
from tests.cli.call import call


def bash(line: list[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What bash is offered for the last word of the line, which it has cut at equals signs."""
    monkeypatch.setenv("COMP_WORDS", " ".join(line))
    monkeypatch.setenv("COMP_CWORD", str(len(line) - 1))
    monkeypatch.setenv("_HIDE_LLAVA_COMPLETE", "complete_bash")
    return call().out.split()


def zsh(line: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("_TYPER_COMPLETE_ARGS", line)
    monkeypatch.setenv("_HIDE_LLAVA_COMPLETE", "complete_zsh")
    return call().out


def test_verbs_and_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    assert bash(["hide-llava", ""], monkeypatch) == list(verbs().commands)
    assert bash(["hide-llava", "pre"], monkeypatch) == ["predict", "preview"]
    assert bash(["hide-llava", "analyze", "c"], monkeypatch) == ["cka"]
    assert bash(["hide-llava", "ls", "me"], monkeypatch) == ["methods", "metrics"]


@pytest.mark.parametrize(
    "line, offered, others",
    [
        (["run", ""], {"benchmark=", "method=", "model=", "train="}, {"benchmark=ucit"}),
        (["run", "m"], {"method=", "model="}, {"train="}),
        (["run", "bench"], {"benchmark=ucit", "benchmark=coin"}, {"method="}),  # the shell adds what they have in common
        (["run", "benchmark", "="], {"ucit", "coin"}, {"hide"}),
        (["run", "benchmark", "=", "uc"], {"ucit"}, {"coin"}),
        (["check", "benchmark", "=", "ucit", "--deep", "data_root", "=", "x"], set(), {"ucit"}),
        (["plan", "benchmark", "=", "ucit", "method", "=", "hi"], {"hide"}, {"lora"}),
        (["analyze", "leakage", "benchmark", "=", "co"], {"coin"}, {"ucit"}),
        (["run", "train", "=", ""], {"default"}, {"ucit"}),
        (["run", "runs/x"], set(), {"benchmark="}),  # nothing of ours: bash offers files
        (["run", "benchmark", ""], {"benchmark="}, {"ucit"}),  # a word of its own, not the key of one
    ],
)
def test_words_as_bash_cuts_them(line: list[str], offered: set, others: set, monkeypatch: pytest.MonkeyPatch) -> None:
    found = set(bash(["hide-llava", *line], monkeypatch))
    assert offered <= found and not others & found
    assert found or not offered


def test_words_of_zsh_are_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    assert '"benchmark=ucit"' in zsh("hide-llava run benchmark=uc", monkeypatch)
    assert '"train=' in zsh("hide-llava run method=hide tr", monkeypatch)
    assert zsh("hide-llava run runs/x", monkeypatch).strip() == "_files"


def test_it_is_fast() -> None:
    """Nothing that takes long is imported at a key press (pydantic is: typer reads words with it)."""
    environment = {**os.environ, "COMP_WORDS": "hide-llava run method = hi", "COMP_CWORD": "4",
                   "_HIDE_LLAVA_COMPLETE": "complete_bash"}  # fmt: skip
    code = ("import sys, atexit; slow = {'torch', 'numpy', 'yaml', 'hide_llava.config'};"
            "atexit.register(lambda: print('|', *slow & set(sys.modules)));"
            "from hide_llava.cli import main; main([])")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert "hide\n" in done.stdout and done.stdout.rstrip().endswith("|")


def test_its_script_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("typer.completion._get_shell_name", lambda: "bash")
    called = call("--show-completion")
    assert called.code == 0 and "complete_bash" in called.out and "hide-llava" in called.out
