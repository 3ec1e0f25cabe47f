"""`hide-llava analyze forgetting`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hide_llava.arguments import RunFolder
from hide_llava.studies.registry import Study


def forgetting(
    run: RunFolder,
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", show_default="RUN/results/forgetting", help="Where to write.")
    ] = None,
) -> None:
    """Follow every question: right when its task was learned, lost at which stage, and by format or by content.

    Reads the stored answers and scores, and the question files for what was expected; no model is loaded. Writes
    forgetting.md, .json, CSV files (lost.csv lists every lost question) and figures.
    """
    from hide_llava.results.run_reader import read_run
    from hide_llava.studies.findings import publish
    from hide_llava.studies.forgetting.fates import anatomy
    from hide_llava.studies.forgetting.report import findings

    publish(run, "forgetting", findings(anatomy(read_run(run))), output)


STUDY = Study("forgetting", forgetting, "hide-llava analyze forgetting runs/NAME")
