"""`hide-llava chat`."""

from __future__ import annotations

import importlib.util
from typing import Annotated

import typer

from hide_llava.arguments import RunFolder
from hide_llava.errors import UserError


def chat(
    run: RunFolder,
    stage: Annotated[
        int | None, typer.Option(min=1, metavar="N", show_default="the last", help="The stage that the page begins with.")
    ] = None,
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="0.0.0.0: whoever reaches this machine can ask.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, metavar="N", help="0: any that is free.")] = 7860,
) -> None:
    """Talk to a finished run on a page: pictures, several turns, every stage, routing and experts.

    The page is served from this machine to this machine and loads nothing from elsewhere; Ctrl-C ends it. It needs gradio.
    """
    if importlib.util.find_spec("gradio") is None:
        raise UserError("the chat page needs gradio: pip install -e '.[chat]', or ask in the terminal: hide-llava ask.")
    from hide_llava.evaluation.finished import FinishedRun
    from hide_llava.evaluation.model import checked_stage
    from hide_llava.studies.chat.server import listening, serve

    finished = FinishedRun(run)
    number = checked_stage(finished.run, stage)
    with listening(host, port) as socket:  # what cannot be had is said before the model is loaded
        serve(finished.model(finished.trained[-1]), finished.trained, number, socket)
