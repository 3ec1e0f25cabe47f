"""The ablations of the HiDe paper (arXiv 2503.12941) that differ at inference only, as variants of one finished run.

They are named by their content. The paper's figure 1 (layer-wise CKA) is `cka`; `top-expert`, `modality` and `fusion-weight` are
likely its figures 2, 4 and 5, and carry those numbers as second names only. Values that the paper varies are not all known
here, so these are ours, and few: the demo's run is to be asked in two minutes. A grid of `eval` makes more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Options = dict[str, Any]  # of HiDe, by name


@dataclass(frozen=True)
class Facts:
    """What the cases of an ablation depend on. depth: decoder layers of the model; tasks: how many are learned; own: the run's
    options."""

    depth: int
    tasks: int
    own: Options

    def layers(self, wanted: list[int]) -> list[int]:
        """Decoder layers (from 0) as the run spells them where it expands the same ones, so that they are no other variant."""
        own = self.own["expanded_layers"]
        if sorted({layer % self.depth for layer in own}) == wanted:
            return own
        return [-1] if wanted == [self.depth - 1] else wanted

    @property
    def top(self) -> list[int]:
        """The last layer alone."""
        return self.layers([self.depth - 1])


@dataclass(frozen=True)
class Case:
    """One variant: its short name in tables, the options that make it, and its place on the axis of a sweep."""

    name: str
    options: Options
    at: float | None = None


@dataclass(frozen=True)
class Ablation:
    """title: what it shows; reading: how to read it; axis: what is swept, "" for named cases."""

    title: str
    reading: str
    cases: Callable[[Facts], list[Case]]
    axis: str = ""


def top_expert(facts: Facts) -> list[Case]:
    top = {"expanded_layers": facts.top}
    return [
        Case("right expert", {**top, "routing": "oracle"}),
        Case("wrong expert", {**top, "routing": "wrong"}),
        Case("fused expert", {"expanded_layers": []}),
        Case("routed experts", {**top, "routing": "softmax_learned"}),
    ]


def modality(facts: Facts) -> list[Case]:
    names = {0.0: "text", 0.5: "both", 1.0: "image"}
    return [Case(names.get(alpha, f"α = {alpha}"), {"image_weight": alpha, "text_weight": 1 - alpha}, alpha)
            for alpha in (0.0, 0.25, 0.5, 0.75, 1.0)]  # fmt: skip


def fusion_weight(facts: Facts) -> list[Case]:
    mean = 1 / facts.tasks
    steps = [epsilon for epsilon in (0.6, 1.0) if epsilon != mean]
    cases = [Case(f"ε = 1/{facts.tasks}", {"fusion_weight": None}, mean)]
    cases += [Case(f"ε = {epsilon}", {"fusion_weight": epsilon}, epsilon) for epsilon in steps]
    return sorted(cases, key=lambda case: case.at)


def layers(facts: Facts) -> list[Case]:
    depth = facts.depth
    wanted = {"none": [], "the last": [depth - 1], "the upper half": list(range(depth // 2, depth)),
              "all": list(range(depth))}  # fmt: skip
    sets: dict[tuple[int, ...], str] = {}
    for name, some in wanted.items():
        if len(some) < depth or name == "all":
            sets.setdefault(tuple(some), name)
    return [Case(name, {"expanded_layers": facts.layers(list(some))}) for some, name in sets.items()]


def routing(facts: Facts) -> list[Case]:
    cases = [Case("soft", {"router": "anchors", "routing": "softmax_learned"}),
             Case("hard (top 1)", {"router": "anchors", "routing": "top1"}),
             Case("nearest mean", {"router": "nearest_mean"})]  # fmt: skip
    if facts.own["router_statistics"] == "ranpac":
        cases.append(Case("RanPAC", {"router": "ranpac"}))
    return [*cases, Case("oracle", {"routing": "oracle"})]


def fusion(facts: Facts) -> list[Case]:
    return [Case("products Σ BA", {"fusion": "delta_sum"}), Case("factors ΣB ΣA", {"fusion": "factor_sum"})]


ABLATIONS = {
    "top-expert": Ablation(
        "Which expert stands in the last layer, while all other layers are fused",
        "Right: the expert of the question's own task. Wrong: that of the task learned after it (after the last, the first). "
        "Fused: the last layer is fused too. Right and wrong are told the task id.", top_expert),
    "modality": Ablation(
        "What the router looks at: text, image or both",
        "Similarity is α · image + (1 − α) · text, so that the temperature means the same in all rows.", modality,
        "α, weight of the image"),
    "fusion-weight": Ablation(
        "Fusion coefficient ε of the fused layers", "1/T is the mean of the T experts, 1 their sum.", fusion_weight,
        "fusion coefficient ε"),
    "layers": Ablation(
        "Which decoder layers keep their experts apart",
        "Kept apart: numbers in the experts of those layers, all tasks. Stored: the same with one fused adapter of an expert's "
        "size in the other layers, in bf16, as the paper counts. Time: of an answer with its scoring, on this machine.", layers),
    "routing": Ablation(
        "How the router weighs the experts",
        "Soft: softmax of the cosines with the anchors. Hard: the expert with the highest alone. Nearest mean: the expert at the "
        "least distance instead. RanPAC, where the run has its statistics: by ridge regression on random features. Oracle: the "
        "expert of the question's own task, which is told.", routing),
    "fusion": Ablation("What the fused layers add up",
                       "Products: Σ ε B A, the paper's formula. Factors: (Σ ε B)(Σ A), as the authors' code has it.", fusion),
}  # fmt: skip
NUMBERS = {"fig1": "cka", "fig2": "top-expert", "fig4": "modality", "fig5": "fusion-weight"}
EVERY = ("cka", *ABLATIONS, "orders", "leakage")
