"""scripts/compare_methods.sh: every method takes part, with the same rank per task, linears, steps and projector."""

import re
import subprocess
from pathlib import Path

import pytest

import hide_llava.methods.all  # noqa: F401
from hide_llava.config import compose
from hide_llava.methods.base import REGISTRY
from hide_llava.methods.registry import method_config

SCRIPT = (Path(__file__).parent.parent / "scripts" / "compare_methods.sh").read_text()
PRESETS = re.search(r"METHODS:-([^}]*)", SCRIPT)[1].split()
TASKS, RANK = 6, 4


def settings(preset: str) -> list[str]:
    """The overrides that the script gives a preset."""
    functions = re.search(r"^LORA=.*?^}", SCRIPT, re.MULTILINE | re.DOTALL)[0]
    done = subprocess.run(
        ["bash", "-ec", f"{functions}\nsettings {preset}"], capture_output=True, text=True, check=True
    )
    return done.stdout.split()


def test_every_method_takes_part() -> None:
    methods = {compose(["benchmark=mini-ucit", "model=mini", f"method={p}"]).method["name"] for p in PRESETS}
    assert methods == {name for name in REGISTRY if not name.startswith("test_")}


@pytest.mark.parametrize("preset", PRESETS)
def test_methods_are_compared_on_equal_terms(preset: str) -> None:
    words = ["benchmark=mini-ucit", "model=mini", "train=mini", "train.max_steps=60", f"method={preset}"]
    config = compose([*words, *settings(preset)])
    method = method_config(config.method)
    assert config.train.max_steps == (60 * TASKS if preset == "multitask" else 60)
    assert getattr(method, "projector", "frozen") == "frozen"
    if hasattr(method, "rank"):
        assert method.targets == "all" and method.alpha == 2 * method.rank and method.dropout == 0
        shared = hasattr(method, "experts")  # a mixture that all tasks share has the rank of all of them together
        assert method.rank == (RANK * TASKS if shared else RANK)
