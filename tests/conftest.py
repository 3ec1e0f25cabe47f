"""Shared fixtures: quiet upstream, one thread (recordings and bit-for-bit tests need a fixed summation order)."""

import os

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from transformers.utils import logging

torch.set_num_threads(1)
logging.set_verbosity_error()
logging.disable_progress_bar()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Tests of a group share a process: pytest 9.2 ignores how xdist 3.8 says so, and then two DeepSpeed launches meet."""
    if getattr(session.config.option, "loadgroup", False):
        apart = [i.nodeid for i in session.items if i.get_closest_marker("xdist_group") and "@" not in i.nodeid]
        if apart:
            raise pytest.UsageError(f"xdist_group has no effect here ({apart[0]}); install pytest as in constraints.txt.")


@pytest.fixture(autouse=True, scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory):
    """Arrow tables go to a folder of this test session."""
    before = os.environ.get("HIDE_CACHE")
    os.environ["HIDE_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    os.environ.pop("HIDE_CACHE") if before is None else os.environ.__setitem__("HIDE_CACHE", before)
