"""The YAML files that a name on the command line stands for: where they lie, and what they are called."""

from __future__ import annotations

from pathlib import Path

GROUPS = ("model", "benchmark", "train", "method")


def configs_folder() -> Path:
    """The folder of the YAML files: inside the wheel, or beside the package in a checkout."""
    inside = Path(__file__).parent / "configs"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "configs"


def names(group: str) -> list[str]:
    """Names that `group=` accepts without a path."""
    return sorted(p.stem for p in (configs_folder() / group).glob("*.yaml"))
