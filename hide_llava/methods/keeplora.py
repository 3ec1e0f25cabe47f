"""KeepLoRA: each task learns in the part of a weight's input space that nothing before it uses
(Luo et al., ICLR 2026, arXiv 2601.19659; layer scales: KeepLoRA++, arXiv 2606.16256).

y = W x + s Σ_{i≤t} B_i A_i x,  s = alpha / rank; past experts are frozen, and at inference all are folded into W
M [d_in, k] of every linear: at first the leading input directions of W with the share `weight_energy` of its energy
before task t   A_t = c_l U_rᵀ, frozen; U_r: the `rank` leading left singular vectors of (I − M Mᵀ) Gᵀ,
                G = mean ∂ℓ/∂W_t over the share `share` of the task's records, at the model as it is; B_t = 0
in task t       B_t trains, so that the update reads nothing of an input inside the span of M
after task t    the leading directions of (I − M Mᵀ) X join M until it holds the share `task_energy` of ‖X‖²,
                X: the linear's inputs on these records (features: activations)
c_l grows linearly from `first_scale` in the first decoder layer to 1 in the last: 1 everywhere in KeepLoRA, from 0.2 in
KeepLoRA++. Where M leaves fewer than `rank` directions, the other rows of A_t are 0, and a linear whose inputs are all in
use learns nothing more.

Differences of published code (its part for LLaVA-1.5) and the option that restores each:
    features: gradients         X is the gradient Gᵀ of the finished model instead of the inputs, which it calls activations
    decomposition: randomised   U_r by `torch.svd_lowrank` with no more random directions than it wants (there unseeded)
Not offered: M, G and A in fp16 and gradients that underflow there; W rounded to the model's dtype after every task (here
the update of a task stays its adapter until answers are asked for).
Both passes need no gradient of a weight: adapters/gradients.py. M is kept in host memory, and of W's part only while it trains.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import torch
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_module_weight
from pydantic import Field
from torch import Tensor, nn

from hide_llava.adapters.gradients import evenly, input_moments, weight_gradients
from hide_llava.adapters.subspace import added, leading, of_weight, outside
from hide_llava.distributed import from_main
from hide_llava.methods.base import Context, Task, register
from hide_llava.methods.cost import Cost, Pass
from hide_llava.methods.experts import SummedExperts


@register
class KeepLora(SummedExperts):
    name = "keeplora"

    class Config(SummedExperts.Config):
        rank: int = Field(32, ge=1)
        alpha: float = Field(8.0, gt=0)
        weight_energy: float | None = Field(0.6, ge=0, le=1)  # of W that M holds at first; None: M is empty at first
        task_energy: float = Field(0.99, gt=0, le=1)  # of what a finished task used that M holds then
        share: float = Field(0.2, gt=0, le=1)  # of a task's records, evenly spaced, that both passes read
        features: Literal["activations", "gradients"] = "activations"  # what a finished task used: X, see above
        decomposition: Literal["exact", "randomised"] = "exact"  # of the residual gradient
        first_scale: float = Field(1.0, gt=0, le=1)  # c of the first decoder layer; KeepLoRA++: 0.2
        seed: int = Field(0, ge=0)  # of the randomised decomposition

    def setup(self) -> None:
        super().setup()
        self.used: dict[str, Tensor] = {}  # linear → what finished tasks added to M [d_in, k], fp32, in host memory
        self.pretrained: dict[str, Tensor] = {}  # linear → the part of M that W gives, made when first asked for
        self.at_work = False  # a task has begun and has not ended

    def linears(self) -> dict[str, LoraLayer]:
        return {path: layer for path, _, layer in self.core.layers(self.adapter)}

    def params(self) -> list[dict[str, Any]]:
        """B of the current expert; its A is frozen."""
        mine: list[nn.Parameter] = [layer.lora_B[self.adapter].weight for layer in self.linears().values()]
        return [{"params": mine, "lr": "adapter"}, *super().params()[1:]]

    # ---- at task boundaries ------------------------------------------------------------------------------------------
    def before_task(self, task: Task, context: Context) -> None:
        super().before_task(task, context)
        if context.loader is not None:  # else there are only shapes: `plan`
            self.choose(context)
        self.at_work = True

    def choose(self, context: Context) -> None:
        """Give A of the current expert its values."""
        layers, depth = self.linears(), max(1, self.core.num_layers - 1)
        scales = {path: self.scale(index / depth) for path, index, _ in self.core.layers(self.adapter)}
        seeds = {path: self.config.seed + place for place, path in enumerate(layers)}

        def take(path: str, gradient: Tensor) -> None:
            seed = seeds[path] if self.config.decomposition == "randomised" else None
            left, right = leading(outside(gradient.T, self.basis(path, layers[path])), self.config.rank, seed)
            self.begin(path, layers[path], scales[path] * left, right)

        weight_gradients(self.core, self.adapter, context, self.places(context), take)
        from_main(*(p.data for p in self.core.parameters_of(self.adapter)))

    def scale(self, depth: float) -> float:
        """c_l of the layer at `depth`, from 0 (the first) to 1 (the last)."""
        return self.config.first_scale + (1 - self.config.first_scale) * depth

    def begin(self, path: str, layer: LoraLayer, left: Tensor, right: Tensor) -> None:
        """The expert of a linear at the start of a task, from U_r [d_in, rank] (scaled) and the right vectors [d_out, rank]."""
        layer.lora_A[self.adapter].weight.data.copy_(left.T)

    def after_task(self, task: Task, context: Context) -> None:
        layers, moments = self.linears(), self.config.features == "activations"

        def take(path: str, found: Tensor) -> None:
            basis = self.basis(path, layers[path])
            more = added(basis, found if moments else found.T, self.config.task_energy, moments).cpu()
            self.used[path] = torch.cat([self.used[path], more], 1) if path in self.used else more

        look: Callable[..., None] = input_moments if moments else weight_gradients
        look(self.core, self.adapter, context, self.places(context), take)
        self.at_work = False

    def places(self, context: Context) -> list[int]:
        return evenly(len(context.train_data), self.config.share)

    def basis(self, path: str, layer: LoraLayer) -> Tensor:
        """M [d_in, k] of a linear as it is now, on the model's device."""
        if path not in self.pretrained:
            energy, weight = self.config.weight_energy, layer.get_base_layer()
            nothing = torch.zeros(layer.in_features, 0)
            self.pretrained[path] = (
                nothing if energy is None else of_weight(dequantize_module_weight(weight), energy).cpu()
            )
        parts = [self.pretrained[path], *([self.used[path]] if path in self.used else [])]
        return torch.cat(parts, 1).to(self.core.llava.device)

    # ---- what it costs, and its state ---------------------------------------------------------------------------------
    def cost(self) -> Cost:
        """The parts of M that tasks add are stored; how many directions these are only the data say."""
        share = self.config.share
        some = Pass(f"{share:.0%} of the records, for the gradient that A is made of", "task", 1, 1,
                    lambda counts: max(1, int(share * counts[-1])))  # fmt: skip
        backwards = int(self.config.features == "gradients")
        after = replace(some, what=f"the same records, for the task's {self.config.features}", backwards=backwards)
        most = sum(4 * layer.in_features**2 for layer in self.linears().values())
        state = {"directions of the tasks' inputs, fp32, at most": most}
        return replace(super().cost(), passes=(some, after), state=state)

    def state(self) -> dict[str, Any]:
        """A is frozen, so a checkpoint within a task holds it here: computed again it could differ in its last bits."""
        spaces = {f"used.{path}": directions for path, directions in self.used.items()}
        if not self.at_work:
            return {**super().state(), **spaces}
        rows = {f"A.{path}": layer.lora_A[self.adapter].weight.detach() for path, layer in self.linears().items()}
        return {**super().state(), **spaces, **rows}

    def load_state(self, state: dict[str, Any]) -> None:
        super().load_state(state)
        self.used = {key.removeprefix("used."): state[key].cpu() for key in state if key.startswith("used.")}
        self.at_work = any(key.startswith("A.") for key in state)
        for path, layer in self.linears().items() if self.at_work else ():
            layer.lora_A[self.adapter].weight.data.copy_(state[f"A.{path}"])
