"""LLaVA-c, a RECONSTRUCTION (arXiv 2506.08666): spectral-aware consolidation (SAC) of what a task
changed, and unsupervised inquiry regularisation (UIR) on text.

y = W x + s Σ_{i<t} B'_i A_i x + s B_t A_t x,  past updates frozen, in training and at inference
SAC, after task t:  s B_t A_t = U Σ Vᵀ  →  s B'_t A_t = U g(Σ) Vᵀ
UIR, in training:   L = CE + λ · mean over inquiries of D(θ, θ_anchor)

Known from the paper: ModelMix, θ_{t−1} + α Δθ, is g(σ) = α σ; SAC lets the factor depend on σ; UIR holds the model's
language features near those of the old model on text inquiries that need no answers. Not public, so ours, as options:
    spectrum    soft       g(σ) = σ² / (σ + c · mean σ),  c: softness
                energy     g(σ) = σ for the leading directions with the share `energy` of Σ σ², `mix` · σ for the others
                constant   g(σ) = `mix` · σ: plain ModelMix
    distance    mse        of the output of decoder layer `layer` (−1: the last, normed), mean over the inquiry's tokens
                kl         KL(anchor ‖ model) of the next token, mean over the inquiry's tokens
    anchor      base       the untouched model;  previous: the model as the last task left it
    inquiries   a JSON file with a list of questions, drawn by record; none: the record's own first question, as text
LoRA in place of full fine-tuning. The projector is frozen; with `projector: shared` it is trained, and not consolidated.
"""

from __future__ import annotations

import zlib
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn.functional import kl_div
from torch.nn.utils.rnn import pad_sequence
from typing_extensions import Self

from hide_llava.adapters.consolidation import by_energy, constant, rescaled, soft
from hide_llava.adapters.probe import without_dropout
from hide_llava.distributed import from_main
from hide_llava.errors import UserError
from hide_llava.methods.base import Context, Features, Route, Task, register
from hide_llava.methods.cost import Cost, Pass
from hide_llava.methods.experts import SummedExperts
from hide_llava.settings import Strength
from hide_llava.storage import read_json


def distance(kind: str, now: Tensor, then: Tensor, mask: Tensor) -> Tensor:
    """Scalar: mean over a row's tokens in `mask` [B, n], then over rows, of the MSE or KL of [B, n, d] tensors."""
    if kind == "kl":
        now, then = now.log_softmax(-1), then.log_softmax(-1)
        tokens = kl_div(now, then, reduction="none", log_target=True).sum(-1)
    else:
        tokens = (now - then).square().mean(-1)
    return ((tokens * mask).sum(1) / mask.sum(1)).mean()


@register
class LlavaC(SummedExperts):
    name = "llavac"
    reads_logits = False
    labels = ("reconstruction",)

    class Config(SummedExperts.Config):
        projector: Literal["shared", "frozen"] = "frozen"
        strength: Strength[float] = Field(1.0, ge=0)  # λ, weight of the inquiry term
        spectrum: Literal["soft", "energy", "constant"] = "soft"  # g: soft | energy | constant
        mix: float = Field(0.5, gt=0, le=1)  # α, factor of energy and constant
        energy: float = Field(0.9, gt=0, le=1)  # share of Σ σ² that spectrum=energy leaves as it is
        softness: Strength[float] = Field(1.0, ge=0)  # c of spectrum=soft
        distance: Literal["mse", "kl"] = "mse"  # D: mse | kl
        layer: int = -1  # whose output is compared: 1 the first decoder layer, -1 the last
        anchor: Literal["base", "previous"] = "base"  # what the model is held near: the base | the previous model
        inquiries: str | None = None  # JSON file with a list of questions; none: the record's own

        @model_validator(mode="after")
        def _a_layer(self) -> Self:
            if self.layer == 0:
                raise ValueError(f"layer={self.layer}: must be a decoder layer from 1 on, or from −1 back")
            return self

    def setup(self) -> None:
        super().setup()
        depth = self.core.num_layers
        if not 1 <= abs(self.config.layer) <= depth:
            raise UserError(
                f"method.layer={self.config.layer}: the model has decoder layers 1 to {depth} (or −1 to −{depth})."
            )
        self.inquiries = None if self.config.inquiries is None else read_inquiries(Path(self.config.inquiries))

    # ---- UIR ---------------------------------------------------------------------------------------------------------
    def asked(self, batch: dict) -> list[str]:
        """One inquiry for each row, by its id and text alone: the same in any batch and any process."""
        if self.inquiries is None:
            return batch["texts"]
        rows = zip(batch["ids"], batch["texts"])
        return [self.inquiries[zlib.crc32(f"{i}\n{text}".encode()) % len(self.inquiries)] for i, text in rows]

    def view(self, ids: Tensor, mask: Tensor, route: Route) -> Tensor:
        """What `distance` compares, [B, n, d] fp32 (kl: [B, n, V]), of text under `route`; without dropout."""
        llava, backbone = self.core.llava, self.core.backbone
        half = llava.dtype != torch.float32
        with without_dropout(self.core), self.core.routed(route):
            with torch.autocast(llava.device.type, llava.dtype, enabled=half):
                out = backbone.decoder(ids, attention_mask=mask, output_hidden_states=True, use_cache=False)
                if self.config.distance == "kl":
                    return backbone.logits(out.last_hidden_state).float()
        return out.hidden_states[self.config.layer].float()

    def loss(self, output: Any, batch: dict, features: Features) -> dict[str, Tensor]:
        device = self.core.llava.device
        reader = self.core.backbone.reader()
        rows = [torch.tensor(reader.question(text, ()).ids) for text in self.asked(batch)]
        ids = pad_sequence(rows, batch_first=True).to(device)
        mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True).to(device)
        now = self.view(ids, mask, Route(self.experts))
        with torch.no_grad():
            then = self.view(ids, mask, Route([] if self.config.anchor == "base" else self.experts[:-1]))
        return {"inquiry": self.config.strength * distance(self.config.distance, now, then, mask)}

    def cost(self) -> Cost:
        now = Pass("the inquiry, with gradient", "step", 1, 1, text_only=True)
        then = Pass(f"the inquiry by the {self.config.anchor} model", "step", text_only=True)
        return replace(super().cost(), passes=(now, then))

    # ---- SAC ---------------------------------------------------------------------------------------------------------
    @torch.no_grad()
    def after_task(self, task: Task, context: Context) -> None:
        gains = {
            "soft": partial(soft, softness=self.config.softness),
            "energy": partial(by_energy, mix=self.config.mix, energy=self.config.energy),
            "constant": partial(constant, mix=self.config.mix),
        }[self.config.spectrum]
        for _, _, layer in self.core.layers(self.adapter):
            a, b = layer.lora_A[self.adapter].weight, layer.lora_B[self.adapter].weight
            b.copy_(rescaled(a, b, gains))
            from_main(b)


def read_inquiries(path: Path) -> list[str]:
    """Raises UserError when the file is not a JSON list of questions."""
    questions = read_json(path)
    if not isinstance(questions, list) or not questions or not all(isinstance(q, str) and q for q in questions):
        raise UserError(f"{path}: method.inquiries must be a JSON list of questions, none of them empty.")
    return questions
