"""SEFE: RegLoRA against the loss of knowledge, answer style diversification against the loss of formats
(Chen et al., arXiv 2505.02486).

y = W x + s Σ_{i≤t} B_i A_i x,  past experts frozen
L = CE + λ · mean over linears of mean_{(j,k)∈K} |(B_t A_t)_jk|       (no factor α/r)
K = ∪_{i<t} K_i,  K_i: the `fraction` largest |B_i A_i| of each linear after task i

`rewritten` percent of a task's records train with another form of answer (data/answer_styles.py). The authors let a
multimodal model rewrite offline; to use their files, name them in the benchmark and set rewritten=0.

reference: authors   an element selected by two tasks counts twice in the mean, and the sum over linears is divided by 224
                     (32 layers × 7 linears) whatever the model
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from hide_llava.adapters.key_elements import OncePerStep, key_mean, pack, select
from hide_llava.backbones.base import Backbone
from hide_llava.data.answer_styles import diversify
from hide_llava.methods.base import Context, Features, MethodConfig, Task, register
from hide_llava.methods.cost import Cost
from hide_llava.methods.experts import SummedExperts
from hide_llava.settings import Strength


@register
class Sefe(SummedExperts):
    name = "sefe"
    reads_parameters = True
    reads_logits = False

    class Config(SummedExperts.Config):
        strength: Strength[float] = Field(2500.0, ge=0)  # λ, weight of the penalty
        fraction: float = Field(0.02, gt=0, le=1)  # M, share of a linear's elements that are key
        rewritten: float = Field(20.0, ge=0, le=100)  # X, percent of the records; 0: RegLoRA alone
        style_seed: int = Field(0, ge=0)  # of the draw of records and styles
        reference: Literal["none", "authors"] = "none"  # none | authors

    @classmethod
    def unfit(cls, options: MethodConfig, family: type[Backbone]) -> str | None:
        if options.reference == "authors" and not family.recorded:
            return "reference=authors divides by the 224 linears of a LLaVA-1.5-7B; set method.reference=none"
        return super().unfit(options, family)

    def setup(self) -> None:
        super().setup()
        self.term = OncePerStep()
        self.keys: dict[str, list[Tensor]] = {}  # linear → packed masks: one of all tasks (authors: one of each)

    def train_data(self, task: Task, records: Any, context: Context) -> Any:
        if not self.config.rewritten:
            return records
        return diversify(records, self.config.rewritten, self.config.style_seed + task.index)

    def loss(self, output: Any, batch: dict, features: Features) -> dict[str, Tensor]:
        if not self.keys:
            return {}
        expert = self.adapter
        linears = list(self.core.layers(expert))
        divisor = 224 if self.config.reference == "authors" else len(linears)

        def term() -> Tensor:
            means = [key_mean(m.lora_A[expert].weight, m.lora_B[expert].weight, self.keys[path]) for path, _, m in linears]
            return self.config.strength * torch.stack(means).sum() / divisor

        masks = sum(map(len, self.keys.values()))
        return {"key_elements": self.term(self.core.parameters_of(expert), term, divisor, self.config.strength, masks)}

    def after_step(self, step: int) -> None:
        self.term.forget()

    @torch.no_grad()
    def after_task(self, task: Task, context: Context) -> None:
        self.term.forget()
        expert = self.adapter
        for path, _, layer in self.core.layers(expert):
            mask = pack(select(layer.lora_A[expert].weight, layer.lora_B[expert].weight, self.config.fraction))
            past = self.keys.get(path, [])
            if past and self.config.reference == "none":
                past, mask = [], past[0] | mask
            self.keys[path] = [*past, mask]

    def cost(self) -> Cost:
        """The extra loss: B A once forward, once again in backward, and the gradients of both; the masks, a bit an entry."""
        entries = [layer.in_features * layer.out_features for _, _, layer in self.core.layers(self.adapter)]
        masks = sum(-(-n // 8) for n in entries) * (len(self.tasks) if self.config.reference == "authors" else 1)
        extra = 4 * 2 * self.config.rank * sum(entries)
        return replace(super().cost(), state={"masks of the key elements": masks}, extra=extra)

    def state(self) -> dict[str, Any]:
        keys = {f"keys.{i}.{path}": mask for path, masks in self.keys.items() for i, mask in enumerate(masks)}
        return {**super().state(), **keys}

    def load_state(self, state: dict[str, Any]) -> None:
        super().load_state(state)
        self.keys = {}
        for key in sorted((k for k in state if k.startswith("keys.")), key=lambda k: int(k.split(".")[1])):
            self.keys.setdefault(key.split(".", 2)[2], []).append(state[key].to(self.core.llava.device))
