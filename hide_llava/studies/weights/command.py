"""`hide-llava analyze weights`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hide_llava.arguments import RunFolder
from hide_llava.studies.registry import Study


def weights(
    run: RunFolder,
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", show_default="RUN/results/weights", help="Where to write.")
    ] = None,
) -> None:
    """Measure how far each stage moved the weights, and how the stages' updates lie to each other.

    Relative change of every layer and linear, angles between the spaces that the updates write to and read from, the share
    of cross terms in a fusion of factors, and the length of the sum. Reads the stored adapters, and the base model's files
    tensor by tensor; no model is loaded. Writes weights.md, .json, CSV files and figures.
    """
    from hide_llava.results.run_reader import read_run
    from hide_llava.studies.findings import publish
    from hide_llava.studies.weights.across_layers import analyse
    from hide_llava.studies.weights.report import findings

    publish(run, "weights", findings(analyse(read_run(run))), output)


STUDY = Study("weights", weights, "hide-llava analyze weights runs/NAME")
