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
    types: token types by name, each [B, N] long, 0 where padded · has_image [B] bool · pixels: what the towers take of each
    row's pictures, a dictionary of tensors or None; kept row by row, because models differ in how they join them ·
    sizes: of each row's pictures · texts, ids: lists of length B · counts: list of B booleans, False for a row that only
    stands in (`StandIns`).
    """

    pad_id: int = 0
    side: str = "right"

    def __post_init__(self) -> None:
        if self.side not in ("right", "left"):
            raise UserError(f"Padding side is {self.side!r}; choose right or left.")

    def __call__(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        rows = [sample["input_ids"] for sample in samples]
        batch = {
            "input_ids": self._pad(rows, self.pad_id),
            "attention_mask": self._pad([torch.ones_like(row) for row in rows], 0),
            "has_image": torch.tensor([sample["pixels"] is not None for sample in samples]),
            "pixels": [sample["pixels"] for sample in samples],
            "sizes": [sample["sizes"] for sample in samples],
            "types": {
                name: self._pad([sample["types"][name] for sample in samples], 0) for name in samples[0]["types"]
            },
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


def moved(batch: Any, device: torch.device, non_blocking: bool = False) -> Any:
    """A batch, or a part of one, with its tensors on `device`."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=non_blocking)
    if isinstance(batch, dict):
        return {key: moved(value, device, non_blocking) for key, value in batch.items()}
    if isinstance(batch, list):
        together = _together(batch, device, non_blocking) if any(isinstance(row, dict) for row in batch) else batch
        return [moved(value, device, non_blocking) for value in together]
    return batch


def _together(rows: Sequence[dict[str, torch.Tensor] | None], device: torch.device, non_blocking: bool) -> list[Any]:
    """Pixels of rows, those of one form on `device`: in one copy, because the host waits for each."""
    there = [row and dict(row) for row in rows]
    for key in {key: None for row in rows if row for key in row}:
        having = [row for row in there if row and key in row]
        parts = [row[key] for row in having]
        if len(parts) == 1 or parts[0].device.type == device.type or len({(p.dtype, p.shape[1:]) for p in parts}) > 1:
            continue
        whole = torch.cat(parts)
        whole = whole.pin_memory() if non_blocking and parts[0].is_pinned() else whole
        for row, part in zip(having, whole.to(device, non_blocking=non_blocking).split([len(p) for p in parts])):
            row[key] = part
    return there
