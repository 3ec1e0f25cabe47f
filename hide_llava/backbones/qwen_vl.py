"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: pictures of any size as patches, positions in three dimensions.

The patches of all pictures lie in one row, with a grid [k, 3] for each (time, height, width). The projector is the tower's
merger, which joins 2 × 2 patches; Qwen3-VL has three more, whose features are added behind the first decoder layers.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from hide_llava.backbones.base import Ready
from hide_llava.backbones.chat import ChatBackbone, Pixels


class QwenVL(ChatBackbone):
    title = "Qwen-VL"
    told = ("image_grid_thw",)

    def projector_modules(self) -> list[nn.Module]:
        visual = self.model.model.visual
        return [visual.merger, *getattr(visual, "deepstack_merger_list", [])]

    def tower_rows(self, pixels: Pixels) -> int:
        return int(pixels["image_grid_thw"].prod(-1).sum())

    def projector_rows(self, pixels: Pixels) -> int:
        return self.tower_rows(pixels) // self.model.model.visual.spatial_merge_size**2

    def ready(self, *args: Any, **kwargs: Any) -> Ready:
        self.model.model.rope_deltas = None  # upstream keeps it between calls; a stale one moves positions without an error
        return super().ready(*args, **kwargs)


class QwenVLMoe(QwenVL):
    """Qwen3-VL with experts, which are parameters of three dimensions: only attention has linears to adapt."""

    title = "Qwen3-VL-MoE"
    lacks = frozenset({"ffn", "gate_up"})
