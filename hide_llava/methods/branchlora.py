"""BranchLoRA: Enhancing Multimodal Continual Instruction Tuning with BranchLoRA (ACL 2025, arXiv 2506.02041).

N branches share one A on every adapted linear; a router of its own for every task τ:
    y = W x + s Σ_i g_i B_i A x,   g = softmax over the K largest of W_τ z, 0 elsewhere,   s = α / r
z is the mean of the linear's input over the prompt: one choice per answer, taken at prefill. The paper's summaries say the
first token (`reads: first`). Under causal attention that is BOS, which sees nothing of the question: g is then the same
for every sample, the K chosen branches get proportional gradients, stay equal under Adam, and the router learns nothing.
    loss         CE + λ (1 − cos(f_v, k^v_t)) + λ (1 − cos(f_i, k^i_t))     keys of task t, f: CLIP image and text embedding
    after task   in every linear the `freeze` most used branches that are still free (by Σ g) are frozen for good
    inference    the router of the task whose keys fit best, per sample: argmax_τ cos(f_v, k^v_τ) + cos(f_i, k^i_τ)
A goes on training, as in the paper. Without an image only the text keys count.

No public code was at hand; the paper's summaries leave these open, and this is how we close them: the number of branches
frozen per task (one; the last free one never), ties, the keys' learning rate, one dropout mask for all branches.
State: N adapters that share A (each stores a copy), one router and two keys per task, the frozen set.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, one_hot
from typing_extensions import Self

from hide_llava.adapters.fused import Shared
from hide_llava.adapters.observe import observe
from hide_llava.adapters.token_gates import OfPrompt, PromptView, Routers, top_k_softmax
from hide_llava.distributed import from_main
from hide_llava.methods.base import Context, Features, Route, Task, register
from hide_llava.methods.cost import Cost, Pass, of_task
from hide_llava.methods.lora import SequentialLora
from hide_llava.settings import Strength


class TaskRouter(nn.Module):
    """W_τ of every linear, and the keys [d] by which a sample finds its task."""

    def __init__(self, routers: Routers, widths: dict[str, int], device: torch.device):
        super().__init__()
        self.routers = routers
        self.image_key = nn.Parameter(0.02 * torch.randn(widths["clip_image"], device=device))
        self.text_key = nn.Parameter(0.02 * torch.randn(widths["clip_text"], device=device))

    def cosines(self, features: Features) -> tuple[Tensor, Tensor]:
        """[B] cosine of image (0 without one) and text with this task's keys."""
        by_image = cosine_similarity(features.image, self.image_key[None], dim=-1)
        return by_image * features.has_image, cosine_similarity(features.text, self.text_key[None], dim=-1)


class OncePerInput:
    """A function of (path, x) that the N adapters of one layer ask in turn: computed for the first of them."""

    def __init__(self, compute: Callable[[str, Tensor], Tensor]):
        self.compute, self.last = compute, (None, None, None)

    def __call__(self, path: str, x: Tensor) -> Tensor:
        if self.last[0] != path or self.last[1] is not x:
            self.last = (path, x, self.compute(path, x))
        return self.last[2]


class SharedDropout(nn.Dropout):
    """Dropout of the input that the N branches of one linear read: one mask and one copy of it, not N of them.

    The copy is let go when all have asked for it.
    """

    def __init__(self, p: float, branches: int):
        super().__init__(p)
        self.shared = Shared(branches)

    def forward(self, x: Tensor) -> Tensor:
        return self.shared(x, self._drop)

    def _drop(self, x: Tensor) -> Tensor:
        dropped, device = super().forward(x), x.device.type
        if torch.is_autocast_enabled(device):  # as A would cast it, once instead of N times
            dropped = dropped.to(torch.get_autocast_dtype(device))
        return dropped


@register
class BranchLora(SequentialLora):
    name = "branchlora"
    adapter = "branch-01"
    needs = frozenset({"clip_image", "clip_text"})
    reads_parameters = True  # the keys
    reads_logits = False

    class Config(SequentialLora.Config):
        rank: int = Field(16, ge=1)  # of A and of every B
        alpha: float = Field(32.0, gt=0)
        branches: int = Field(8, ge=2)  # N, in every adapted linear
        top_k: int = Field(2, ge=1)  # K, branches of a sample
        freeze: int = Field(1, ge=0)  # branches frozen after each task, per linear
        reads: Literal["prompt", "first"] = "prompt"  # what the router reads: the mean of the prompt | first (token)
        key_weight: Strength[float] = Field(1.0, ge=0)  # λ, weight of the two key terms
        key_lr: float = Field(1e-2, gt=0)  # learning rate of the keys
        samples: int = Field(256, ge=1)  # records of a task by which its most used branches are found

        @model_validator(mode="after")
        def _enough_branches(self) -> Self:
            if self.top_k > self.branches:
                raise ValueError(f"top_k={self.top_k}: must be at most branches={self.branches}")
            if self.freeze >= self.branches:
                raise ValueError(f"freeze={self.freeze}: must be below branches={self.branches}")
            return self

    def setup(self) -> None:
        self.branches = [f"branch-{i + 1:02d}" for i in range(self.config.branches)]
        for name in self.branches:
            self.core.add(name, self.config)
        for _, _, layer in self.core.layers(self.adapter):
            dropout = SharedDropout(self.config.dropout, len(self.branches)) if self.config.dropout else nn.Identity()
            for name in self.branches:
                layer.lora_A[name] = layer.lora_A[self.adapter]  # one module, so it stays one after loading
                layer.lora_dropout[name] = dropout
        self.places = {path: i for i, (path, _, _) in enumerate(self.core.layers(self.adapter))}
        self.frozen = torch.zeros(len(self.places), len(self.branches), dtype=torch.bool, device="cpu")
        self.learned: list[int] = []  # finished tasks and the current one

    # ---- training ----------------------------------------------------------------------------------------------------
    def before_task(self, task: Task, context: Context) -> None:
        self._add_router(task.index, context.widths)
        if task.index not in self.learned:
            self.learned.append(task.index)

    def _add_router(self, task: int, widths: dict[str, int]) -> None:
        self.widths = {name: widths[name] for name in ("clip_image", "clip_text")}
        routers = Routers(self.core, self.adapter, len(self.branches))
        self.modules[f"task-{task + 1:02d}"] = TaskRouter(routers, self.widths, self.core.llava.device)

    def router(self, task: int) -> TaskRouter:
        return self.modules[f"task-{task + 1:02d}"]

    def params(self) -> list[dict[str, Any]]:
        trained = []
        for path, _, layer in self.core.layers(self.adapter):
            free = [name for name, fixed in zip(self.branches, self.frozen[self.places[path]]) if not fixed]
            trained += [layer.lora_A[self.adapter].weight, *(layer.lora_B[name].weight for name in free)]
        current, groups = self.router(self.learned[-1]), super().params()
        groups[0]["params"] = [*trained, *current.routers.parameters()]
        return [*groups, {"params": [current.image_key, current.text_key], "lr": self.config.key_lr}]

    def adapters(self) -> list[str]:
        return self.branches  # the frozen ones too: their A has changed

    def loss(self, output: Any, batch: dict, features: Features) -> dict[str, Tensor]:
        by_image, by_text = self.router(self.learned[-1]).cosines(features)
        return {
            "keys": self.config.key_weight * ((features.has_image.float() - by_image).mean() + (1 - by_text).mean())
        }

    def after_task(self, task: Task, context: Context) -> None:
        if self.config.freeze:
            self.freeze(self.usage(task, context))

    def usage(self, task: Task, context: Context) -> Tensor:
        """Σ g [linears, N] fp64 of a sample of the task."""
        total = torch.zeros(self.frozen.shape, dtype=torch.float64, device=self.core.llava.device)
        here = torch.zeros(1, dtype=torch.long, device=total.device)

        def see(path: str, x: Tensor, batch: dict) -> None:
            total[self.places[path]] += self.weights(PromptView(batch, True), [task.index], here, path, x)[0]

        observe(self.core, self.adapter, context, self.config.samples, task.index, see)
        from_main(total)
        return total.cpu()

    def freeze(self, usage: Tensor) -> None:
        """Freeze the most used free branches of each linear; the last free one never."""
        by_use = usage.masked_fill(self.frozen, -1.0).argsort(dim=-1, descending=True, stable=True)  # frozen ones last
        count = ((~self.frozen).sum(-1, keepdim=True) - 1).clamp(max=self.config.freeze)
        self.frozen = self.frozen | (by_use.argsort(-1) < count)

    # ---- routing -----------------------------------------------------------------------------------------------------
    def route(self, batch: dict, features: Features, train: bool) -> Route:
        known = self.learned[-1:] if train else self.learned
        fit = torch.stack([sum(self.router(task).cosines(features)) for task in known])  # [T, B]
        chosen = fit.argmax(0)
        weigh = OncePerInput(partial(self.weights, PromptView(batch, train), known, chosen))
        if train:
            return Route(list(self.branches), {n: partial(self.gate, i, weigh) for i, n in enumerate(self.branches)})
        reported = {f"task-{t + 1:02d}": w for t, w in zip(known, one_hot(chosen, len(known)).float().T)}
        rank = self.config.rank * len(self.branches)
        return Route(["routed"], {"routed": OfPrompt(weigh, rank)}, weights=reported)

    def weights(self, prompt: PromptView, known: list[int], chosen: Tensor, path: str, x: Tensor) -> Tensor:
        """g [B, N] of each row by the router of its chosen task."""

        def decide() -> Tensor:
            read = prompt.first(x) if self.config.reads == "first" else prompt.mean(x)
            logits = torch.stack([self.router(task).routers(path, read) for task in known])
            return top_k_softmax(logits[chosen, torch.arange(len(chosen), device=chosen.device)], self.config.top_k)

        return prompt.once(path, decide)

    @staticmethod
    def gate(branch: int, weigh: OncePerInput, path: str, layer: nn.Module, x: Tensor) -> Tensor:
        return weigh(path, x)[:, branch : branch + 1]

    def prepare_inference(self) -> None:
        """The branches depend on the sample: side by side in one adapter, so that a token costs one pair of products."""
        self.core.concatenate("routed", self.branches, list(range(self.core.num_layers)))

    # ---- state -------------------------------------------------------------------------------------------------------
    def cost(self) -> Cost:
        """Every branch multiplies with the shared A anew, in training and in answering. Routers read one vector a sample."""
        limit, live = self.config.samples, sum(self.core.size(name) for name in self.branches)
        usage = Pass(f"{limit} records of the task, for the branches' use", "task", records=of_task(limit))
        return Cost((usage,) if self.config.freeze else (), {"frozen branches": self.frozen.numel()}, live=live)

    def state(self) -> dict[str, Any]:
        return {"learned": list(self.learned), "widths": dict(self.widths), "frozen": self.frozen}

    def load_state(self, state: dict[str, Any]) -> None:
        self.learned, self.frozen = list(state["learned"]), state["frozen"]
        wanted = {f"task-{task + 1:02d}": task for task in self.learned}
        for name in [n for n in self.modules if n not in wanted]:
            del self.modules[name]
        for name, task in wanted.items():
            if name not in self.modules:
                self._add_router(task, state["widths"])
