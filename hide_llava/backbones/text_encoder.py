"""What all text encoders share: features in full fp32; on a CPU a text is encoded by itself, and its feature is kept."""

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
    """A frozen encoder of texts.

    What is kept is encoded by itself, because the last bits of a row of a padded batch depend on the others' lengths: a kept
    feature would then depend on the batch that met the text first, and a resumed run would not repeat bit for bit. On a GPU
    that does not pay: the kernels of so small a tower cost their launch, so that sixteen texts take as long one by one as
    sixteen batches. There the different texts of a batch are encoded together, and nothing is kept.
    """

    def __init__(self) -> None:
        super().__init__()
        self._kept = lru_cache(KEPT)(lambda text: self._exact([text])[0])

    @abstractmethod
    def encode(self, texts: list[str]) -> Tensor:
        """Features [n, d] in fp32, on the encoder's device; called without gradients and without autocast."""

    def text(self, texts: list[str]) -> Tensor:
        """Raw strings → [B, d] fp32."""
        if next(self.parameters()).device.type == "cpu":
            return torch.stack([self._kept(text) for text in texts])
        distinct = list(dict.fromkeys(texts))
        return self._exact(distinct)[[distinct.index(text) for text in texts]]

    def _exact(self, texts: list[str]) -> Tensor:
        """In full fp32 whoever asks first."""
        device = next(self.parameters()).device
        with torch.no_grad(), torch.autocast(device.type, enabled=False), full_precision():
            return self.encode(texts)

    def tokens(self, texts: list[str], longest: int) -> dict[str, Tensor]:
        """What a tokenizer of transformers makes of texts, each [n, N] long, brought to the encoder's device in one copy."""
        found = self.tokenizer(texts, padding="longest", truncation=True, max_length=longest, return_tensors="pt")
        return dict(zip(found, torch.stack([*found.values()]).to(next(self.parameters()).device)))

    def train(self, mode: bool = True) -> TextEncoder:
        """Stays in eval mode when the model around it trains: an encoder may have dropout."""
        return super().train(False)

    def _apply(self, fn: Callable, recurse: bool = True) -> Any:
        """Moved or cast: what was kept lies on the old device."""
        self._kept.cache_clear()
        return super()._apply(fn, recurse)
