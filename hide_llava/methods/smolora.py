"""SMoLoRA: Exploring and Defying Dual Catastrophic Forgetting in Continual Visual Instruction Tuning (arXiv 2411.13949).

E experts, half for visual understanding (V), half for instruction following (I). On every adapted
linear, for a sample with prompt inputs x_1 … x_p of that linear and an embedding e of its instruction, which is the
last line of its question (`instruction: question`: all of it):
    v = argmax W_v mean(x_1 … x_p),   i = argmax W_i e                one expert of each half
    o_v = s B_v A_v x,  o_i = s B_i A_i x                             for every token x
    y = W x + w_1 o_v + w_2 o_i,   (w_1, w_2) = softmax(f_v·o_v, f_i·o_i)
The scores are computed in the rank space, f·(B u) = (Bᵀf)·u, at cost r instead of d_out. Both gates are learned with
the first task and then kept. The mean is taken at prefill, over the prompt alone, and holds for the whole answer.

Differences from published code and the option that restores each:
    gates: random          its one-hot is a constant, so no gradient ever reaches a gate: it routes by a random draw.
                           Ours are learned straight through (one-hot forward, softmax gradient)
    pool: call             mean over every position of the call: answer and padding in training, a single token while
                           decoding. Then an answer depends on the batch and may change experts from token to token
    instruction: oracle    one embedding per task, chosen by the task id: here the mean over its training instructions
The reference also puts experts on the projector and draws one dropout mask per expert; ours trains the projector whole.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import one_hot
from torch.utils.data import Subset
from typing_extensions import Self

from hide_llava.adapters.core import Core
from hide_llava.adapters.observe import sample
from hide_llava.adapters.route import RankMap
from hide_llava.adapters.spec import Targets
from hide_llava.adapters.token_gates import Mixture, PromptView, Routers, per_rank, straight_through
from hide_llava.distributed import from_main
from hide_llava.methods.base import Context, Features, Route, Task, register
from hide_llava.methods.cost import Cost
from hide_llava.methods.lora import SequentialLora
from hide_llava.precision import full_precision

Instruction = Literal["line", "question", "oracle"]


@register
class SMoLora(SequentialLora):
    name = "smolora"
    adapter = "experts"
    reads_parameters = True  # B and the fusion heads, in the gate

    class Config(SequentialLora.Config):
        rank: int = Field(128, ge=1)  # r, of all experts together
        alpha: float = Field(256.0, gt=0)
        targets: Targets = "ffn"
        experts: int = Field(8, ge=2)  # E, half of them visual
        gates: Literal["trained", "random"] = "trained"  # trained | random (published code)
        pool: Literal["prompt", "call"] = "prompt"  # prompt | call (published code)
        instruction: Instruction = "line"  # line, the question's last | question, all of it | oracle (published code)
        samples: int = Field(256, ge=1)  # instruction: oracle, the number of records whose instructions are averaged

        @model_validator(mode="after")
        def _pairs_of_experts(self) -> Self:
            if self.experts % 2:
                raise ValueError(f"experts={self.experts}: must be even, half of them for each gate")
            if self.rank % self.experts:
                raise ValueError(f"rank={self.rank}: must be a multiple of experts={self.experts}")
            return self

    def __init__(self, config: Any, core: Core, tasks: list[Task]):
        super().__init__(config, core, tasks)
        self.needs = frozenset({"sentence"} if config.instruction == "question" else {"sentence", "last_line"})

    def setup(self) -> None:
        self.current = 0
        self.scores: dict[str, Tensor] = {}  # of `score_rows`
        self.instructions: dict[int, Tensor] = {}  # task → mean embedding, for the oracle
        self.core.add(self.adapter, self.config)
        self.modules["visual"] = Routers(self.core, self.adapter, self.config.experts // 2)
        self.modules["fusion"] = Routers(self.core, self.adapter, 2, lambda layer: layer.out_features)

    def before_task(self, task: Task, context: Context) -> None:
        self.current = task.index
        self._add_instruction_gate(context.widths["sentence"])
        if self.oracle and context.train_data is not None:  # `plan` has no data
            self.instructions[task.index] = self._mean_instruction(context)

    def _add_instruction_gate(self, width: int) -> None:
        if "instruction" not in self.modules:
            half = self.config.experts // 2
            self.modules["instruction"] = Routers(self.core, self.adapter, half, lambda _: width)
            self.width = width

    def _mean_instruction(self, context: Context) -> Tensor:
        chosen = sample(len(context.train_data), self.config.samples, self.current)
        batches = context.loader(Subset(context.train_data, chosen), 16)
        mean = torch.cat([context.features(batch).sentence for batch in batches]).mean(0)
        from_main(mean)
        return mean

    def params(self) -> list[dict[str, Any]]:
        learned = ["fusion"]
        if self.config.gates == "trained" and self.current == 0:
            learned += ["visual", "instruction"]
        parameters = [p for name in learned for p in self.modules[name].parameters()]
        return [*super().params(), {"params": parameters, "lr": "adapter"}]

    # ---- routing ---------------------------------------------------------------------------------------------------
    def route(self, batch: dict, features: Features, train: bool) -> Route:
        embedding = features.sentence
        if self.oracle:
            task = self.current if train else batch["task"]
            embedding = self.instructions[task].expand(len(embedding), -1)
        prompt = PromptView(batch, train)
        gate = partial(self.gate, prompt, embedding)
        if not train:
            gate = Mixture(gate, self.score_rows, partial(self.weigh, prompt, embedding))
        return Route([self.adapter], {self.adapter: gate})

    def gate(self, prompt: PromptView, embedding: Tensor, path: str, layer: nn.Module, x: Tensor) -> RankMap:
        hard = self.decide(prompt, embedding, path, x)
        return partial(self.fuse, path, layer, per_rank(hard, self.config.rank).unsqueeze(1))

    def decide(self, prompt: PromptView, embedding: Tensor, path: str, x: Tensor) -> Tensor:
        """[B, E]: the two experts of each row."""
        if self.config.pool == "call":
            return self.choices(path, x.float().mean(1), embedding)
        return prompt.once(path, lambda: self.choices(path, prompt.mean(x), embedding))

    def score_rows(self, path: str) -> Tensor:
        """[E, d_in]: s f B_i A_i of every expert i, f the head of its half, so that its score is one product with x.

        Made once for an inference (`prepare_inference`): nothing of it trains there.
        """
        if path not in self.scores:
            with torch.no_grad(), full_precision():
                _, _, layer = next(found for found in self.core.layers(self.adapter) if found[0] == path)
                a, b = (p.weight.float() for p in (layer.lora_A[self.adapter], layer.lora_B[self.adapter]))
                experts, heads = self.config.experts, self.modules["fusion"].weight(path)
                halves = heads.repeat_interleave(experts // 2, 0).unsqueeze(1)  # [E, 1, d_out]
                of_experts = layer.scaling[self.adapter] * halves @ b.unflatten(1, (experts, -1)).transpose(0, 1)
                self.scores[path] = (of_experts @ a.unflatten(0, (experts, -1))).squeeze(1)
        return self.scores[path]

    def weigh(self, prompt: PromptView, embedding: Tensor, paths: list[str]) -> Callable[[Tensor, Tensor], Tensor]:
        """w_1, w_2 at the chosen experts and 0 elsewhere, of the scores [B, n, L, E] of all experts."""
        masks: list[Tensor] = []

        def weigh(x: Tensor, scores: Tensor) -> Tensor:
            if not masks or self.config.pool == "call":
                hard = torch.stack([self.decide(prompt, embedding, path, x) for path in paths], 1).unsqueeze(1)
                masks[:] = [torch.zeros_like(hard).masked_fill(hard < 0.5, -torch.inf)]  # [B, 1, L, E]
            return (scores + masks[0]).softmax(-1)

        return weigh

    def choices(self, path: str, pooled: Tensor, embedding: Tensor) -> Tensor:
        """[B, E]: one-hot over the visual half, one-hot over the instruction half."""
        logits = (self.modules["visual"](path, pooled), self.modules["instruction"](path, embedding))
        return torch.cat([self.choose(z) for z in logits], -1)

    def choose(self, logits: Tensor) -> Tensor:
        """[B, E/2] → one-hot."""
        if self.config.gates == "trained":
            return straight_through(logits)
        return one_hot(logits.argmax(-1), logits.shape[-1]).to(logits.dtype)

    def fuse(self, path: str, layer: nn.Module, hard: Tensor, u: Tensor) -> Tensor:
        """u = A x [B, n, r] → w ⊗ (hard ⊙ u): the two chosen experts, weighed for every token."""
        with torch.autocast(u.device.type, enabled=False):
            u = u.float() * hard
            b = layer.scaling[self.adapter] * layer.lora_B[self.adapter].weight.float()
            in_rank_space = (self.modules["fusion"].weight(path) @ b).unflatten(
                1, (2, -1)
            )  # f_head B_half, [2, 2, r/2]
            heads = torch.stack([in_rank_space[0, 0], in_rank_space[1, 1]])
            scores = (u.unflatten(-1, (2, -1)) * heads).sum(-1)
            return u * per_rank(scores.softmax(-1), self.config.rank)

    def prepare_inference(self) -> None:
        """Nothing is folded: every gate depends on the sample."""
        self.scores = {}

    # ---- state -----------------------------------------------------------------------------------------------------
    def cost(self) -> Cost:
        """The gates read one vector per sample, the fusion r numbers per token: neither is counted."""
        means = {"mean instruction per task, fp32": 4 * len(self.tasks) * self.width} if self.oracle else {}
        return Cost(state=means, live=self.core.size(self.adapter))

    def state(self) -> dict[str, Any]:
        means = {f"instruction.{task}": mean for task, mean in self.instructions.items()}
        return {**means, "sentence_width": self.width, "current": self.current}

    def load_state(self, state: dict[str, Any]) -> None:
        self.current = state["current"]
        self._add_instruction_gate(state["sentence_width"])
        device = self.core.llava.device
        means = {k: v for k, v in state.items() if k.startswith("instruction.")}
        self.instructions = {int(k.split(".")[1]): mean.to(device) for k, mean in means.items()}
