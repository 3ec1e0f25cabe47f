from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hide_llava.backbones.clip_pixels import ImageTransform
from hide_llava.backbones.llama_tokenizer import load_tokenizer

GOLDEN = Path(__file__).parent.parent / "golden"


@pytest.fixture(scope="session")
def golden() -> Path:
    return GOLDEN


@pytest.fixture(scope="session")
def recorded():
    """Content of golden/<name>, parsed once."""
    cache: dict[str, Any] = {}

    def read(name: str) -> Any:
        if name not in cache:
            cache[name] = json.loads((GOLDEN / name).read_text(encoding="utf-8"))
        return cache[name]

    return read


@pytest.fixture(scope="session")
def cases(recorded) -> dict[str, dict]:
    """The 30 odd records of the reference's preprocessing test, by id."""
    return {case["id"]: case for case in recorded("data/preprocess_cases.json")}


@pytest.fixture(scope="session")
def tokenizer():
    return load_tokenizer(GOLDEN / "base")


@pytest.fixture(scope="session")
def transform() -> ImageTransform:
    return ImageTransform(GOLDEN / "clip")


@pytest.fixture
def write(tmp_path):
    """Write records to a JSON file and give its path."""

    def to_file(records: Any, name: str = "train.json") -> Path:
        path = tmp_path / name
        path.write_text(records if isinstance(records, str) else json.dumps(records), encoding="utf-8")
        return path

    return to_file


@pytest.fixture
def turns():
    """A question and an answer as LLaVA turns."""

    def make(*texts: str) -> list[dict[str, str]]:
        return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]

    return make
