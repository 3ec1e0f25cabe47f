"""The commands of docs/EXPORT.md, as they are printed; those of its first block are the exports that the other tests look at."""

import json
import shlex
from pathlib import Path

import pytest

from tests.cli.call import call
from tests.interop import foreign
from tests.interop.conftest import PAGE, printed
from tests.interop.worlds import about


def test_the_pages_exports(page: Path) -> None:
    made = {folder.name: about(folder)["to"] for folder in (page / "exports").iterdir() if folder.is_dir()}
    assert made == {"lora": "hf", "lora-adapter": "peft", "hide": "peft", "hide-vllm": "vllm"}


def test_the_pages_imports(worlds: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = worlds["llava"]
    monkeypatch.chdir(tmp_path)
    for name, there in (("llava", "llava"), ("clip", "clip"), ("images", "data"), ("test.json", "data/task0/test.json")):
        (tmp_path / name).symlink_to(world / there)
    foreign.lora(world / "llava").write(tmp_path / "task-lora")
    for name in ("Task1_llava_lora", "Task2_llava_lora"):
        foreign.moelora(world / "llava").write(tmp_path / name)
    for line in printed("Import"):
        called = call(*shlex.split(line)[1:])
        assert called.code == 0, f"{line}: {called.err}"
        assert (tmp_path / "runs" / "mine").exists() == ("--check" not in line.split())
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == len(json.loads((tmp_path / "test.json").read_text()))
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == ["mine", "moelora"]


def test_the_page_has_no_other_commands_to_run() -> None:
    """Every line that begins with the program, but for the one of vLLM, is in one of the two blocks."""
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("hide-llava ")]
    assert len(lines) == len(printed("Export")) + len(printed("Import"))
