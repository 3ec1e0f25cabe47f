"""Task experts outside of the subspace that is in use: what KeepLoRA and EBLoRA share (no method by itself).

Each linear has a basis M [d_in, k] of the input directions that its weight and the finished tasks use (adapters/subspace.py).
Before a task, the mean gradient of its weight without the part inside M gives the expert its first values; after it, what the
task used joins M. Neither pass needs a gradient of a weight (adapters/gradients.py). M is kept in host memory, and of the part
that W gives it only while the run trains.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any, Literal

import torch
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_module_weight
from pydantic import Field, model_validator
from torch import Tensor
from typing_extensions import Self

from hide_llava.adapters.gradients import evenly, input_moments, weight_gradients
from hide_llava.adapters.subspace import added, leading, of_weight, outside
from hide_llava.distributed import from_main
from hide_llava.methods.base import Context, Task
from hide_llava.methods.cost import Cost, Pass
from hide_llava.methods.experts import SummedExperts
from hide_llava.settings import Searched


class ResidualExperts(SummedExperts):
    """Subclasses say what an expert begins with (`begin`) and what of it trains."""

    name = ""

    class Config(SummedExperts.Config):
        weight_energy: Annotated[float | None, Searched((0.3, 0.9, 0.99))] = Field(
            0.6, ge=0, le=1
        )  # of W that M holds at first; None: M is empty at first
        task_energy: Annotated[float, Searched((0.9, 0.999, 0.95))] = Field(
            0.99, gt=0, le=1
        )  # of what a finished task used that M holds then
        share: float = Field(0.2, gt=0, le=1)  # of a task's records, evenly spaced, that both passes read
        features: Literal["activations", "gradients"] = "activations"  # what a finished task used: X, see above
        decomposition: Literal["exact", "randomised"] = "exact"  # of the residual gradient
        seed: int = Field(0, ge=0)  # of the randomised decomposition

        @model_validator(mode="after")
        def _begun_by_gradients(self) -> Self:
            if self.init_std is not None:
                raise ValueError(f"init_std={self.init_std}: A begins as directions of the gradient; leave it out")
            return self

    def setup(self) -> None:
        super().setup()
        self.used: dict[str, Tensor] = {}  # linear → what finished tasks added to M [d_in, k], fp32, in host memory
        self.pretrained: dict[str, Tensor] = {}  # linear → the part of M that W gives, made when first asked for
        self.at_work = False  # a task has begun and has not ended

    def linears(self) -> dict[str, LoraLayer]:
        """The linears of the current expert, in order."""
        return {path: layer for path, _, layer in self.core.layers(self.adapter)}

    def depths(self) -> dict[str, float]:
        """Linear → the place of its decoder layer, from 0 (the first) to 1 (the last)."""
        last = max(1, self.core.num_layers - 1)
        return {path: index / last for path, index, _ in self.core.layers(self.adapter)}

    # ---- at task boundaries ------------------------------------------------------------------------------------------
    def before_task(self, task: Task, context: Context) -> None:
        super().before_task(task, context)
        if context.loader is not None:  # else there are only shapes: `plan`
            self.choose(context)
        self.at_work = True

    def choose(self, context: Context) -> None:
        """Give the current expert its first values: one linear after another, the same in all processes."""
        layers = self.linears()
        seeds = {path: self.config.seed + place for place, path in enumerate(layers)}

        found: dict[str, tuple[Tensor, Tensor]] = {}

        def take(path: str, gradient: Tensor) -> None:
            seed = seeds[path] if self.config.decomposition == "randomised" else None
            found[path] = leading(outside(gradient.T, self.basis(path, layers[path])), self.config.rank, seed)

        self.look(weight_gradients, context, take)
        for path, (left, right) in found.items():  # not before: gradients of other layers may still be in the making
            self.begin(path, layers[path], left, right)
        from_main(*(parameter.data for parameter in self.core.parameters_of(self.adapter)))

    def begin(self, path: str, layer: LoraLayer, left: Tensor, right: Tensor) -> None:
        """The expert of a linear at the start of its task, from the leading singular vectors of the residual gradient.

        left [d_in, rank], of the inputs; right [d_out, rank], of the outputs.
        """
        raise NotImplementedError

    def look(self, find: Callable[..., None], context: Context, take: Callable[[str, Tensor], None]) -> None:
        """One of the passes of adapters/gradients.py over the task's sample."""
        find(self.core, self.adapter, context, evenly(len(context.train_data), self.config.share), take)

    def after_task(self, task: Task, context: Context) -> None:
        layers, moments = self.linears(), self.config.features == "activations"

        def take(path: str, found: Tensor) -> None:
            basis = self.basis(path, layers[path])
            more = added(basis, found if moments else found.T, self.config.task_energy, moments).cpu()
            self.used[path] = torch.cat([self.used[path], more], 1) if path in self.used else more

        self.look(input_moments if moments else weight_gradients, context, take)
        self.at_work = False

    def basis(self, path: str, layer: LoraLayer) -> Tensor:
        """M [d_in, k] of a linear as it is now, on the model's device."""
        if path not in self.pretrained:
            energy = self.config.weight_energy
            if energy is None:
                self.pretrained[path] = torch.zeros(layer.in_features, 0)
            else:
                self.pretrained[path] = of_weight(dequantize_module_weight(layer.get_base_layer()), energy).cpu()
        parts = [self.pretrained[path], *([self.used[path]] if path in self.used else [])]
        return torch.cat(parts, 1).to(self.core.llava.device)

    # ---- what it costs, and its state ---------------------------------------------------------------------------------
    def cost(self) -> Cost:
        """The parts of M that tasks add are stored; how many directions these are only the data say."""
        share = self.config.share
        some = Pass(f"{share:.0%} of the records, for the gradient that the expert begins with", "task", 1, 1,
                    lambda counts: max(1, int(share * counts[-1])))  # fmt: skip
        backwards = int(self.config.features == "gradients")
        after = replace(some, what=f"the same records, for the task's {self.config.features}", backwards=backwards)
        most = sum(4 * layer.in_features**2 for layer in self.linears().values())
        state = {"directions of the tasks' inputs, fp32, at most": most}
        return replace(super().cost(), passes=(some, after), state=state)

    def state(self) -> dict[str, Any]:
        """Of a task at work also A where it is frozen: a checkpoint holds what trains, and computed again A could differ."""
        state = {**super().state(), "at_work": self.at_work}
        state |= {f"used.{path}": directions for path, directions in self.used.items()}
        return state | {f"A.{path}": rows for path, rows in self.frozen_rows().items() if self.at_work}

    def frozen_rows(self) -> dict[str, Tensor]:
        """Linear → A of the current expert, where it does not train."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        super().load_state(state)
        self.at_work = state["at_work"]
        self.used = {key.removeprefix("used."): state[key].cpu() for key in state if key.startswith("used.")}
        for path, rows in self.frozen_rows().items() if self.at_work else ():
            rows.copy_(state[f"A.{path}"])
