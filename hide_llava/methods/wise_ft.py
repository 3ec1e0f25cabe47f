"""WiSE-FT: sequential LoRA whose weights are averaged with the base model's when it answers (Wortsman et al., CVPR 2022,
arXiv 2109.01903).

θ = (1 − mix) θ_0 + mix θ_t,  θ_0: the base model, θ_t: as the last task left it; of the decoder W + mix · s B A, and of the
projector its weights. Training is that of sequential LoRA, so `hide-llava eval RUN method.mix=0.3` asks a finished run anew.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field
from torch import Tensor

from hide_llava.methods.base import Context, Task, register
from hide_llava.methods.lora import SequentialLora
from hide_llava.settings import Inference, Searched


@register
class WiseFt(SequentialLora):
    name = "wise-ft"

    class Config(SequentialLora.Config):
        mix: Annotated[Inference[float], Searched((0.25, 0.75, 0.9))] = Field(
            0.5, ge=0, le=1
        )  # share of the trained weights; 0: the base model, 1: sequential LoRA

    def setup(self) -> None:
        self.base = self.core.projector_state()
        self.trained: dict[str, Tensor] | None = None  # the projector as it was trained, while another one answers

    def before_task(self, task: Task, context: Context) -> None:
        if self.trained is not None:
            self.core.load_projector(self.trained)
            self.trained = None
        super().before_task(task, context)

    def prepare_inference(self) -> None:
        self.core.fold([self.adapter], [self.config.mix], "delta_sum", [])
        if self.config.projector == "frozen":
            return
        if self.trained is None:
            self.trained = self.core.projector_state()
        mix = self.config.mix
        averaged = {k: (1 - mix) * self.base[k].float() + mix * value.float() for k, value in self.trained.items()}
        self.core.load_projector({k: value.to(self.trained[k].dtype) for k, value in averaged.items()})

    def load_state(self, state: dict[str, Any]) -> None:
        """A restored stage has brought its own projector."""
        self.trained = None
