"""The demo: six small tasks with sequential LoRA and HiDe on a CPU, and in three sentences what they remember."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from hide_llava import pipeline
from hide_llava.config import compose
from hide_llava.errors import UserError
from hide_llava.results.aggregates import forgetting, last, mft
from hide_llava.results.matrix import AccuracyMatrix
from hide_llava.results.report import write_comparison
from hide_llava.results.run_reader import read_run
from hide_llava.results.tables import format_matrix
from hide_llava.training.run import Run

METHODS = {
    "zero_shot": ["method=zero_shot"],
    "lora": ["method=lora-mini"],
    "hide": ["method=hide-mini"],
    "hide-expand_all": ["method=hide-mini", "method.expanded_layers=[0,1,2,3,4,5,6,7]"],
}
TRAINED_ONCE = "hide"  # the other HiDe run differs from it at inference only and takes over its stages


def demo(output: Path, seed: int = 0) -> None:
    """Run all, print their accuracy matrices, write one page that compares them, and say what was seen."""
    start, folders = time.time(), []
    for name, words in METHODS.items():
        folder = output / name
        pipeline.say(f"=== {name}")
        words = [*words, "benchmark=mini-ucit", "model=mini", "train=mini", f"seed={seed}", f"output={folder}"]
        config = compose(words)
        if name.startswith(TRAINED_ONCE) and name != TRAINED_ONCE:
            pipeline.reuse_stages(output / TRAINED_ONCE, Run(config))
        pipeline.run(config)
        folders.append(folder)
    matrices = {folder.name: read_run(folder).matrix for folder in folders}
    for name, matrix in matrices.items():
        print(f"\n{name}\n{format_matrix(matrix)}")
    page = write_comparison(folders, output)
    print("\nWhat this shows, as the mean score of the six tasks:")
    for number, sentence in enumerate(findings(matrices), 1):
        print(f"{number}. {sentence}")
    print(f"\nreport: {page}\ndone in {time.time() - start:.0f} s")


def findings(matrices: Mapping[str, AccuracyMatrix]) -> list[str]:
    """Three sentences with the measured numbers, of the runs that METHODS names.

    Raises UserError for a run that was not evaluated to its end.
    """
    lora = matrices["lora"]
    untaught, left, hide, routed = (_known(last(matrices[name])) for name in METHODS)
    learned, forgot = _known(mft(lora)), _known(forgetting(lora))
    drops = [_known(row[j]) - _known(lora.cells[-1][j]) for j, row in enumerate(lora.cells[:-1])]
    worst = drops.index(max(drops))
    before, after = _known(lora.cells[worst][worst]), _known(lora.cells[-1][worst])
    return [
        f"The model scores {untaught:.1f} of 100 before it is taught, and {learned:.1f} on each task right after learning it.",
        f"Taught one task after the other with one LoRA, it has {left:.1f} at the end: {forgot:.1f} points of the earlier tasks "
        f"are forgotten, most of {lora.task_titles[worst]} ({before:.0f} before, {after:.0f} after).",
        "HiDe, which keeps an expert for each task, fuses them in the lower layers and chooses among them in the last, ends at "
        f"{hide:.1f}, {_apart(hide - left)} one LoRA; choosing in every layer ends at {routed:.1f}, so fusing "
        f"{_costs(routed - hide)}.",
    ]


def _known(value: float | None) -> float:
    if value is None:
        raise UserError("The demo's runs are not evaluated to their end; run the demo again, it goes on where it stopped.")
    return value


def _apart(points: float) -> str:
    return f"{abs(points):.1f} points {'above' if points >= 0 else 'below'}"


def _costs(points: float) -> str:
    if abs(points) < 0.05:
        return "costs nothing"
    return f"costs {points:.1f} points" if points > 0 else f"costs nothing (it gains {-points:.1f})"
