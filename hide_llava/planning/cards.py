"""Seconds of training and answering on a named GPU, by arithmetic: nothing here was measured on one.

A step is products, at a share of the card's dense bf16 rate, and element-wise work, at a share of its memory's rate. Per
position and layer of width d, with I numbers read by its linears and O written (in LLaVA-1.5 6 d + m and 5 d + 2 m, m the
inner width):

    forward    7 I + 12 O bytes of a LoRA's own (dropout, the sum of two products), 100 d of norms, rotary and activation
    backward  14 I +  6 O, and 100 d

Prompts are read at the rate of products. A decoded token of a batch takes what reading the weights once and the keys and
values three times takes (attention, and the growing cache is copied), but at least what the host needs to start it.
"""

from __future__ import annotations

from dataclasses import dataclass

from hide_llava.errors import UserError
from hide_llava.evaluation.batches import key_value_bytes, largest_batch, sample_bytes
from hide_llava.planning.estimate import ANSWER, QUESTION, TEXT, Work

# What of a card's figures a run sustains, assumed: 445 of an H100's 989 TFLOP/s, as well-made training code reaches; 500 where
# there is no backward pass; 2.5 of its 3.35 TB/s. HOST: seconds in which Python starts the kernels of one decoding step.
TRAINING, READING, MEMORY, HOST = 0.45, 0.505, 0.75, 0.025
BF16 = 2  # bytes of a number


@dataclass(frozen=True)
class Card:
    """title. gib: of memory. tflops: dense bf16 with fp32 sums, peak. tbs: memory bandwidth in TB/s, peak. All from `source`."""

    title: str
    gib: int
    tflops: float
    tbs: float
    source: str

    def training_seconds(self, work: Work, flops: float, records: float) -> float:
        """Of `records` that take `flops` in all (`Work.record`), on one card."""
        counts, passes = work.flops.counts, 3 if work.recompute else 2
        read, written, normed = counts.read, counts.written, 100 * counts.width * counts.layers
        moved = (passes - 1) * (7 * read + 12 * written) + 14 * read + 6 * written + passes * normed
        moved *= (work.flops.image_tokens + TEXT + work.sizes.cost.prompts[0]) * records
        return flops / (TRAINING * self.tflops * 1e12) + moved / (MEMORY * self.tbs * 1e12)

    def answering_seconds(self, work: Work, answers: float, weights: int) -> float:
        """Of `answers` with a base model of `weights` bytes, on one card."""
        text = work.shape.text
        length = work.flops.image_tokens + QUESTION + ANSWER + work.sizes.cost.prompts[1]
        cache = length * key_value_bytes(text, BF16)
        batch = largest_batch(self.gib * 2**30 - weights, sample_bytes(text, BF16, length))
        token = max(HOST, (weights + 3 * batch * cache) / (MEMORY * self.tbs * 1e12))
        return answers * (work.answer() / (READING * self.tflops * 1e12) + ANSWER * token / batch)


CARDS = {
    "h100": Card("H100 SXM 80 GB", 80, 989, 3.35, "NVIDIA H100 data sheet"),
    "a100": Card("A100 SXM 80 GB", 80, 312, 2.04, "NVIDIA A100 80 GB data sheet"),
    "4090": Card("GeForce RTX 4090", 24, 165, 1.01, "NVIDIA Ada GPU architecture, appendix A"),
}


def card_of(name: str) -> Card:
    """Raises UserError for a card whose figures are not known."""
    if name.lower() not in CARDS:
        raise UserError(f"--gpu {name}: known are {', '.join(CARDS)}; for another card give --tflops.")
    return CARDS[name.lower()]
