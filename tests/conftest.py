"""Shared fixtures: quiet upstream, one thread (recordings and bit-for-bit tests need a fixed summation order)."""

import gc
import os

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from pathlib import Path

import hypothesis
import pytest
import torch
from transformers.utils import logging

from tests.tiny import write_world

torch.set_num_threads(1)
hypothesis.settings.register_profile("no deadline", deadline=None)  # a busy machine is not a fault
hypothesis.settings.load_profile("no deadline")
logging.set_verbosity_error()
logging.disable_progress_bar()


def pytest_configure(config: pytest.Config) -> None:
    """Tests of a group must share a process, else two DeepSpeed launches meet: pytest 9.2 drops xdist 3.8's groups."""
    if config.getoption("dist", "no") == "loadgroup" and pytest.version_tuple >= (9, 2):
        raise pytest.UsageError("xdist_group has no effect under pytest 9.2; install what constraints.txt names.")


# Files and folders whose tests are left out of the default lane (scripts/test.sh), by the marker that they get.
LANES = {
    "faults": ("faults/",),
    "distributed": ("methods/test_two_processes.py", "training/test_launch.py", "training/test_engines.py",
                    "training/test_uneven.py", "training/test_other_families.py"),
    "slow": ("methods/test_contract.py", "methods/test_every_backbone.py", "simulated_cuda/", "test_every_preset.py",
             "benchmarks/test_every_benchmark.py", "test_perf_smoke.py",
             "test_docs.py", "test_examples.py", "test_grid.py", "test_scripts.py", "training/test_plan.py",
             "evaluation/test_binding.py",
             "cli/test_bad_input.py", "cli/test_own_file.py", "cli/test_verbs.py", "audit/test_memory.py",
             "data/test_table_memory.py"),
}  # fmt: skip
QUICK = ("test_contract.py::", "[hide")  # of a slow file, what is in the default lane all the same: one method's contract


@pytest.hookimpl(tryfirst=True)  # xdist then reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each test the marker of its lane, and keep those together that share what one of them makes.

    xdist hands out tests without a group one by one, so that every process would make what a file of tests shares.
    """
    for item in items:
        place = item.nodeid.removeprefix("tests/")
        for lane, places in LANES.items():
            if place.startswith(places) and not (QUICK[0] in place and f"{QUICK[1]}]" in place.replace("-float32", "")):
                item.add_marker(lane)
        scopes = {made.scope for fixtures in item._fixtureinfo.name2fixturedefs.values() for made in fixtures}
        if "module" in scopes and item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(place.partition("::")[0]))


def pytest_collection_finish() -> None:
    """What importing has made is never searched for garbage again: accelerate collects at the start of every task."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory):
    """Arrow tables go to a folder of this test session."""
    before = os.environ.get("HIDE_CACHE")
    os.environ["HIDE_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    os.environ.pop("HIDE_CACHE") if before is None else os.environ.__setitem__("HIDE_CACHE", before)


@pytest.fixture(autouse=True, scope="session")
def unsynced():
    """Nothing is forced onto the disk, for which every file would wait: it matters where the machine stops, not the process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(autouse=True)
def seeded():
    """What a test draws without a generator of its own does not depend on the tests that ran before it in its process."""
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny world, in a folder of each file of tests."""
    return write_world(tmp_path_factory.mktemp("world"))
