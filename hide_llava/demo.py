"""The demo: six small tasks with sequential LoRA and HiDe (both fusions, and none), on a CPU, and what they remember."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from hide_llava import pipeline
from hide_llava.config import compose
from hide_llava.results.report import write_comparison
from hide_llava.results.run_reader import read_run
from hide_llava.results.tables import format_matrix
from hide_llava.training.run import Run

METHODS = {
    "lora": ["method=lora-mini"],
    "hide-delta_sum": ["method=hide-mini"],
    "hide-factor_sum": ["method=hide-mini", "method.fusion=factor_sum"],
    "hide-expand_all": ["method=hide-mini", "method.expanded_layers=[0,1,2,3,4,5]"],
}
TRAINED_ONCE = "hide-delta_sum"  # the other HiDe runs differ from it at inference only and take over its stages


def demo(output: Path, seed: int = 0) -> None:
    """Run all, print their accuracy matrices, and write one page that compares them."""
    start, folders = time.time(), []
    for name, words in METHODS.items():
        folder = output / name
        pipeline.say(f"=== {name}")
        words = [*words, "benchmark=mini-ucit", "model=mini", "train=mini", f"seed={seed}", f"output={folder}"]
        config = compose(words)
        if name.startswith("hide") and name != TRAINED_ONCE:
            reuse_stages(output / TRAINED_ONCE, Run(config))
        pipeline.run(config)
        folders.append(folder)
    for folder in folders:
        print(f"\n{folder.name}\n{format_matrix(read_run(folder).matrix)}")
    page = write_comparison(folders, output)
    print(f"\nreport: {page}\ndone in {time.time() - start:.0f} s")


def reuse_stages(trained: Path, run: Run) -> None:
    """Give a new run the trained stages of another one that differs from it at inference only."""
    stages = run.open().path / "stages"
    if not stages.exists():
        temporary = stages.with_name(".stages.tmp")
        shutil.copytree(trained / "stages", temporary, dirs_exist_ok=True)
        temporary.rename(stages)
