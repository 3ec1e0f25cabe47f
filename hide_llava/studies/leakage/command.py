"""`hide-llava analyze leakage`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hide_llava.completion import complete
from hide_llava.studies.registry import Study


def leakage(
    pretraining: Annotated[Path, typer.Option(metavar="FILE", help="The mix: LLaVA JSON {id, image, conversations}.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="key=value", autocompletion=complete, help="benchmark=, perhaps with data_root= and tasks=."),
    ] = None,
    pretraining_images: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Its images, to be compared by content too.")
    ] = None,
    run: Annotated[
        list[Path] | None, typer.Option(metavar="RUN", help="A finished zero_shot or multitask run; may be repeated.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", show_default="leakage-BENCHMARK", help="Where to write.")
    ] = None,
) -> None:
    """Count how much of a benchmark is in the base model's instruction mix.

    Images and questions of the benchmark are looked up in the mix, and beside them stands the gap between zero-shot and
    multi-task scores. Needs benchmark= only. Writes leakage.md, .csv, .json and a figure.
    """
    from hide_llava.config import compose_data
    from hide_llava.results.run_reader import read_run
    from hide_llava.studies.leakage.report import write_leakage
    from hide_llava.studies.leakage.shares import leakage
    from hide_llava.training.run import Run

    runs = [read_run(folder) for folder in run or []]
    data = Run(compose_data(overrides or []))
    audit = leakage(data, pretraining, pretraining_images)
    folder = output or Path(f"leakage-{data.benchmark.name}")
    print(write_leakage(audit, runs, folder))
    print(f"written: {folder}")


STUDY = Study("leakage", leakage, "hide-llava analyze leakage benchmark=coin --pretraining llava_v1_5_mix665k.json "
              "--pretraining-images DIR --run runs/ZERO_SHOT --run runs/MULTITASK")  # fmt: skip
