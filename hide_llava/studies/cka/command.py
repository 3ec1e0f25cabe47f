"""`hide-llava analyze cka`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from hide_llava.arguments import RunFolder
from hide_llava.studies.registry import Study, results_folder


def cka(
    run: RunFolder,
    stage: Annotated[int, typer.Option(min=1, metavar="N", help="Compare the models of stages 1 to N.")],
    task: Annotated[
        list[str] | None, typer.Option(metavar="TASK", help="Only stages that train this task; may be repeated.")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, metavar="N", help="Prompts of each task.")] = 100,
    activation: Annotated[Literal["layer", "mlp"], typer.Option(help="Residual stream, or MLP branch.")] = "layer",
    pooling: Annotated[Literal["last", "all"], typer.Option(help="Last prompt token, or mean of all.")] = "last",
    kernel: Annotated[Literal["linear", "rbf"], typer.Option(help="Kernel of the Gram matrices.")] = "linear",
    legacy: Annotated[
        bool, typer.Option("--legacy", help="The published procedure: each model on its own task, biased.")
    ] = False,
    output: Annotated[Path | None, typer.Option(metavar="DIR", show_default="RUN/results/cka", help="Where to write.")] = None,
) -> None:
    """Compare the models of a run's stages, layer by layer.

    The measure is debiased CKA on one shared set of prompts, with an interval, a permutation null and the effective
    dimension. Writes cka.md, cka.json and a figure.
    """
    from hide_llava.studies.cka.across_layers import analyse
    from hide_llava.studies.cka.report import write_cka

    report = analyse(run, stage, task, samples, activation, pooling, kernel, legacy)
    folder = output or results_folder(run, "cka")
    print(write_cka(report, folder))
    print(f"written: {folder}")


STUDY = Study("cka", cka, "hide-llava analyze cka runs/NAME --stage 6 --samples 100")  # fmt: skip
