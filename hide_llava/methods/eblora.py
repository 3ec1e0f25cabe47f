"""EBLoRA: energy-balanced LoRA, an update whose singular values are all equal, outside of what earlier tasks use
(Gu et al., ICML 2026, arXiv 2602.00722).

y = W x + Σ_{i≤t} (alpha / rank) s_i U_i V_iᵀ x,  UᵀU = VᵀV = I, one scalar s for every linear: (A, B) = (Vᵀ, U)
M [d_in, k] of every linear as in KeepLoRA, made of finished tasks (and of W, with `weight_energy`)
before task t   U S Vᵀ: the `rank` leading singular directions of G (I − M Mᵀ), G the mean gradient of W on a sample;
                s = −(scale of the layer), linearly from `first_scale` in the first decoder layer to `last_scale` in the last
in task t       U, V and s train. With T_X(D) = D − X Dᵀ X and Q = I − M Mᵀ,
                gradients  g_U ← T_U(g_U),  g_V ← T_V(Q g_V), as AdamW gets them
                updates    D_U, D_V, as AdamW makes them, times √(step_scale / rank);
                           U ← polar(U + T_U(D_U)),  V ← polar(Q (V + T_V(Q D_V)))
after task t    as KeepLoRA: what the task used joins M. Then B ← s B, so that the finished expert is a plain LoRA.
Weight decay moves s and the projector; of U and V its part is not tangent and falls away.

Differences of published code and the option that restores each:
    gradients_at: base          both passes at the base model instead of at the model as it is
    decomposition: randomised   by `torch.svd_lowrank` with no more random directions than it wants (there unseeded)
Its M is made of gradients, which it calls activations: `features: gradients`, here the default too; M has no part of W in its
UCIT scripts. Not offered: the projector of the base model in its passes, fp16 there, and weight decay of the projector's biases.
Where M leaves fewer than `rank` directions, columns of U and V are 0 and stay so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from peft.tuners.lora import LoraLayer
from pydantic import Field
from torch import Tensor, nn

from hide_llava.adapters.stiefel import retracted, tangent
from hide_llava.adapters.subspace import outside
from hide_llava.methods.base import Context, Features, Route, Task, register
from hide_llava.methods.residual import ResidualExperts


@register
class EBLora(ResidualExperts):
    name = "eblora"
    reads_parameters = True
    reads_logits = False

    class Config(ResidualExperts.Config):
        rank: int = Field(16, ge=1)
        alpha: float = Field(32.0, gt=0)
        weight_energy: float | None = Field(None, ge=0, le=1)  # of W that M holds at first; None: M is empty at first
        features: Literal["activations", "gradients"] = "gradients"  # what a finished task used
        gradients_at: Literal["current", "base"] = "current"  # the model at which both passes take gradients
        first_scale: float = Field(0.0, ge=0)  # −s of the first decoder layer before a task
        last_scale: float = Field(0.0, ge=0)  # −s of the last one
        step_scale: float = Field(4096.0, gt=0)  # updates of U and V are taken times √(step_scale / rank)

    def setup(self) -> None:
        super().setup()
        self.looking = False  # a pass over the sample is at work
        self.places: dict[str, int] = {}  # linear → its place in `s`
        self.steps: dict[str, tuple[Tensor, Tensor]] = {}  # linear → U and V before the optimizer's step
        self.frames: dict[str, Tensor] = {}  # linear → M of the task at work, on the device

    def scales(self) -> nn.Parameter:
        """s of every linear, [linears]."""
        return self.modules["scale"]["s"]

    def params(self) -> list[dict[str, Any]]:
        mine, *projector = super().params()
        return [{"params": [*mine["params"], self.scales()], "lr": "adapter"}, *projector]

    def make_scales(self) -> None:
        depths, (first, last) = self.depths(), (self.config.first_scale, self.config.last_scale)
        self.places = {path: place for place, path in enumerate(depths)}
        values = torch.tensor([-(first + (last - first) * depth) for depth in depths.values()])
        self.modules["scale"] = nn.ParameterDict({"s": nn.Parameter(values.to(self.core.llava.device))})

    # ---- at task boundaries ------------------------------------------------------------------------------------------
    def before_task(self, task: Task, context: Context) -> None:
        self.frames = {}
        super().before_task(task, context)
        self.make_scales()
        if context.loader is not None:
            self.make_frames()

    def begin(self, path: str, layer: LoraLayer, left: Tensor, right: Tensor) -> None:
        layer.lora_A[self.adapter].weight.data.copy_(left.T)
        layer.lora_B[self.adapter].weight.data.copy_(right)

    def look(self, find: Callable[..., None], context: Context, take: Callable[[str, Tensor], None]) -> None:
        self.looking = True
        super().look(find, context, take)
        self.looking = False

    @torch.no_grad()
    def absorb(self) -> None:
        """B ← s B and s ← 1 of every linear: what answers is a plain LoRA."""
        for path, layer in self.linears().items():
            layer.lora_B[self.adapter].weight.mul_(self.scales()[self.places[path]])
        self.scales().fill_(1.0)

    def after_task(self, task: Task, context: Context) -> None:
        self.frames = {}
        super().after_task(task, context)
        self.absorb()

    # ---- every step --------------------------------------------------------------------------------------------------
    def gate(self, path: str, layer: nn.Module, x: Tensor) -> Tensor:
        return self.scales()[self.places[path]].expand(self.config.rank)

    def route(self, batch: dict, features: Features, train: bool) -> Route:
        if not train or (self.looking and self.config.gradients_at == "base"):
            return Route()
        return Route(self.experts, {self.adapter: self.gate} if self.at_work else {})

    def make_frames(self) -> None:
        """M of every linear stays on the device for the whole of a task: every step projects by it."""
        self.frames = {path: self.basis(path, layer) for path, layer in self.linears().items()}

    @torch.no_grad()
    def on_gradients(self, step: int) -> None:
        for path, layer in self.linears().items():
            a, b = layer.lora_A[self.adapter].weight, layer.lora_B[self.adapter].weight
            b.grad = tangent(b, b.grad)
            a.grad = tangent(a.T, outside(a.grad.T, self.frames[path])).T.contiguous()
            self.steps[path] = (b.detach().clone(), a.detach().T.clone())

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        factor = (self.config.step_scale / self.config.rank) ** 0.5
        for path, layer in self.linears().items():
            a, b = layer.lora_A[self.adapter].weight, layer.lora_B[self.adapter].weight
            (u, v), used = self.steps.pop(path), self.frames[path]
            b.copy_(retracted(u, tangent(u, factor * (b - u))))
            moved = v + tangent(v, outside(factor * (a.T - v), used))
            a.copy_(retracted(outside(moved, used), torch.zeros_like(v)).T)

    def load_state(self, state: dict[str, Any]) -> None:
        super().load_state(state)
        if self.at_work:
            self.make_frames()
        if not self.places:  # a stage that was restored: its experts are there, and no task has begun
            self.make_scales()
