"""Several projectors in one model: a route weighs named copies per sample, and a method's state stores them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from hide_llava.adapters.core import Core
from hide_llava.adapters.route import Route


def project(core: Core, patches: Tensor, route: Route, has_image: Tensor) -> Tensor:
    """Vision patches [n, P, d_v] of the rows with `has_image` [B] → [n, P, d], by the projector(s) of `route`."""
    if route.projectors is None:
        return core.projector(patches.to(core.projector.linear_1.weight.dtype))
    mixed = torch.zeros((), device=patches.device)
    for name, weight in route.projectors.items():
        own = core.projectors[name]
        dtype = own["linear_1.weight"].dtype  # a trained copy is fp32, whatever the model's own projector is
        projected = functional_call(core.projector, own, (patches.to(dtype),))
        mixed = mixed + weight[has_image].to(dtype)[:, None, None] * projected
    return mixed


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
