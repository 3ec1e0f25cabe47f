"""Task experts of which one answers each sample: what `individual` and MR-LoRA share (no method by itself)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from torch import Tensor
from torch.nn.functional import one_hot

from hide_llava.adapters.core import Core
from hide_llava.methods.base import Context, Features, Route, Task
from hide_llava.methods.cost import Cost
from hide_llava.methods.experts import IndependentExperts
from hide_llava.methods.routers import KEPT_FOR, NEEDS, RouterOptions, Statistics


class ChosenExperts(IndependentExperts):
    """y = W x + s B_e A_e x, e chosen for each sample by `router`, whose values a subclass names."""

    name = ""
    reads_logits = False

    class Config(RouterOptions, IndependentExperts.Config):
        router_statistics: Literal["none", "means", "ranpac"] = "none"  # collected in training: none | means | ranpac

    def __init__(self, config: Any, core: Core, tasks: list[Task]):
        super().__init__(config, core, tasks)
        self.collects = config.router_statistics != "none"
        self.by_features = config.router in KEPT_FOR
        if self.collects or self.by_features:
            self.needs |= NEEDS
        moments = config.random_features if config.router_statistics == "ranpac" else None
        self.statistics = Statistics(random_features=moments)

    # ---- training ----------------------------------------------------------------------------------------------------
    def before_task(self, task: Task, context: Context) -> None:
        super().before_task(task, context)
        if self.collects:
            self.statistics.start(task.index, context.widths, self.core.llava.device)

    def loss(self, output: Any, batch: dict, features: Features) -> dict[str, Tensor]:
        """No extra term; gathers the router's statistics, once per sample seen in training."""
        if self.collects:
            self.statistics.add(self.learned[-1], features, batch)
        return {}

    def after_task(self, task: Task, context: Context) -> None:
        super().after_task(task, context)
        if self.collects:
            self.statistics.finish(task.index)

    # ---- inference ---------------------------------------------------------------------------------------------------
    def prepare_inference(self) -> None:
        super().prepare_inference()
        if self.by_features:
            self.hold()
            self.statistics.prepare(self.config, self.learned)

    def hold(self) -> None:
        """All experts side by side, for `hard_route`."""
        self.core.concatenate("routed", self.experts, list(range(self.core.num_layers)))

    def hard_route(self, chosen: Tensor) -> Route:
        """chosen [B] long: the place in `learned` of each sample's expert, which answers it with its projector."""
        weights = one_hot(chosen, len(self.learned)).float()
        named = {expert: weights[:, i] for i, expert in enumerate(self.experts)}
        gate = weights.repeat_interleave(self.config.rank, 1)
        return Route(["routed"], {"routed": gate}, projectors=self.chosen_projectors(named), weights=named)

    def choose_by_features(self, features: Features) -> Tensor:
        """[B] long: place in `learned` of each sample's expert, by a router that looks at features."""
        return self.statistics.choose(self.config, features, self.learned)

    # ---- cost and state ----------------------------------------------------------------------------------------------
    def cost(self) -> Cost:
        cost, tasks = super().cost(), len(self.tasks)
        state = {**cost.state, **(self.statistics.sizes(tasks) if self.collects else {})}
        return replace(cost, state=state, live=tasks * self.core.size(self.adapter) if self.by_features else 0)

    def state(self) -> dict[str, Any]:
        if not self.collects:
            return super().state()
        statistics = self.statistics.state(self.learned[-1])
        return {**super().state(), **statistics, "gathering": self.statistics.gathering}

    def load_state(self, state: dict[str, Any]) -> None:
        super().load_state(state)
        if self.collects:
            self.statistics.load(state, self.learned[-1], state["gathering"], self.core.llava.device)
