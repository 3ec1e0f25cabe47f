"""What training and answering cost in floating-point operations and memory: the base model's, and with a method on it.

Records are not read for this. A record is taken to have one image and TEXT tokens, an answer one image, QUESTION tokens and
ANSWER new ones: an assumption of the order of UCIT's, not a measurement. So is the size of the image (pictures.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from hide_llava.backbones.shapes import ImageTower, ModelShape, Tower
from hide_llava.methods.cost import Pass
from hide_llava.planning.flops import Flops
from hide_llava.planning.sizes import Sizes

TEXT, QUESTION, ANSWER = 70, 60, 10  # tokens, with the conversation template's 40
WORDS = 20  # tokens of a question without the template: what is encoded for routing, or asked as an inquiry


@dataclass(frozen=True)
class Work:
    """FLOPs of a method on a model. tasks: T. recompute: activation checkpointing."""

    shape: ModelShape
    sizes: Sizes
    tasks: int
    recompute: bool = True

    @property
    def flops(self) -> Flops:
        return Flops(self.shape)

    @property
    def towers(self) -> list[Tower]:
        """Text encoders that run once for every record and answer."""
        found = {"clip_text": self.shape.clip_text, "sentence": self.shape.sentence}
        return [tower for need, tower in found.items() if need in self.sizes.needs]

    @property
    def clip_vision(self) -> ImageTower | None:
        """The CLIP tower that runs once for every image, if it is not the model's own."""
        return self.shape.clip_vision if "clip_image" in self.sizes.needs else None

    @property
    def _encoders(self) -> int:
        """One record or answer through what it is routed by."""
        image = 0 if self.clip_vision is None else self.clip_vision.flops
        return image + sum(2 * WORDS * tower.linears for tower in self.towers)

    def _picture(self, trains: bool = False) -> int:
        return self.flops.vision() + self.flops.projector(trains)

    def base_record(self) -> int:
        """One record through the frozen base model, forward and backward to its inputs, without the projector's own."""
        n = self.flops.image_tokens + TEXT
        again = self.flops.forward(n, heads=0) if self.recompute else 0
        return self._picture() + self.flops.forward(n) + self.flops.backward(n) + again

    def record(self, task: int) -> int:
        """One training record of the `task`-th task (0-based), without `Cost.extra`, which is per micro-batch."""
        cost, n = self.sizes.cost, self.flops.image_tokens + TEXT + self.sizes.cost.prompts[0]
        trained = self.sizes.stored_adapter + cost.routers
        past = cost.past * task // max(1, self.tasks - 1)
        total = self._picture(self.sizes.projector > 0) + self.flops.forward(n, trained + past)
        total += self.flops.backward(n, trained, past)
        total += self.flops.forward(n, trained + past, heads=0) if self.recompute else 0
        total += self._encoders
        return total + sum(self.passing(p) for p in cost.passes if p.per == "step" and (task or not p.later))

    def passing(self, extra: Pass) -> int:
        """One record through a pass of the method's own."""
        adapters = self.sizes.stored_adapter + self.sizes.cost.routers if extra.adapters is None else extra.adapters
        n = WORDS if extra.text_only else self.flops.image_tokens + TEXT
        once = self.flops.forward(n, adapters) + (0 if extra.text_only else self._picture())
        return extra.forwards * once + extra.backwards * self.flops.backward(n, adapters)

    def beside(self, counts: list[int]) -> int:
        """Passes of a whole task that are not steps, given the record counts of the tasks so far."""
        passes = [p for p in self.sizes.cost.passes if p.per == "task" and (len(counts) > 1 or not p.later)]
        return sum(int(extra.records(counts) * self.passing(extra)) for extra in passes)

    def base_answer(self) -> int:
        return self.flops.answer(self.flops.image_tokens + QUESTION, ANSWER)

    def answer(self) -> int:
        """One answer after the last task; the router of a pass reads one more prompt and decides from its last token."""
        cost = self.sizes.cost
        n = self.flops.image_tokens + QUESTION + cost.prompts[1]
        total = self.flops.answer(n, ANSWER, cost.live + cost.routers) + self._encoders
        return total + sum(
            p.forwards * (self.flops.forward(n, p.adapters or 0, heads=1) + self._picture())
            for p in cost.passes
            if p.per == "answer"
        )


def rounded(value: float) -> str:
    """Two significant digits, and no more: 5,700 · 27 · 9.0 · 0.0031."""
    return f"{float(f'{value:.1e}'):,.0f}" if value >= 9.95 else f"{value:#.2g}"


def in_flops(value: float) -> str:
    """With the unit that fits."""
    unit, name = next(((u, n) for u, n in ((1e15, "PFLOP"), (1e12, "TFLOP")) if value >= u), (1e9, "GFLOP"))
    return f"{rounded(value / unit)} {name}"
