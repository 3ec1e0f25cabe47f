"""Options that a finished run's studies decide, and what they say it from."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from hide_llava.errors import UserError
from hide_llava.storage import read_json, sha256

CKA = Path("results") / "cka" / "cka.json"


@dataclass(frozen=True)
class Decision:
    """A value that was asked for as `auto`. because: the evidence in a sentence; source: the file it is read from, relative to
    the run, and its SHA-256; weights: what was compared there, as `stage.json` of its last stage calls it."""

    value: Any
    because: str
    source: str
    sha256: str
    weights: str


def separate_layers(run: Path) -> Decision:
    """The decoder layers that the tasks make unlike each other, which HiDe keeps apart, while it fuses the others.

    HiDe's premise is that the layers in which the models of the tasks are alike can be fused. Here the layers are sorted by
    their mean CKA over pairs of models, and those below the widest gap are kept apart. The gap counts only if the 95 %
    intervals of the two layers beside it do not overlap.

    Raises:
        UserError: the run has no CKA, one that gives no intervals, or one that shows no such gap.
    """
    file = run / CKA
    how = f"`hide-llava analyze cka {run} --stage N`, N being its last stage"
    if not file.is_file():
        raise UserError(
            f"method.expanded_layers=auto is decided by the layer-wise CKA of a finished run, and there is no {file}. Train "
            f"with a list of layers, then make it: {how}; and then `hide-llava eval {run} method.expanded_layers=auto`."
        )
    found = read_json(file)
    layers = sorted(found["layers"], key=lambda one: (one["mean"], -one["layer"]))
    if any(one["low"] is None for one in layers) or not found.get("weights"):
        raise UserError(f"{file}: was made with --legacy or by an earlier version, and cannot decide "
                        f"method.expanded_layers=auto; make it anew: {how}.")  # fmt: skip
    gaps = [above["mean"] - below["mean"] for below, above in pairwise(layers)]
    cut = max(range(len(gaps)), key=gaps.__getitem__, default=None)
    if cut is None or layers[cut]["high"] >= layers[cut + 1]["low"]:
        raise UserError(
            f"{file}: no layer stands apart (the 95 % intervals of neighbours in similarity overlap), so "
            "method.expanded_layers=auto decides nothing; name the layers, e.g. method.expanded_layers=[-1]."
        )
    below, above, value = layers[cut], layers[cut + 1], sorted(one["layer"] for one in layers[: cut + 1])
    because = (
        f"CKA of the models after {', '.join(found['models'])}: at most {_interval(below)} in layers {value}, at least "
        f"{_interval(above)} in the others"
    )
    return Decision(value, because, str(CKA), sha256(file), found["weights"])


def _interval(layer: dict[str, Any]) -> str:
    return f"{layer['mean']:.3f} [{layer['low']:.3f}, {layer['high']:.3f}]"
