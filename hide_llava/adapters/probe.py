"""Forwards beside the one that trains: of a teacher, a router, or for statistics. Never with dropout."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from hide_llava.adapters.core import Core
from hide_llava.adapters.route import Route


@contextlib.contextmanager
def without_dropout(core: Core) -> Iterator[None]:
    """The model and its adapters in evaluation mode inside the block; the method still routes as it did."""
    training = core.llava.training
    core.llava.eval()
    try:
        yield
    finally:
        core.llava.train(training)


@torch.no_grad()
def logits(core: Core, batch: dict[str, Any], route: Route, last: int = 0) -> Tensor:
    """Logits [B, N, V] of a batch under `route`, in the arithmetic of training; with `last` of the last positions only.

    batch: input_ids [B, N] with images expanded, types, attention_mask, has_image, pixels. The current route is kept.
    """
    llava, backbone = core.llava, core.backbone
    half = llava.dtype != torch.float32
    with without_dropout(core), core.routed(route), torch.autocast(llava.device.type, llava.dtype, enabled=half):
        ready = backbone.ready(batch, backbone.see(batch), core.projectors, route.projectors, None, False)
        output = backbone.run(ready, logits_to_keep=last)
    return output.logits.float()
