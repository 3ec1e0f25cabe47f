"""Several projectors in one model (`Core.projectors`): a method's state stores the named copies."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from hide_llava.adapters.core import Core


def stored_projectors(core: Core) -> dict[str, Tensor]:
    """The named copies as a method's state holds them: `projector.<name>.<weight>`, on the CPU."""
    return {f"projector.{n}.{k}": v.cpu() for n, weights in core.projectors.items() for k, v in weights.items()}


def restore_projectors(core: Core, state: dict[str, Any]) -> None:
    """Inverse of `stored_projectors`; other keys of `state` are ignored."""
    core.projectors = {}
    for key, value in state.items():
        if key.startswith("projector."):
            _, name, weight = key.split(".", 2)
            core.projectors.setdefault(name, {})[weight] = value.to(core.llava.device)
