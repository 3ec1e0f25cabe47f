"""Tiny models of every family, written once in a process."""

import pytest

from tests.families import Family, Zoo


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    return Zoo(tmp_path_factory.mktemp("zoo"))


@pytest.fixture
def family(request: pytest.FixtureRequest, zoo: Zoo) -> Family:
    """That of the kind which a test names: `parametrize("family", …, indirect=True)`."""
    return zoo(request.param)
