"""The shared tests of general ability, `configs/general.yaml`: a benchmark's `general` names them instead of repeating them."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from hide_llava.errors import UserError, nearest
from hide_llava.presets import configs_folder


def with_shared(tree: dict[str, Any], read: Callable[[Path], dict]) -> dict[str, Any]:
    """The tree of a configuration with an entry for each name among its general tasks.

    A name is an id of the shared list or one of its aliases. Its files lie below data_root whatever the benchmark's own folder
    is. read: reads a YAML file.

    Raises:
        UserError: a name that the list does not have.
    """
    section = tree.get("benchmark")
    given = section.get("general") if isinstance(section, dict) else None
    if not isinstance(given, list) or not any(isinstance(entry, str) for entry in given):
        return tree
    folder = str(section.get("instructions") or "")
    entries = [_entry(entry, folder, read) if isinstance(entry, str) else entry for entry in given]
    return {**tree, "benchmark": {**section, "general": entries}}


@cache
def _shared(read: Callable[[Path], dict]) -> list[dict[str, Any]]:
    return read(configs_folder() / "general.yaml")["general"]


def _entry(name: str, folder: str, read: Callable[[Path], dict]) -> dict[str, Any]:
    shared = _shared(read)
    for entry in shared:
        if name in (entry["id"], *entry.get("aliases", [])):
            return {**entry, "test": os.path.relpath(entry["test"], folder or ".")}
    raise UserError(f"benchmark.general: there is no test '{name}'. {nearest(name, [entry['id'] for entry in shared])}")
