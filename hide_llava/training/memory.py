"""How a stage fits into memory: records of a micro-batch, and whether activations are kept or computed again.

What is `auto` is decided once, when a stage begins, from what autograd keeps (`activations`) of the longest records
and from the memory that is free then. The stage's entry in the manifest says what was taken, and a stage that goes on takes
the same. No number depends on gradient checkpointing: a layer that is computed again draws the same dropout masks.
"""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hide_llava.backbones.counts import Counts, counted
from hide_llava.data.dataset import TrainingDataset
from hide_llava.distributed import least
from hide_llava.methods.base import reads_logits
from hide_llava.training.batching import BatchPlan, micro_batches
from hide_llava.training.session import Session

# Of the free memory of a device, what activations, gradients and optimizer state may take by the estimate: the rest is for
# what it does not count (buffers of kernels and of communication, fragmentation, a method's own passes). A process that
# outgrows a GPU is told, and goes on with checkpointing; one that outgrows its host is killed, so there it takes less.
SHARE = {"cuda": 0.7, "cpu": 0.5}


@dataclass(frozen=True)
class Layout:
    """recompute: gradient checkpointing. needed, free: bytes by the estimate, and what there was; None if nobody asked."""

    batch: BatchPlan
    recompute: bool
    needed: int | None = None
    free: int | None = None

    def words(self) -> str:
        """What was decided, for people."""
        kept = "computed again in the backward pass" if self.recompute else "kept"
        return (
            f"micro-batches of {self.batch.per_device} record(s), activations {kept} (estimated "
            f"{self.needed / 2**30:.1f} GiB beside the weights, {self.free / 2**30:.1f} GiB free)"
        )


def layout(session: Session, batch: BatchPlan, dataset: TrainingDataset, entry: dict[str, Any]) -> Layout:
    """How to train a stage in the memory that is free now, the same in every process.

    session: at the beginning of the stage, so that all weights are in memory. batch: as planned without looking at memory.
    entry: the stage's in the manifest, which says what was taken if the stage was begun before.
    """
    train, share = session.run.train, batch.per_device * batch.accumulation
    sizes, modes = [batch.per_device], [train.gradient_checkpointing]
    if train.per_device_batch_size == "auto":
        sizes = [entry["per_device"]] if share % entry.get("per_device", share + 1) == 0 else micro_batches(share)
    if train.gradient_checkpointing == "auto":
        modes = [entry["gradient_checkpointing"]] if "gradient_checkpointing" in entry else [False, True]
    if len(sizes) == len(modes) == 1:
        size, mode, needed, free = sizes[0], modes[0], None, None
    else:
        free = free_bytes(session.core.llava.device)
        limit = int(SHARE.get(session.core.llava.device.type, 0.5) * free)
        size, mode, needed = first_that_fits(
            sizes, modes, limit, lambda *option: needed_bytes(session, dataset, *option)
        )
    return Layout(BatchPlan(size, share // size, batch.world), mode, needed, free)


def first_that_fits(
    sizes: list[int], modes: list[bool], limit: float, needed: Callable[[int, bool], int]
) -> tuple[int, bool, int]:
    """Micro-batch, whether activations are computed again, and the bytes that this needs: the first of the `sizes` under the
    first of the `modes` that needs at most `limit`; where none does, the last of both."""
    options = [(size, mode, needed(size, mode)) for mode in modes for size in sizes]
    return next((option for option in options if option[2] <= limit), options[-1])


def needed_bytes(session: Session, dataset: TrainingDataset, records: int, recompute: bool) -> int:
    """What a step takes beside the weights: activations of the longest records, gradients and AdamW's two moments."""
    llava, method = session.core.llava, session.method
    trained = [p for group in method.params() for p in group["params"]]
    length, answer = dataset.longest
    on_one = max((sum(any(p.requires_grad for p in a.parameters()) for a in layer.lora_B.values())
                  for name in method.adapters() for _, _, layer in session.core.layers(name)), default=1)  # fmt: skip
    return 3 * sum(p.nbytes for p in trained) + activations(
        counted(llava.config), records, llava.dtype.itemsize, recompute, length,
        None if reads_logits(type(method)) else answer, max(1, on_one),
    )  # fmt: skip


def activations(
    counts: Counts, records: int, width: int, recompute: bool, length: int, answer: int | None, adapters: int = 1
) -> int:
    """Bytes that the backward pass of a micro-batch needs, counted from what autograd keeps.

    Of a layer of width d and inner width m, whose heads have width h together, per position: the fp32 copy that each norm
    makes (8 d for the two of LLaMA); for each linear and trained adapter, what it reads after dropout and the mask (6 d + m
    numbers of LLaMA's seven); queries, keys, values, repeated for each query, and what attention returns (4 h); three values
    of the MLP (3 m). A frozen linear keeps nothing, for its weight has no gradient. With checkpointing only the input of each
    layer is kept, and one layer's values while it is computed again. Logits are formed where a row has a label: in `width`
    bytes, in fp32, and as log-probabilities and gradient.

    records: of the micro-batch. length: positions of a record. answer: those with a label, None:
    logits of all positions, and a second time for what reads them. adapters: that train on one linear.
    """
    values = width * counts.layers * (4 * counts.heads + 3 * counts.inner)
    layers = 4 * counts.normed + adapters * (width + 1) * counts.read + values
    kept = width * counts.width * counts.layers + layers // counts.layers if recompute else layers
    rows = 2 * length if answer is None else min(length, records * answer)  # answers may lie at places of their own
    return records * (length * kept + rows * (width + 12) * counts.vocabulary)


def reclaim() -> None:
    """Give back the memory of models that nothing refers to any more, before the next one is loaded."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def free_bytes(device: torch.device) -> int:
    """Free memory of the device, the least of all processes; 0 where it is not known."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        free = torch.cuda.mem_get_info(device)[0]
    else:
        free = host_bytes() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return least(free, device)


def host_bytes(proc: Path = Path("/proc/meminfo"), group: Path = Path("/sys/fs/cgroup")) -> int:
    """Memory that the host can still give to a process, within the limit of its control group; 0 where nobody says."""
    free = 0
    with contextlib.suppress(OSError, ValueError, IndexError):
        line = next((x for x in proc.read_text().splitlines() if x.startswith("MemAvailable:")), "")
        free = 1024 * int(line.split()[1])
    with contextlib.suppress(OSError, ValueError):  # "max": no limit
        free = min(free, int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    return max(0, free)
