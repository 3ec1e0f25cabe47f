"""Three methods that exist in the tests only: they show that the contract carries what later methods need."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from hide_llava.adapters.core import LoraSpec
from hide_llava.methods.base import MethodConfig, Route, register
from hide_llava.methods.lora import SequentialLora


@register
class TokenGatedExperts(SequentialLora):
    """A mixture of LoRA experts with one softmax router per linear, per token (as MoELoRA has it)."""

    name = "test_token_gate"

    class Config(LoraSpec):
        rank: int = 8
        experts: int = 4
        dropout: float = 0.0
        projector: str = "shared"

    def setup(self) -> None:
        self.core.add(self.adapter, self.config)
        self.routers = {}
        for i, (path, _, layer) in enumerate(self.core.layers(self.adapter)):
            self.modules[str(i)] = nn.Linear(layer.in_features, self.config.experts, bias=False)
            self.routers[path] = self.modules[str(i)]

    def params(self) -> list[dict[str, Any]]:
        return [*super().params(), {"params": list(self.modules.parameters()), "lr": 1e-2}]

    def route(self, batch: dict, features: Any, train: bool) -> Route:
        def gate(path: str, layer: nn.Module, x: Tensor) -> Tensor:
            weights = self.routers[path](x.float()).softmax(-1)
            return weights.repeat_interleave(self.config.rank // self.config.experts, -1)

        return Route([self.adapter], {self.adapter: gate})

    def prepare_inference(self) -> None:
        pass


@register
class PromptPool(SequentialLora):
    """Two prompts of a pool, chosen per sample by the CLIP image and text, inserted after BOS (as L2P has it)."""

    name = "test_prompts"
    reads_logits = False
    needs = frozenset({"clip_image", "clip_text"})

    class Config(MethodConfig):
        size: int = 4
        length: int = 3
        pull: float = 0.1

    def setup(self) -> None:
        width = self.core.llava.config.text_config.hidden_size
        self.modules["pool"] = nn.ParameterDict({
            "prompts": nn.Parameter(0.5 * torch.randn(self.config.size, self.config.length, width)),
            "key": nn.Parameter(torch.randn(self.config.size, 24)),
        })  # fmt: skip

    def before_task(self, task: Any, context: Any) -> None:
        pass

    def params(self) -> list[dict[str, Any]]:
        return [{"params": list(self.modules.parameters()), "lr": 1e-2}]

    def adapters(self) -> list[str]:
        return []

    def scores(self, features: Any) -> Tensor:
        query = features.image + features.text
        return cosine_similarity(query.unsqueeze(1), self.modules["pool"]["key"].unsqueeze(0), dim=-1)

    def route(self, batch: dict, features: Any, train: bool) -> Route:
        chosen = self.scores(features).topk(2, dim=1).indices
        return Route(prompts=self.modules["pool"]["prompts"][chosen].flatten(1, 2))

    def loss(self, output: Any, batch: dict, features: Any) -> dict[str, Tensor]:
        return {"pull": -self.config.pull * self.scores(features).topk(2, dim=1).values.sum(1).mean()}

    def prepare_inference(self) -> None:
        pass


@register
class FisherPenalty(SequentialLora):
    """Online EWC: λ/2 Σ F (θ − θ*)², F from per-example gradients after each task."""

    name = "test_fisher"

    class Config(SequentialLora.Config):
        rank: int = 4
        alpha: float = 8.0
        dropout: float = 0.0
        strength: float = 100.0
        projector: str = "frozen"

    def setup(self) -> None:
        self.fisher: list[Tensor] = []
        self.anchor: list[Tensor] = []

    def loss(self, output: Any, batch: dict, features: Any) -> dict[str, Tensor]:
        if not self.fisher:
            return {}
        now = self.core.parameters_of(self.adapter)
        terms = [(f * (p - a) ** 2).sum() for f, p, a in zip(self.fisher, now, self.anchor)]
        return {"ewc": self.config.strength / 2 * torch.stack(terms).sum()}

    def after_task(self, task: Any, context: Any) -> None:
        parameters = self.core.parameters_of(self.adapter)
        fisher = [torch.zeros_like(p) for p in parameters]
        for batch in context.loader(context.train_data, 1):
            gradients = torch.autograd.grad(context.forward(batch).loss, parameters)
            for total, gradient in zip(fisher, gradients):
                total += gradient**2 / len(context.train_data)
        self.fisher = fisher
        self.anchor = [p.detach().clone() for p in parameters]

    def state(self) -> dict[str, Any]:
        pairs = {"fisher": self.fisher, "anchor": self.anchor}
        return {f"{kind}.{i:04d}": t for kind, tensors in pairs.items() for i, t in enumerate(tensors)}

    def load_state(self, state: dict[str, Any]) -> None:
        self.fisher = [state[k] for k in sorted(state) if k.startswith("fisher.")]
        self.anchor = [state[k] for k in sorted(state) if k.startswith("anchor.")]
