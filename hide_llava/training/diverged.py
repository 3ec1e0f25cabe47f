"""Whether a stage that has done all its steps learned something that is worth publishing.

A step's loss is looked at before the step changes anything, so a step that destroys the parameters is told by the loss of
the next one; nothing comes after the last.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from hide_llava.adapters.probe import without_dropout
from hide_llava.data.collator import Collator, moved
from hide_llava.training.checkpoint import trainable
from hide_llava.training.session import Session

ABSURD = 10.0  # times the loss of guessing, ln(vocabulary): no training that works ends there
LARGEST = 65504.0  # the largest number of fp16; adapters, projectors, prompts and routers hold numbers of about 1


def diverged(session: Session, context: Any, size: int, log: list[dict]) -> str | None:
    """What is wrong with the trained parameters, or None.

    Looked at: that they are finite and no larger than LARGEST (behind a normalisation even 1e30 leaves the loss finite),
    the last gradient's norm (not in fp16), and the loss of the first `size` records of the task, at most ABSURD.
    """
    largest = {name: float(p.detach().abs().max()) for name, p in trainable(session.routed).items() if p.numel()}
    broken = [name for name, value in largest.items() if not value <= LARGEST]
    if broken:
        return f"{len(broken)} of {len(largest)} trained tensors hold absurd values, first {broken[0]}: {largest[broken[0]]:g}"
    scaled = session.core.llava.dtype == torch.float16  # its scaler leaves a step out whose gradients overflow, and goes on
    norms = [row["grad_norm"] for row in log if row.get("grad_norm") is not None]
    if not scaled and norms and not math.isfinite(norms[-1]):
        return f"the norm of its gradient is {norms[-1]:g}"
    loss, bound = probe_loss(session, context, size), ABSURD * math.log(session.core.llava.config.get_text_config().vocab_size)
    if not loss <= bound:
        return f"the loss of its first records is {loss:g} (guessing has {bound / ABSURD:.3g})"
    return None


@torch.no_grad()
def probe_loss(session: Session, context: Any, size: int) -> float:
    """Cross-entropy of the first `size` training records as the task trained them, without dropout or random numbers."""
    samples = [context.train_data[i] for i in range(min(size, len(context.train_data)))]
    device = session.core.llava.device
    batch = Collator(side="right")(samples)
    batch = moved(batch, device)
    with without_dropout(session.core):
        return float(context.forward(batch, loss_only=True).loss)
