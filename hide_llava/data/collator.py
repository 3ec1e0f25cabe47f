"""Samples → one padded batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hide_llava.data.turns import IGNORE
from hide_llava.errors import UserError


@dataclass
class Collator:
    """Pads on the right (training) or the left (generation). Result:

    input_ids [B, N] long · labels [B, N] long, if the samples have labels · targets [K] long, with them: the positions at
    which a row has a label, ascending, without the first, which nothing predicts · attention_mask [B, N] long, from the
    lengths, so a literal <unk> in a text is attended to (the reference drops it, because its id is the padding id) ·
    has_image [B] bool · pixel_values [has_image.sum(), 3, H, W] float32 in row order, None if no row has an image ·
    texts, ids: lists of length B · counts: list of B booleans, False for a row that only stands in (`StandIns`).
    """

    pad_id: int = 0
    side: str = "right"

    def __post_init__(self) -> None:
        if self.side not in ("right", "left"):
            raise UserError(f"Padding side is {self.side!r}; choose right or left.")

    def __call__(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        rows = [sample["input_ids"] for sample in samples]
        images = [sample["pixel_values"] for sample in samples if sample["pixel_values"] is not None]
        batch = {
            "input_ids": self._pad(rows, self.pad_id),
            "attention_mask": self._pad([torch.ones_like(row) for row in rows], 0),
            "has_image": torch.tensor([sample["pixel_values"] is not None for sample in samples]),
            "pixel_values": torch.stack(images) if images else None,
            "texts": [sample["text"] for sample in samples],
            "ids": [sample["id"] if "id" in sample else sample["question_id"] for sample in samples],
            "counts": [sample.get("counts", True) for sample in samples],
        }
        if "labels" in samples[0]:
            batch["labels"] = self._pad([sample["labels"] for sample in samples], IGNORE)
            batch["targets"] = 1 + (batch["labels"][:, 1:] != IGNORE).any(0).nonzero().squeeze(1)
        return batch

    def _pad(self, rows: Sequence[torch.Tensor], value: int) -> torch.Tensor:
        return torch.nn.utils.rnn.pad_sequence(
            list(rows), batch_first=True, padding_value=value, padding_side=self.side
        )
