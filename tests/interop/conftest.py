"""Worlds of two families, runs in them, and exports of these, each made once when it is first asked for."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.call import call
from tests.interop.worlds import KINDS, exported, trained
from tests.tiny import write_world, write_world_of

PAGE = Path(__file__).parent.parent.parent / "docs" / "EXPORT.md"


def printed(heading: str) -> list[str]:
    """The command lines of the first code block below a heading of docs/EXPORT.md."""
    section = PAGE.read_text(encoding="utf-8").split(f"## {heading}\n")[1]
    return [line.split("  #")[0].strip() for line in re.search(r"^```sh\n(.*?)^```$", section, re.DOTALL | re.M)[1].splitlines()]


@pytest.fixture(scope="session")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("worlds")
    return {kind: write_world(root / kind, 4) if kind == "llava" else write_world_of(kind, root / kind, 4) for kind in KINDS}


class Runs(dict):
    """`lora-llava` → the folder of a run of that method with that model."""

    def __init__(self, root: Path, worlds: dict[str, Path]):
        super().__init__()
        self.root, self.worlds = root, worlds

    def __missing__(self, name: str) -> Path:
        method, _, kind = name.partition("-")
        self[name] = trained(self.worlds[kind], method, self.root / name)
        return self[name]


@pytest.fixture(scope="session")
def runs(worlds: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("runs"), worlds)


@pytest.fixture(scope="session")
def page(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the export commands of docs/EXPORT.md were called as they are printed."""
    folder, before = tmp_path_factory.mktemp("page"), Path.cwd()
    (folder / "runs").mkdir()
    for name in ("lora", "hide"):
        (folder / "runs" / name).symlink_to(runs[f"{name}-llava"])
    os.chdir(folder)
    try:
        for line in printed("Export"):
            called = call(*line.split()[1:])
            assert called.code == 0, f"{line}: {called.err}"
    finally:
        os.chdir(before)
    return folder


OF_PAGE = {("lora", "hf"): "lora", ("lora", "peft"): "lora-adapter", ("hide", "peft"): "hide", ("hide", "vllm"): "hide-vllm"}


@pytest.fixture(scope="session")
def shared(runs: Runs, page: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """The export of one of the runs; nothing may be changed in it. Of LLaVA-1.5 it is one of the page's."""
    made: dict[tuple[str, str], Path] = {}

    def of(run: str, to: str) -> Path:
        method, _, kind = run.partition("-")
        if kind == "llava":
            return page / "exports" / OF_PAGE[method, to]
        if (run, to) not in made:
            made[run, to] = tmp_path_factory.mktemp("exports") / "apart" / "out"
            exported(runs[run], to, made[run, to])
        return made[run, to]

    return of
