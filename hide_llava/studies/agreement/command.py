"""`hide-llava analyze agreement`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hide_llava.studies.registry import Study


def agreement(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Runs of several methods, one or more seeds each.", show_default=False)
    ],
    bounds: Annotated[
        bool, typer.Option("--bounds", help="Each quantity once more with zero-shot, joint and individual training.")
    ] = False,
    against: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="A folder that holds runs of the same presets in another setting, on another benchmark "
                     "for instance: how far their order agrees with that of yours; may be repeated."),
    ] = None,
    output: Annotated[Path, typer.Option(metavar="DIR", help="Where to write.")] = Path("runs/agreement"),
) -> None:
    """Compare the order of methods in your runs with the orders that papers printed.

    For each published table and each quantity that both have (Last, Avg, MAA, MFT, BWT, forgetting), over the methods that
    both have, at least four: Spearman's rho and Kendall's tau-b, a permutation test, and a bootstrap interval over methods and
    seeds. Also how far published tables, and your own seeds, agree among themselves; and of each method its ranks beside
    forgetting, weight changes and routing, as far as the runs hold them. Only orders are compared: a small model's scores say
    nothing about a large one's.

    A preset stands for a published method by the table in hide_llava/results/published.yaml; the others are listed. Reads
    stored scores and answers; no model is loaded. Writes agreement.md, .json, CSV files and a figure for each table.
    """
    from hide_llava.studies.agreement.report import findings
    from hide_llava.studies.agreement.study import study
    from hide_llava.studies.findings import publish

    publish(runs[0], "agreement", findings(study(runs, bounds, against or ())), output)


STUDY = Study("agreement", agreement, "hide-llava analyze agreement runs/lora-seed0 runs/lora-seed1 runs/hide-seed0")
