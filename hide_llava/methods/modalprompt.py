"""ModalPrompt: a prompt per task, aligned with the task's images and texts (Zeng et al., arXiv 2410.05849).

c_t = mean over tokens of φ_t(P_t),  φ_t = Linear(d, d) – SiLU – Linear(d, d_clip)        prototype of task t
L = CE + (1 − cos(f_img, c_t)) + (1 − cos(f_txt, c_t))                                    f: frozen CLIP features
g_j = λ cos(f_img, c_j) + (1 − λ) cos(f_txt, c_j)                                         guidance towards task j
Training:  [BOS, top-K past prompts by g, P_t, prompt, image, answer];  inference: top-K of all learned prompts
The larger g, the nearer to the text. Past prompts are frozen. Of φ_t only c_t is needed after the task, and kept.
A record without image has no image term: cos(f_img, ·) = 0 in g. Where CLIP's image and text features differ in width (they
do not in CLIP-L), c_t has a part of its own for each.

Differences of published code and the option that restores each:
    reference: mcitlib     K counts the current prompt too (MCITlib's K is 1, so it trains without the past ones)
    lr: 2.0e-5             MCITlib's optimizer groups put prompts and φ with the projector, whatever its configuration says
Not offered, because they are defects: MCITlib's mask of trainable prompts is empty in the last task, whose prompt is so
never learned; Prism never adds the two alignment terms, and lets the first sample choose for its batch.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from hide_llava.adapters.anchors import similarities
from hide_llava.distributed import from_main
from hide_llava.methods.base import Context, Features, Route, Task, register
from hide_llava.methods.cost import Cost
from hide_llava.methods.prompt_pool import best, chosen_weights, resize, word_prompts
from hide_llava.methods.prompts import Prompted


@register
class ModalPrompt(Prompted):
    name = "modalprompt"
    reads_logits = False

    class Config(Prompted.Config):
        length: int = Field(10, ge=1)  # p, tokens of a task's prompt
        top_k: int = Field(3, ge=1)  # K, past prompts per sample in training, prompts at inference
        image_share: float = Field(0.5, ge=0, le=1)  # λ, share of the image in the guidance
        reference: Literal["none", "mcitlib"] = "none"  # none (the paper) | mcitlib

    def setup(self) -> None:
        super().setup()
        self.modules["prompts"] = nn.ParameterDict()
        self.prototypes: list[Tensor] = []  # c_j [d_clip] of the finished tasks

    def before_task(self, task: Task, context: Context) -> None:
        super().before_task(task, context)
        self.build()
        image, text = context.widths["clip_image"], context.widths["clip_text"]
        out = text if image == text else image + text
        layers = (nn.Linear(self.width, self.width), nn.SiLU(), nn.Linear(self.width, out))
        self.modules["transform"] = nn.Sequential(*layers).to(self.core.llava.device)

    def build(self) -> None:
        resize(self.modules["prompts"], self.names, lambda: word_prompts(self.core, self.config.length))

    def prompt_parameters(self) -> list[nn.Parameter]:
        transform = self.modules["transform"].parameters() if "transform" in self.modules else ()
        return [self.modules["prompts"][self.names[-1]], *transform]

    def prototype(self) -> Tensor:
        """c_t [d_clip] of the current task, fp32."""
        prompt = self.modules["prompts"][self.names[-1]]
        with torch.autocast(prompt.device.type, enabled=False):
            return self.modules["transform"](prompt.float()).mean(0)

    def cosines(self, features: Features, prototypes: list[Tensor]) -> tuple[Tensor, Tensor]:
        """[B, len(prototypes)] of the image and of the text."""
        image, text = features.image, features.text
        width = image.shape[-1]
        if width == text.shape[-1]:
            return similarities(image, prototypes), similarities(text, prototypes)
        return similarities(image, [c[:width] for c in prototypes]), similarities(text, [c[width:] for c in prototypes])

    def guidance(self, features: Features) -> Tensor:
        """g [B, tasks finished]."""
        image, text = self.cosines(features, self.prototypes)
        return self.config.image_share * image + (1 - self.config.image_share) * text

    def choose(self, features: Features, train: bool) -> Tensor:
        """Places of the tasks whose prompts are inserted, in the order of the sequence: [B, up to K (+ 1)]."""
        count, device = len(features.has_image), features.has_image.device
        wanted = self.config.top_k - (train and self.config.reference == "mcitlib")
        chosen = torch.zeros(count, 0, dtype=torch.long, device=device)
        if self.prototypes and wanted:
            chosen = best(self.guidance(features), wanted).flip(1)
        current = torch.full((count, int(train)), self.learned - 1, device=device)
        return torch.cat([chosen, current], 1)

    def route(self, batch: dict, features: Features, train: bool) -> Route:
        chosen = self.choose(features, train)
        prompts = torch.stack(list(self.modules["prompts"].values()))[chosen].flatten(1, 2)
        return Route(prompts=prompts, weights=chosen_weights(chosen, self.names))

    def cost(self) -> Cost:
        count, dropped = len(self.tasks), sum(p.numel() for p in self.modules["transform"].parameters())
        past = min(self.config.top_k - (self.config.reference == "mcitlib"), count - 1)
        tokens = ((past + 1) * self.config.length, min(self.config.top_k, count) * self.config.length)
        prototypes = {"a prototype per task, fp32": 4 * count * self.modules["transform"][-1].out_features}
        return Cost(state=prototypes, prompts=tokens, dropped=dropped)

    def loss(self, output: Any, batch: dict, features: Features) -> dict[str, Tensor]:
        image, text = (1 - cosine[:, 0] for cosine in self.cosines(features, [self.prototype()]))
        return {"image": (image * features.has_image).mean(), "text": text.mean()}

    @torch.no_grad()
    def after_task(self, task: Task, context: Context) -> None:
        self.prototypes.append(self.prototype().detach().clone())
        from_main(self.prototypes[-1])
        del self.modules["transform"]

    # ---- state -----------------------------------------------------------------------------------------------------
    def state(self) -> dict[str, Any]:
        prototypes = {f"prototype.{name}": c for name, c in zip(self.names, self.prototypes)}
        return {**prototypes, "learned": self.learned}

    def load_state(self, state: dict[str, Any]) -> None:
        self.learned = state["learned"]
        device = self.core.llava.device
        stored = [state.get(f"prototype.{name}") for name in self.names]
        self.prototypes = [c.to(device) for c in stored if c is not None]
        self.build()
        if "transform" in self.modules and len(self.prototypes) == self.learned:  # no task is being trained
            del self.modules["transform"]
