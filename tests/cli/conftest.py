"""A tiny world and one finished run in it, shared by the tests of the command line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.call import call
from tests.tiny import arguments, write_world


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def finished(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of `hide`; tests that change it take `run`."""
    folder = tmp_path_factory.mktemp("runs") / "hide"
    called = call("run", *arguments(world, "hide", folder, "train.epochs=1"))
    assert called.code == 0, called.err
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def mine(world: Path, tmp_path: Path) -> Path:
    """A copy of the benchmark's data, and a bench.yaml beside it, to be damaged."""
    shutil.copytree(world / "data", tmp_path / "mine" / "data")
    shutil.copy(world / "bench.yaml", tmp_path / "mine" / "bench.yaml")
    return tmp_path / "mine"


@pytest.fixture
def words(world: Path, mine: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """Words of a run of `hide` on `mine`."""

    def make(*more: str, method: str = "hide") -> list[str]:
        given = arguments(world, method, tmp_path / "out", "train.epochs=1", *more)
        return [f"benchmark={mine}/bench.yaml", *given[1:3], f"data_root={mine}", *given[4:]]

    return make


def edit(file: Path, change: Callable[[Any], Any]) -> None:
    """Rewrite a JSON file with what `change` returns, or with its argument changed in place."""
    value = json.loads(file.read_text())
    result = change(value)
    file.write_text(json.dumps(value if result is None else result))
