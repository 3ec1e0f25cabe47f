"""What all text encoders share: a text is encoded by itself, in full fp32, and its feature is kept."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from hide_llava.precision import full_precision

KEPT = 8192  # distinct texts whose feature is kept, 25 MB of 768 numbers each; instructions repeat


class TextEncoder(nn.Module, ABC):
    """A frozen encoder whose feature of a text depends on nothing but the text.

    By itself, because the last bits of a row of a padded batch depend on the others' lengths: a kept feature would then
    depend on the batch that met the text first, and a resumed run would not repeat bit for bit.
    """

    def __init__(self) -> None:
        super().__init__()
        self._kept = lru_cache(KEPT)(self._exact)

    @abstractmethod
    def encode(self, text: str) -> Tensor:
        """The text's feature [d] in fp32, on the encoder's device; called without gradients and without autocast."""

    def text(self, texts: list[str]) -> Tensor:
        """Raw strings → [B, d] fp32."""
        return torch.stack([self._kept(text) for text in texts])

    def _exact(self, text: str) -> Tensor:
        """In full fp32 whoever asks first."""
        device = next(self.parameters()).device
        with torch.no_grad(), torch.autocast(device.type, enabled=False), full_precision():
            return self.encode(text)

    def train(self, mode: bool = True) -> TextEncoder:
        """Stays in eval mode when the model around it trains: an encoder may have dropout."""
        return super().train(False)

    def _apply(self, fn: Callable, recurse: bool = True) -> Any:
        """Moved or cast: what was kept lies on the old device."""
        self._kept.cache_clear()
        return super()._apply(fn, recurse)
