"""Layer-wise CKA of a run for a paper: how alike the models after each task are, layer by layer, and pair by pair."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hide_llava.results.drawing import Theme, cut
from hide_llava.storage import read_json
from hide_llava.studies.cka.across_layers import analyse
from hide_llava.studies.cka.report import write_cka
from hide_llava.studies.registry import results_folder
from hide_llava.studies.reproduce.paper import DOUBLE, SMALL, labelled, legend, panels
from hide_llava.training.lineage import chain_of
from hide_llava.training.run_folder import RunFolder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Found = dict[str, Any]  # content of cka.json


def similarity(folder: Path, samples: int) -> Found:
    """The CKA of the run's stages as RUN/results/cka/ holds it, measured now if it is not there or is about other weights.

    samples: prompts of each task, where it is measured.
    """
    place = results_folder(folder, "cka")
    stages = [stage["name"] for stage in RunFolder(folder).manifest["stages"]]
    weights = chain_of(RunFolder(folder).stage(stages[-1]))
    file = place / "cka.json"
    if file.is_file() and (found := read_json(file)).get("weights") == weights and len(found["models"]) == len(stages) \
            and not found["legacy"]:  # fmt: skip
        return found
    write_cka(analyse(folder, len(stages), samples=samples), place)
    return read_json(file)


def draw(theme: Theme, found: Found) -> Figure:
    """Left: the mean over pairs of every layer with its interval. Then task by task in the first, a middle and the last two."""
    layers, depth = found["layers"], len(found["layers"])
    shown = sorted({0, depth // 2, depth - 2, depth - 1} & set(range(depth)))
    figure, (left, *maps) = panels(theme, DOUBLE, 2.0, (2.0, *[1.0] * len(shown)))
    numbers = [one["layer"] for one in layers]
    left.fill_between(numbers, [one["low"] for one in layers], [one["high"] for one in layers], color=theme.series[0],
                      alpha=0.2, linewidth=0)  # fmt: skip
    left.plot(numbers, [one["mean"] for one in layers], color=theme.series[0], marker="o", markersize=2.5, linewidth=1.2,
              label="pairs of tasks")  # fmt: skip
    left.plot(numbers, [one["null"] for one in layers], color=theme.series[1], linewidth=1, linestyle=(0, (4, 3)),
              label="prompts permuted")  # fmt: skip
    left.set_ylim(min(-0.05, *(one["null"] for one in layers)), 1.05)
    left.xaxis.get_major_locator().set_params(integer=True)
    left.grid(axis="y", color=theme.grid, linewidth=0.6)
    labelled(left, theme, "decoder layer, from 0", "CKA")
    legend(left, theme, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    for axes, layer in zip(maps, shown):
        _map(axes, theme, layers[layer], [cut(model, 10) for model in found["models"]], axes is maps[0])
    return figure


def _map(axes: Any, theme: Theme, layer: dict[str, Any], models: list[str], named: bool) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    ramp = LinearSegmentedColormap.from_list(theme.name, theme.ramp)
    axes.imshow(layer["matrix"], cmap=ramp, vmin=0, vmax=1)
    places = range(len(models))
    axes.set_xticks(places, models, rotation=90, fontsize=SMALL - 1)
    axes.set_yticks(places, models if named else [], fontsize=SMALL - 1)
    axes.set_title(f"layer {layer['layer']}", color=theme.ink, fontsize=SMALL)
