"""`hide-llava ask`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hide_llava.arguments import RunFolder

if TYPE_CHECKING:
    from hide_llava.evaluation.model import Model, Question


def ask(
    run: RunFolder,
    question: Annotated[
        str | None, typer.Argument(metavar="QUESTION", help="What is asked; without it, standard input.", show_default=False)
    ] = None,
    image: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="A picture; repeat for several, where the model takes them.")
    ] = None,
    stage: Annotated[
        int | None, typer.Option(min=1, metavar="N", show_default="the last", help="As the run was after this stage.")
    ] = None,
    task: Annotated[
        str | None, typer.Option(metavar="TASK", help="Ask as this task is asked (transform, length, suffix).")
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, metavar="N", show_default="the run's", help="Length of an answer.")
    ] = None,
    experts: Annotated[
        bool | None, typer.Option("--experts/--no-experts", show_default="where there are some",
                                  help="Also what each task's expert alone would answer.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of readable text.")] = False,
) -> None:  # fmt: skip
    """Ask a finished run something, with or without a picture.

    The answer is printed while it is made; then how it was routed, and what each single expert would have said.
    """
    from hide_llava.data.images import taken
    from hide_llava.evaluation.finished import FinishedRun
    from hide_llava.evaluation.model import Question, check, checked_stage

    finished = FinishedRun(run)
    number = checked_stage(finished.run, stage)
    asked = Question(_read() if question is None else question, image, task, (), max_new_tokens)
    check(finished.run, number, asked)
    for picture in asked.pictures:
        taken(picture)  # what cannot be read is said before the model is loaded
    model = finished.model(number)
    if experts and not model.session.method.experts:
        model.each_expert(image, asked.text)  # which says why there are none
    told = _as_json if as_json else _as_text
    told(model, asked, bool(model.session.method.experts) if experts is None else experts)


def _read() -> str:
    if sys.stdin.isatty():
        print("Type the question; Ctrl-D on an empty line ends it.", file=sys.stderr)
    return sys.stdin.read().strip()


def _given(asked: Question) -> dict[str, Any]:
    return {"image": asked.image, "text": asked.text, "max_new_tokens": asked.max_new_tokens, "task": asked.task}


def _as_text(model: Model, asked: Question, experts: bool) -> None:
    from hide_llava.studies.ask.show import bars, printable, side_by_side

    pieces = model.stream(**_given(asked))
    for piece in pieces:
        print(printable(piece), end="", flush=True)
    print()
    if pieces.answer.routing:
        print(f"\nrouting after stage {model.stage}, {model.stage_title}")
        print("\n".join(bars(pieces.answer.routing, model.experts)))
    if experts:
        print("\neach expert alone")
        print("\n".join(side_by_side(model.each_expert(**_given(asked)), model.experts)))


def _as_json(model: Model, asked: Question, experts: bool) -> None:
    answer = model.ask(**_given(asked))
    told = {"stage": model.stage, "task": asked.task, **vars(answer)}
    if experts:
        alone = model.each_expert(**_given(asked))
        told["experts"] = {
            name: {"title": model.experts[name], "text": a.text, "token_ids": a.token_ids} for name, a in alone.items()
        }
    print(json.dumps(told, ensure_ascii=False))
