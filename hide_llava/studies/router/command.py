"""`hide-llava analyze router`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hide_llava.arguments import RunFolder
from hide_llava.studies.registry import Study


def router(
    run: RunFolder,
    stage: Annotated[
        int | None, typer.Option(min=1, metavar="N", show_default="the last", help="Answers given after stage N.")
    ] = None,
    samples: Annotated[
        int, typer.Option(min=1, metavar="N", help="Training records and questions of each task that are read.")
    ] = 1000,
    anchors: Annotated[
        bool, typer.Option("--anchors", help="Also: how many records an anchor needs. Loads the model.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", show_default="RUN/results/router", help="Where to write.")
    ] = None,
) -> None:
    """Look at where questions were routed, and what for.

    Which task's questions went to which expert, whether they were answered right when routed right or wrong, the gap to an
    oracle (after `hide-llava eval RUN method.router=oracle`), calibration, how alike the anchors are, every misrouted question,
    and whether the task can be told from the prompt's text or the picture's size alone. Writes router.md, .json, CSV files and
    figures.
    """
    from hide_llava.studies.findings import publish
    from hide_llava.studies.router.report import findings
    from hide_llava.studies.router.study import study

    publish(run, "router", findings(study(run, stage, samples, anchors)), output)


STUDY = Study("router", router, "hide-llava analyze router runs/NAME --stage 6")
