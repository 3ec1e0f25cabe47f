"""One tiny model for all runs on synthetic data, and files of one's own."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tiny import write_model


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The YAML of a random LLaVA of two layers."""
    folder = tmp_path_factory.mktemp("model")
    write_model(folder)
    (folder / "model.yaml").write_text(json.dumps({
        "model": {"name": "tiny", "path": str(folder / "llava"), "clip": str(folder / "clip"), "device": "cpu"}}))  # fmt: skip
    return folder / "model.yaml"


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], Path]:
    """Write a text to a file of this name."""

    def to_file(name: str, text: str) -> Path:
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return to_file
