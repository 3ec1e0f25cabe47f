"""What the experts of a run hold, read from the headers of their files: no model is loaded."""

from __future__ import annotations

import math
import re
from pathlib import Path

from safetensors import safe_open

from hide_llava.errors import UserError

LAYER = re.compile(r"\.layers\.(\d+)\.")


def sizes(stages: list[Path]) -> list[dict[int, int]]:
    """{decoder layer: numbers in its adapters} of the expert that each stage folder stores.

    Raises:
        UserError: a stage stores none, or one that is not of a decoder.
    """
    return [_size(stage / "adapter" / "adapter_model.safetensors") for stage in stages]


def _size(file: Path) -> dict[int, int]:
    if not file.is_file():
        raise UserError(f"{file}: no such file; the stage is not complete, or stores several adapters.")
    found: dict[int, int] = {}
    with safe_open(file, "pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118  (no mapping)
            layer = LAYER.search(name)
            if layer is None:
                raise UserError(f"{file}: {name} is in no decoder layer.")
            count = math.prod(tensors.get_slice(name).get_shape())
            found[int(layer[1])] = found.get(int(layer[1]), 0) + count
    return found


def kept_apart(experts: list[dict[int, int]], layers: list[int], depth: int) -> int:
    """Numbers of all experts in the layers that stay expanded."""
    wanted = {layer % depth for layer in layers}
    return sum(count for expert in experts for layer, count in expert.items() if layer in wanted)


def stored(experts: list[dict[int, int]], layers: list[int], depth: int) -> int:
    """The same, with one expert's numbers in each other layer, for what is fused there."""
    wanted = {layer % depth for layer in layers}
    return kept_apart(experts, layers, depth) + sum(n for layer, n in experts[-1].items() if layer not in wanted)
