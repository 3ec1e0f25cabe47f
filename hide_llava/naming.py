"""What a run is called when nobody says `output=`: what was chosen, then what differs from the defaults of that choice.

    ucit-hide-llava-1.5-7b-seed42
    ucit-hide-llava-1.5-7b-seed42-imagenet-r+iconqa-limit200-train=24gb-epochs=6-rank=16

The name follows from the values, not from how they were spelt, so the same experiment always meets its own folder, and
another one never does. Keys that cannot change a trained model or that only say how it is asked (`eval.*`, `caption.*`, those
a run may change between two calls) are left out: training and evaluating with other such values is one run.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from pathlib import Path
from typing import Any

from hide_llava.schema import FREE, RunConfig, flatten

LONGEST_VALUE, LONGEST = 32, 120  # characters of one value, and of all of them; what is longer is a hash
NAMED = ("seed", "tasks", "task_order", "limit", "benchmark.name", "model.name", "method.name", "method.preset",
         "method.file_sha256", "train.name")  # fmt: skip
SILENT = ("eval.", "caption.", "benchmark.tasks", "benchmark.general", "benchmark.defaults")


def names_a_folder(name: object) -> bool:
    """Whether it can be the name of a folder below another one, and of nothing else."""
    return isinstance(name, str) and name not in ("", ".", "..") and Path(name).name == name


def default_output(config: RunConfig, plain: RunConfig | None, given: dict[str, Any], recipe: str | None) -> str:
    """The run folder of a configuration that names none.

    plain: the same choice without the user's own keys, or None where that is no valid configuration by itself; then
    `given`, the keys that the user wrote, count as different. recipe: a training recipe that is not the default one.
    """
    own = differing(config, plain, given)
    parts = [f"train={_text(recipe)}"] if recipe else []
    return str(Path("runs") / "-".join([plain_name(config), *parts, *filter(None, [described(own)])]))


def plain_name(config: RunConfig) -> str:
    """`<benchmark>-<method>-<model>-seed<seed>`, and which part of the benchmark is taken in which order."""
    name = f"{config.benchmark.name}-{config.method['preset']}-{config.model.name}-seed{config.seed}"
    if config.tasks is not None or config.task_order is not None:
        name += f"-{joined([task.id for task in config.benchmark.tasks])}"
    return name if config.limit is None else f"{name}-limit{config.limit}"


def differing(config: RunConfig, plain: RunConfig | None, given: dict[str, Any]) -> dict[str, Any]:
    """{short key: value} of what differs from `plain` and belongs into a name, in the order of the schema."""
    values = flatten(config.model_dump())
    base = flatten(plain.model_dump()) if plain is not None else {k: v for k, v in values.items() if k not in given}
    kept = [k for k in values if k not in (*NAMED, *FREE) and not k.startswith(SILENT)]
    own = {k: values[k] for k in kept if k not in base or base[k] != values[k]}
    short = Counter(_short(k) for k in values if not k.startswith(SILENT))
    return {_short(k) if short[_short(k)] == 1 else k: value for k, value in own.items()}


def described(own: dict[str, Any]) -> str:
    """`epochs=6-rank=16`; one hash of all where that would be too long for a folder's name."""
    text = "-".join(f"{key}={_text(value)}" for key, value in own.items())
    return text if len(text) <= LONGEST else f"changes-{_hash(text)}"


def joined(tasks: list[str]) -> str:
    """Task ids in their order: `imagenet-r+iconqa`, or a hash of them when they are many."""
    text = "+".join(tasks)
    return text if len(text) <= 2 * LONGEST_VALUE else f"tasks-{_hash(text)}"


def _short(key: str) -> str:
    """Without the section: `train.epochs` → `epochs`."""
    return key.partition(".")[2] or key


def _text(value: Any) -> str:
    """A value as a part of a file's name; a hash where it is long or has characters that a name should not have."""
    if isinstance(value, float):
        short = f"{value:g}"
        text = short if float(short) == value else repr(value)
    elif isinstance(value, bool) or value is None:
        text = str(value).lower()
    elif isinstance(value, list):
        text = ",".join(map(_text, value)) or "none"
    else:
        text = str(value)
    return text if len(text) <= LONGEST_VALUE and re.fullmatch(r"[\w.,+-]+", text, re.ASCII) else _hash(text)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
