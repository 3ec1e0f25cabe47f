"""Activations of the models of a run's stages on one shared set of prompts: what CKA compares.

The model of stage t is the base with the projector as stage t left it and the route stage t trained with: for HiDe
expert t alone, for sequential LoRA the adapter after stage t. All of them see the same prompts, in the same order.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from hide_llava.benchmarks.files import BenchmarkTask, with_suffix
from hide_llava.data.collator import Collator, moved
from hide_llava.data.dataset import QuestionDataset
from hide_llava.progress import Bar
from hide_llava.training.session import Session


@dataclass(frozen=True)
class Probe:
    """The prompts of one task: its questions as evaluation asks them."""

    task: BenchmarkTask
    split: str
    questions: list[dict[str, Any]]


def probe_of(task: BenchmarkTask, samples: int, first: bool = False) -> Probe:
    """`samples` questions of the validation split, or of the test split where there is none.

    Drawn by the seed, in file order; `first`: the first ones of the test file, as the published script takes them.
    """
    split = "test" if first or task.entry.val is None else "val"
    questions = task.on(split).all_questions()
    chosen = range(len(questions))
    if len(questions) > samples:
        chosen = chosen[:samples] if first else sorted(random.Random(task.common.seed).sample(chosen, samples))
    return Probe(task, split, [questions[i] for i in chosen])


def asked(session: Session, probe: Probe) -> QuestionDataset:
    """The probe's prompts as the model reads them."""
    settings = probe.task.settings()
    return QuestionDataset(
        with_suffix(probe.questions, settings["prompt_suffix"]), probe.task.question_images,
        session.reader(settings["image_transform"]), settings["image_orientation"],
    )  # fmt: skip


def batches(session: Session, probe: Probe, size: int) -> Iterator[dict[str, Any]]:
    """The probe's prompts, left-padded, in order."""
    device = session.core.llava.device
    for batch in DataLoader(asked(session, probe), batch_size=size, collate_fn=Collator(side="left")):
        yield moved(batch, device)


@torch.no_grad()
def represent(session: Session, probes: list[Probe], activation: str, pooling: str, size: int) -> NDArray[np.float32]:
    """[layers, prompts, width] of the model the session stands at, prompts in the order of the probes.

    activation: `layer` (residual stream after each decoder layer) or `mlp` (MLP branch before it is added). pooling:
    `last` (last prompt token) or `all` (mean over all positions, system prompt and image included).
    """
    session.routed.eval()
    layers = session.backbone.layers
    seen: list[list[Tensor]] = [[] for _ in layers]
    mask: Tensor | None = None

    def keep(index: int, output: Tensor | tuple) -> None:
        states = (output[0] if isinstance(output, tuple) else output).float()
        if pooling == "last":
            pooled = states[:, -1]
        else:
            weight = mask.to(states).unsqueeze(-1)
            pooled = (states * weight).sum(1) / weight.sum(1)
        seen[index].append(pooled.cpu())

    handles = [
        (layer if activation == "layer" else layer.mlp).register_forward_hook(lambda _, __, out, k=k: keep(k, out))
        for k, layer in enumerate(layers)
    ]
    count = sum(len(probe.questions) for probe in probes)
    done, bar = 0, Bar("prompts", count, "prompt")
    try:
        for batch in (batch for probe in probes for batch in batches(session, probe, size)):
            ready, _, _ = session.routed.prepare(batch, True)
            mask = ready.attention_mask
            session.backbone.run(ready, logits_to_keep=1)
            done += len(mask)
            bar.at(done)
    finally:
        bar.close()
        for handle in handles:
            handle.remove()
    return np.stack([torch.cat(parts).numpy() for parts in seen])
