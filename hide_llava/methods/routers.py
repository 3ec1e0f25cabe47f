"""How one of several experts, one a task, is chosen for a sample: by its CLIP features, or because its task is told.

f_v, f_i: features of a sample's image and text; a^v_t, a^i_t: their means over the training data of task t.
    anchors       the highest α cos(f_v, a^v_t) + β cos(f_i, a^i_t)     as HiDe does (arXiv 2503.12941)
    nearest_mean  the lowest ‖f_v − a^v_t‖² + ‖f_i − a^i_t‖²            nearest class mean, the classes being the tasks
    ranpac        the highest of hᵀ W, W = (G + λ I)⁻¹ C                RanPAC (McDonnell et al., arXiv 2307.02251)
                  h = ReLU(Rᵀ f), R ~ N(0, 1) drawn once, f: f_v and f_i one behind the other, each of length 1 (ours)
                  G = Σ h hᵀ and C = Σ h yᵀ over the training records of all tasks so far, y: one-hot of the task
    oracle        the expert of the task that is told
λ is given, or of 10⁻⁸ … 10⁸ the one whose W of four fifths of the records has the least squared error on the others. That
error follows from G and C of those others, tr(Wᵀ G W) − 2 tr(Wᵀ C) + n, so no record of a past task is kept or read again.

Of a sample without an image the first two compare the text alone, and to ranpac f_v is 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal
from zlib import crc32

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn.functional import normalize
from typing_extensions import Self

from hide_llava.adapters.anchors import Anchors, similarities
from hide_llava.distributed import all_reduce, is_main
from hide_llava.errors import UserError
from hide_llava.methods.base import Features
from hide_llava.precision import full_precision
from hide_llava.settings import Inference, MethodConfig

Router = Literal["anchors", "nearest_mean", "ranpac", "oracle"]
Modality = Literal["both", "image", "text"]
NEEDS = frozenset({"clip_image", "clip_text"})
KEPT_FOR = {"anchors": ("means", "ranpac"), "nearest_mean": ("means", "ranpac"), "ranpac": ("ranpac",)}
RIDGES = tuple(10.0**power for power in range(-8, 9))
FOLDS = 5  # one record in so many is held out


class RouterOptions(MethodConfig):
    """Of a method with an expert for each task: fields of whoever inherits from this beside others, and says itself which
    values `router` and `router_statistics` have."""

    router_features: Inference[Modality] = "both"  # of nearest_mean (individual, mrlora: of anchors too): both | image | text
    random_features: int = Field(2000, ge=1)  # of router_statistics=ranpac: numbers in h; RanPAC takes up to 10,000
    ridge: Inference[float | None] = Field(None, gt=0)  # λ of ranpac; None: chosen on held-out training records

    @model_validator(mode="after")
    def _statistics_of_the_router(self) -> Self:
        if self.router_statistics not in KEPT_FOR.get(self.router, (self.router_statistics,)):
            raise ValueError(
                f"router={self.router}: must have its statistics, which training collects with "
                "method.router_statistics=means (anchors, nearest_mean) or =ranpac (all three)"
            )
        return self


# ---- the rules -------------------------------------------------------------------------------------------------------
def similarity(
    features: Features, image: list[Tensor | None], text: list[Tensor], alpha: float, beta: float
) -> Tensor:
    """r [B, E] fp32 = α cos(f_v, a^v) + β cos(f_i, a^i); without an image, the text cosine alone.

    image, text: the anchor [d] of each of E experts; an image anchor is None where the task had no image.
    """
    by_text = similarities(features.text, text)
    known = [torch.zeros_like(text[0][:1]).expand(features.image.shape[1]) if a is None else a for a in image]
    by_image = similarities(features.image, known)
    both = alpha * by_image + beta * by_text
    has_image = features.has_image[:, None] & torch.tensor([a is not None for a in image], device=both.device)
    return torch.where(has_image, both, (alpha + beta) * by_text)


def distances(features: Features, image: list[Tensor | None], text: list[Tensor], modality: Modality) -> Tensor:
    """‖f − a‖² [B, E] fp32 to the means of E tasks, of the features that `modality` names.

    Without an image, to the mean of the text alone. The mean image of a task that had none is 0, as its features are.
    """
    seen = [torch.zeros_like(features.image[0]) if a is None else a for a in image]
    by_text, by_image = _squared(features.text, text), _squared(features.image, seen)
    chosen = {"both": by_text + by_image, "image": by_image, "text": by_text}[modality]
    return torch.where(features.has_image[:, None], chosen, by_text)


def _squared(features: Tensor, means: list[Tensor]) -> Tensor:
    return ((features.float()[:, None] - torch.stack(means).float()) ** 2).sum(-1)


def best_ridge(gram: Tensor, sums: Tensor, counts: Tensor) -> float:
    """λ of RIDGES with the least squared error on held-out records.

    gram [2, M, M], sums [2, M, E], counts [2, E]: G, C and the records of each task, of the records that W is fitted to and of
    those that are held out; fp64.

    Raises:
        UserError: one of the two parts is empty.
    """
    if not bool(counts.sum(1).all()):
        raise UserError("router=ranpac: too few training records to choose the ridge on held-out ones; give method.ridge=1.")
    values, vectors = torch.linalg.eigh(gram[0])
    errors = []
    for ridge in RIDGES:
        w = _ridge(values, vectors, sums[0], ridge)
        errors.append(float((w * (gram[1] @ w)).sum() - 2 * (w * sums[1]).sum() + counts[1].sum()))
    return RIDGES[min(range(len(RIDGES)), key=errors.__getitem__)]


def solve(gram: Tensor, sums: Tensor, ridge: float) -> Tensor:
    """W [M, E] = (G + λ I)⁻¹ C, of G [M, M] and C [M, E] in fp64; λ > 0."""
    return _ridge(*torch.linalg.eigh(gram), sums, ridge)


def _ridge(values: Tensor, vectors: Tensor, sums: Tensor, ridge: float) -> Tensor:
    """By the eigenvalues of G, of which rounding makes some a little less than 0."""
    return vectors @ ((vectors.T @ sums) / (values.clamp(min=0.0) + ridge)[:, None])


def held_out(batch: Mapping[str, Any]) -> Tensor:
    """[B] bool: whether a record is held out. By what it is, so that it stays on one side in every epoch and on every
    layout of processes, and after a task is resumed."""
    keys = zip(batch["ids"], batch["texts"], batch["sizes"])
    return torch.tensor([crc32(repr((i, text, [tuple(s) for s in sizes])).encode()) % FOLDS == 0 for i, text, sizes in keys])


# ---- statistics ------------------------------------------------------------------------------------------------------
class RandomMoments:
    """G and C of random features, each of the records that W is fitted to (0) and of those that are held out (1).

    While a task is gathered, the main process holds the sums of earlier tasks and its own, any other its own alone.
    """

    def __init__(self, count: int):
        self.count = count  # M
        self.projection: Tensor | None = None  # R [d, M] fp32
        self.gram: Tensor | None = None  # [2, M, M] fp64
        self.sums: dict[int, Tensor] = {}  # task → its columns of C [2, M] fp64
        self.counts: dict[int, Tensor] = {}  # task → records [2] int64

    def start(self, task: int, width: int, device: torch.device) -> None:
        """Begin gathering for `task`; width: of f."""
        if self.projection is None:
            seed = torch.Generator().manual_seed(0)
            self.projection = torch.randn(width, self.count, generator=seed, device="cpu").to(device)
            self.gram = torch.zeros(2, self.count, self.count, dtype=torch.float64, device=device)
        elif not is_main():
            self.gram.zero_()
        self.sums[task] = torch.zeros(2, self.count, dtype=torch.float64, device=device)
        self.counts[task] = torch.zeros(2, dtype=torch.int64, device=device)

    def random_features(self, features: Features) -> Tensor:
        """h [B, M] fp64, of a product in fp32."""
        joined = torch.cat([normalize(features.image), normalize(features.text)], 1)
        with full_precision():
            return (joined @ self.projection).relu().double()

    def add(self, task: int, features: Features, held: Tensor) -> None:
        """Add records of `task`; held [B] bool: of `held_out`."""
        h = self.random_features(features)
        parts = torch.stack([~held, held]).to(h.device)  # as a factor: rows picked by a mask would make the host wait for a GPU
        for part, rows in enumerate(parts.unsqueeze(-1) * h):
            self.gram[part] += rows.T @ rows
            self.sums[task][part] += rows.sum(0)
        self.counts[task] += parts.sum(1)

    def reduced(self, task: int) -> tuple[Tensor, Tensor, Tensor]:
        """G, and C and records of `task`, over all processes (copies)."""
        found = self.gram.clone(), self.sums[task].clone(), self.counts[task].clone()
        all_reduce(*found)
        return found

    def classifier(self, tasks: list[int], ridge: float | None) -> Tensor:
        """W [M, tasks] fp64; ridge: λ, None for the best on held-out records (UserError as of `best_ridge`)."""
        sums = torch.stack([self.sums[t] for t in tasks], 2)
        if ridge is None:
            ridge = best_ridge(self.gram, sums, torch.stack([self.counts[t] for t in tasks], 1))
        return solve(self.gram.sum(0), sums.sum(0), ridge)

    def state(self) -> dict[str, Tensor]:
        tensors = {"projection": self.projection, "gram": self.gram}
        for task, total in self.sums.items():
            tensors |= {f"{task}.sum": total, f"{task}.count": self.counts[task]}
        return {name: tensor.cpu() for name, tensor in tensors.items() if tensor is not None}

    def load(self, state: dict[str, Tensor], device: torch.device) -> None:
        here = {name: tensor.to(device, copy=True) for name, tensor in state.items()}
        self.projection, self.gram = here.pop("projection", None), here.pop("gram", None)
        self.sums = {int(k.split(".")[0]): v for k, v in here.items() if k.endswith(".sum")}
        self.counts = {int(k.split(".")[0]): v for k, v in here.items() if k.endswith(".count")}


class Statistics:
    """What routers know of the tasks: means of their features and, if asked for, moments of random ones, gathered in training.

    kind: of means. zeros_count: a record without an image counts as one of zeros in the mean of the images. random_features:
    how many numbers h has, None to keep means alone.
    """

    def __init__(self, kind: type[Anchors] = Anchors, zeros_count: bool = False, random_features: int | None = None):
        self.image, self.text, self.zeros_count = kind(), kind(), zeros_count
        self.moments = None if random_features is None else RandomMoments(random_features)
        self.gathering = False  # the current task's are still per-process sums
        self.weights: Tensor | None = None  # W of ranpac, of one inference

    def start(self, task: int, widths: dict[str, int], device: torch.device) -> None:
        """Begin gathering for `task`; widths: of `Context`."""
        self.image.start(task, widths["clip_image"], device)
        self.text.start(task, widths["clip_text"], device)
        if self.moments is not None:
            self.moments.start(task, widths["clip_image"] + widths["clip_text"], device)
        self.gathering = True

    def add(self, task: int, features: Features, batch: Mapping[str, Any]) -> None:
        """Add a collated batch of `task`, once per sample seen in training."""
        self.image.add(task, features.image if self.zeros_count else features.image[features.has_image])
        self.text.add(task, features.text)
        if self.moments is not None:
            self.moments.add(task, features, held_out(batch))

    def finish(self, task: int) -> None:
        """The sums of all processes, in each of them."""
        for means in (self.image, self.text):
            means.sums[task], means.counts[task] = means.reduced(task)
        if self.moments is not None:
            self.moments.gram, self.moments.sums[task], self.moments.counts[task] = self.moments.reduced(task)
        self.gathering = False

    # ---- choosing ----------------------------------------------------------------------------------------------------
    def means(self, tasks: list[int]) -> tuple[list[Tensor | None], list[Tensor]]:
        """Of image (None where a task had none) and text, [d] fp32 each."""
        return [self.image.mean(t) for t in tasks], [self.text.mean(t) for t in tasks]

    def prepare(self, options: RouterOptions, tasks: list[int]) -> None:
        """Once before an inference; UserError as of `best_ridge`."""
        self.weights = self.moments.classifier(tasks, options.ridge) if options.router == "ranpac" else None

    def choose(self, options: RouterOptions, features: Features, tasks: list[int]) -> Tensor:
        """[B] long: the place in `tasks` of each sample's expert, by `options.router`, none that is told the task."""
        if options.router == "ranpac":
            return (self.moments.random_features(features) @ self.weights).argmax(1)
        image, text = self.means(tasks)
        if options.router == "nearest_mean":
            return distances(features, image, text, options.router_features).argmin(1)
        alpha, beta = {"both": (0.5, 0.5), "image": (1.0, 0.0), "text": (0.0, 1.0)}[options.router_features]
        return similarity(features, image, text, alpha, beta).argmax(1)

    # ---- cost and state ----------------------------------------------------------------------------------------------
    def sizes(self, tasks: int) -> dict[str, int]:
        """Bytes after so many tasks, asked in the first."""
        held = [t for a in (self.image, self.text) for t in (*a.sums.values(), *a.counts.values())]
        found = {"image and text anchor per task": tasks * sum(t.nbytes for t in held)}
        if (moments := self.moments) is not None:
            once = moments.projection.nbytes + moments.gram.nbytes
            each = sum(t.nbytes for t in (*moments.sums.values(), *moments.counts.values()))
            found["second moments of random features, of all tasks together"] = once + tasks * each
        return found

    def state(self, current: int | None) -> dict[str, Tensor]:
        """Of all processes; current: the task at work."""
        gathered = current if self.gathering else None
        parts = {"image_anchor": self.image.state(gathered), "text_anchor": self.text.state(gathered)}
        if self.moments is not None:
            parts["random_features"] = self.moments.state()
            if self.gathering:
                gram, total, count = (tensor.cpu() for tensor in self.moments.reduced(current))
                parts["random_features"] |= {"gram": gram, f"{current}.sum": total, f"{current}.count": count}
        return {f"{kind}.{name}": tensor for kind, tensors in parts.items() for name, tensor in tensors.items()}

    def load(self, state: dict[str, Any], current: int | None, gathering: bool, device: torch.device) -> None:
        """Inverse of `state`. Stored sums of a task at work are the total: the main process goes on from them, others from 0."""

        def part(kind: str) -> dict[str, Tensor]:
            return {k.removeprefix(f"{kind}."): v for k, v in state.items() if k.startswith(f"{kind}.")}

        self.gathering = gathering
        gathered = current if gathering else None
        self.image.load(part("image_anchor"), device, gathered)
        self.text.load(part("text_anchor"), device, gathered)
        if self.moments is not None:
            self.moments.load(part("random_features"), device)
            if gathering and not is_main():
                self.moments.start(current, len(self.moments.projection), device)
