"""The page: a picture, a conversation, the stage that answers, how it was routed, and what each expert alone would say.

Whatever a person or a model writes is shown as text: neither Markdown nor HTML, which could load things.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder

from hide_llava.errors import UserError
from hide_llava.evaluation.model import Model

LONGEST = 8000  # characters of a question
TURNS = 20  # of a conversation
LENGTH = 1024  # tokens of an answer, at most
Pair = tuple[str, str]  # a question and its answer


def guarded(blocks: gr.Blocks) -> gr.Blocks:
    """A page whose requests can name uploaded files alone.

    Any input of a request may name a file, which gradio copies to where it can be fetched from. It would also fetch one from
    an address, and whether a file was uploaded it asks only in an app that it launched itself.
    """
    blocks.has_launched = True
    for block in blocks.blocks.values():
        if isinstance(block, gr.components.Component):  # changed here, because gradio writes a file beside a subclass's module
            block.async_move_resource_to_block_cache = _of_uploads(block.async_move_resource_to_block_cache)
    return blocks


def _of_uploads(take: Callable[[Any], Awaitable[Any]]) -> Callable[[Any], Awaitable[Any]]:
    async def checked(path: Any) -> Any:
        if path is not None and not Path(path).resolve().is_relative_to(Path(get_upload_folder()).resolve()):
            raise refusal("A picture is uploaded, not named or linked to.")
        return await take(path)

    return checked


def refusal(message: str) -> gr.Error:
    """What a person sees, and no traceback in the terminal."""
    return gr.Error(message, print_exception=False)


def messages(pairs: list[Pair]) -> list[dict[str, str]]:
    """A conversation as the chat component takes it."""
    return [m for q, a in pairs for m in ({"role": "user", "content": q}, {"role": "assistant", "content": a})]


def stages_named(model: Model, stages: list[int]) -> str:
    """What the numbers on the slider mean."""
    return " · ".join(f"{number} {model.run.stages[number - 1].title}" for number in stages)


class Talk:
    """What the page's buttons do with one model. Each gives the values of the outputs: question, conversation as it is shown
    and as it is kept, routing, and a text for each expert (`names`)."""

    def __init__(self, model: Model):
        self.model = model
        self.names = list(model.session.method.experts)

    def ask(
        self, question: str, pairs: list[Pair], picture: Any, stage: int, task: str | None, length: int, experts: bool
    ) -> Iterator[tuple[Any, ...]]:
        """The answer as it is made, then the experts'."""
        blank, question = [""] * len(self.names), question.strip()
        if len(question) > LONGEST:
            raise refusal(f"The question has more than {LONGEST:,} characters.")
        if len(pairs) >= TURNS:
            raise refusal(f"This conversation has {TURNS} turns; begin a new one.")
        image = [path for path, _ in picture] if isinstance(picture, list) else picture
        given = {"image": image or None, "text": question, "max_new_tokens": int(length), "history": pairs, "task": task or None}
        try:
            pieces, said = self.model.at(int(stage)).stream(**given), ""
            for piece in pieces:
                said += piece
                yield "", messages([*pairs, (question, said)]), pairs, None, *blank
            routing = {self.titled(name): weight for name, weight in pieces.answer.routing.items()}
            pairs = [*pairs, (question, pieces.answer.text)]
            yield "", messages(pairs), pairs, routing or None, *blank
            if experts and self.names:
                alone = self.model.each_expert(**given)
                told = [alone[name].text if name in alone else "" for name in self.names]
                yield "", messages(pairs), pairs, routing or None, *told
        except UserError as error:
            raise refusal(str(error)) from None

    def again(self, question: str, pairs: list[Pair], *given: Any) -> Iterator[tuple[Any, ...]]:
        """The last question once more, as another stage or task: its answer takes the place of the one before."""
        if not pairs:
            raise refusal("Nothing was asked yet.")
        for _, *others in self.ask(pairs[-1][0], pairs[:-1], *given):
            yield question, *others

    def new(self) -> tuple[Any, ...]:
        """An empty conversation; what is being written stays."""
        return [], [], None, *[""] * len(self.names)

    def titled(self, name: str) -> str:
        title = self.model.experts.get(name)
        return f"{title} ({name})" if title else name


def page(model: Model, stages: list[int], first: int) -> gr.Blocks:
    """The page of a model at the last of `stages`, the numbers that can be chosen; it begins with `first`."""
    talk, run = Talk(model), model.run
    tasks = {task.id: task.title for task in run.tasks}
    with gr.Blocks(title=f"{run.folder.path.name} · HiDe-LLaVA", analytics_enabled=False, fill_width=True) as blocks:
        gr.HTML(f"<h1>{escape(run.folder.path.name)}</h1>{escape(run.preset)} on {escape(run.benchmark.name)}, "
                f"{escape(run.model.name)}")  # fmt: skip
        pairs = gr.State([])
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                picture = _picture(run.family.several)
                stage = gr.Slider(
                    min(stages), max(stages), first, step=1, label="Stage", info=stages_named(model, stages),
                    interactive=len(stages) > 1,
                )  # fmt: skip
                task = gr.Dropdown(
                    [*([] if run.oracle else [("of no task", "")]), *((title, name) for name, title in tasks.items())],
                    value=next(reversed(model.tasks)) if run.oracle else "", label="Asked as a question",
                )  # fmt: skip
                most = run.common.settings()["max_new_tokens"]
                length = gr.Slider(1, max(LENGTH, most), most, step=1, label="Tokens of an answer, at most")
                experts = gr.Checkbox(True, label="Ask each expert alone", visible=bool(talk.names))
            with gr.Column(scale=2, min_width=320):
                shown = gr.Chatbot(label="Conversation", render_markdown=False, sanitize_html=True, latex_delimiters=[],
                                   height=380, buttons=["copy"])  # fmt: skip
                question = gr.Textbox(label="Question", lines=1, max_lines=8, max_length=LONGEST, submit_btn=True, autofocus=True)
                with gr.Row():
                    again = gr.Button("Ask again", size="sm")
                    new = gr.Button("New conversation", size="sm")
                routing = gr.Label(label="Routing", show_heading=False)
        with gr.Row():
            alone = [gr.Textbox(label=f"{talk.titled(name)} alone", interactive=False, lines=2, min_width=220)
                     for name in talk.names]  # fmt: skip
        given = [question, pairs, picture, stage, task, length, experts]
        told = [question, shown, pairs, routing, *alone]
        one_at_a_time = {"concurrency_limit": 1, "concurrency_id": "model"}
        question.submit(talk.ask, given, told, api_name="ask", **one_at_a_time)
        again.click(talk.again, given, told, api_name="again", **one_at_a_time)
        for event in (new.click, shown.clear, picture.change):
            event(talk.new, None, told[1:], api_name=False)
    return guarded(blocks)


def _picture(several: bool) -> gr.Image | gr.Gallery:
    """The pictures of a question, as they were uploaded."""
    common = {"type": "filepath", "sources": ["upload", "clipboard"], "height": 260, "buttons": [], "interactive": True}
    if several:
        return gr.Gallery(label="Pictures", file_types=["image"], columns=2, **common)
    return gr.Image(label="Picture", image_mode=None, **common)
