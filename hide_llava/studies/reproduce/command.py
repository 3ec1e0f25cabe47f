"""`hide-llava reproduce`."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Literal

import typer

NAMES = ("cka", "top-expert", "modality", "fusion-weight", "layers", "routing", "fusion", "orders", "leakage",
         "fig1", "fig2", "fig4", "fig5")  # fmt: skip
Only = Enum("Only", {name: name for name in NAMES}, type=str)  # typer takes no list of literals


def reproduce(
    paper: Annotated[Literal["hide"], typer.Argument(metavar="hide", help="Whose figures.", show_default=False)],
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="A finished run of HiDe; behind it those of other task orders, zero_shot and "
                       "multitask.", show_default=False),
    ],
    only: Annotated[list[Only] | None, typer.Option(help="This alone; may be repeated.", show_default="all")] = None,
    stages: Annotated[Literal["all", "last"], typer.Option(help="Ask after every stage (for Avg), or the last alone.")] = "last",
    samples: Annotated[int, typer.Option(min=4, metavar="N", help="Prompts of each task for CKA, where it is measured.")] = 10,
    again: Annotated[bool, typer.Option("--again", help="Answer anew what was answered with other settings.")] = False,
) -> None:  # fmt: skip
    """Draw the figures of the HiDe paper for a finished run.

    Layer-wise CKA, the expert in the top layer, text and image in the router, the fusion coefficient, which layers stay
    expanded, hard and soft routing, both fusions; with further runs task orders and leakage. Everything is a variant of the
    run: nothing is trained, and what is answered already is only drawn. Tables and figures lie in RUN/results/reproduce/.
    """
    from hide_llava.studies.reproduce.work import reproduce_hide

    for text in reproduce_hide(runs, [one.value for one in only or []], stages, samples, again):
        print(text)
