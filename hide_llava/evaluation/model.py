"""A run as it was after a stage, loaded once and ready for questions: what `ask`, `chat` and programs use.

    from hide_llava import Run

    model = Run("runs/A").model(stage=3)
    answer = model.ask("photo.jpg", "What is the man doing?")
    print(answer.text, answer.routing)

Pictures and questions go the way of an evaluation, so that the answer to a question of the benchmark is the stored one.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hide_llava.adapters.route import Route
from hide_llava.backbones.decode import Seen
from hide_llava.benchmarks.files import with_suffix
from hide_llava.data.dataset import asked, check_place
from hide_llava.data.images import Picture, taken
from hide_llava.data.turns import Turn
from hide_llava.errors import UserError
from hide_llava.evaluation.batches import ON_CPU, within_memory
from hide_llava.evaluation.cells import answer_batch, collated, oracle_task
from hide_llava.evaluation.stream import Stream
from hide_llava.training.run import Run
from hide_llava.training.run_folder import stage_name
from hide_llava.training.session import Session

Pictures = Picture | Sequence[Picture] | None


@dataclass(frozen=True)
class Answer:
    """What a model said. token_ids: with the token that ended it. prompt: the question as answer files record it. routing:
    expert (or prompt) → its weight; empty for methods that do not route."""

    text: str
    token_ids: list[int]
    prompt: str
    routing: dict[str, float]


@dataclass(frozen=True)
class Question:
    """What is asked. image: a picture, several where the family takes them, or None. task: it is asked as this task of the
    benchmark is (picture transform, length, suffix), and an oracle is told it. history: (question, answer) pairs of the same
    conversation, which is about the same pictures. max_new_tokens: None takes the task's, or the benchmark's."""

    text: str
    image: Pictures = None
    task: str | None = None
    history: Sequence[tuple[str, str]] = ()
    max_new_tokens: int | None = None

    @property
    def pictures(self) -> list[Picture]:
        return [] if self.image is None else list(self.image) if isinstance(self.image, list | tuple) else [self.image]

    @property
    def turns(self) -> list[Turn]:
        """What was said before."""
        pairs = (({"from": "human", "value": q}, {"from": "gpt", "value": a}) for q, a in self.history)
        return [turn for pair in pairs for turn in pair]


def trained_stages(run: Run) -> list[int]:
    """Numbers of the stages that can be asked; 1 is after the first task."""
    return [s.index + 1 for s in run.stages if not run.trains or run.folder.is_complete(stage_name(s))]


def checked_stage(run: Run, number: int | None) -> int:
    """A stage that can be asked, by its number; None: the last one.

    Raises:
        UserError: the run has no such stage, or it is not trained.
    """
    if number is not None:
        run.check_stage(number)
    trained = trained_stages(run)
    if not trained:
        raise UserError(f"{run.folder.path}: no stage of this run is trained yet; `hide-llava run` and its folder go on.")
    if number is not None and number not in trained:
        raise UserError(f"--stage {number}: this stage is not trained yet; trained: {', '.join(map(str, trained))}.")
    return trained[-1] if number is None else number


def askable(run: Run, stage: int) -> dict[str, str]:
    """Task id → title of the tasks that a question can be asked as (`task`): all, and of an oracle those that it has learned."""
    learned = {i for one in run.stages[:stage] for i in one.train}
    tasks = [task for i, task in enumerate(run.tasks) if i in learned or not run.oracle]
    borrowed = {task.id for task in tasks}
    tasks += [t for t in run.all_general if not run.oracle or t.entry.instruction_of in borrowed]
    return {task.id: task.title for task in tasks}


def check(run: Run, stage: int, question: Question) -> None:
    """Refuse what cannot be asked, before a model is loaded; whether its pictures can be read is seen when they are.

    Raises:
        UserError: an empty question, other pictures than its text has places for, more than the family takes, an unknown
            task, or none (or one that is not learned at this stage) where the method is told the task's id.
    """
    if not question.text.strip():
        raise UserError("the question is empty; write what is to be answered.")
    texts = "\n".join([*(q for q, _ in question.history), question.text])
    named = [str(one) if isinstance(one, str | Path) else f"picture {i}" for i, one in enumerate(question.pictures, 1)]
    check_place({"question_id": question.text, "text": texts, "image": named}, run.family.several)
    if question.task is not None:
        run.task(question.task)
    if run.oracle and question.task not in (known := askable(run, stage)):
        other = "" if question.task is None else f", not {question.task}"
        raise UserError(f"method={run.preset} is told a question's task: at stage {stage} give --task (task= in Python), one of "
                        f"{', '.join(known)}{other}.")  # fmt: skip


class Model:
    """A loaded model at a stage of its run. One question or batch at a time: further ones wait, from whatever thread.

    stage: its number, 1 after the first task. session: the model with its method. most_pixels: of a picture; None: no limit.
    """

    def __init__(self, run: Run, stage: int):
        self.run, self.stage = run, 0
        self.most_pixels: int | None = None
        self.session = Session(run)
        self._inside = contextlib.ExitStack()
        self._lock = threading.RLock()
        self.at(stage)

    def at(self, stage: int) -> Model:
        """The same loaded model after another stage.

        Raises:
            UserError: the run has no such stage, it is not trained, or a file of it is damaged.
        """
        stage = checked_stage(self.run, stage)
        with self._lock:
            if stage == self.stage:
                return self
            self._inside.close()
            self.stage = 0  # should it not be restored
            self.session.restore_after(stage)
            self._inside.enter_context(self.session)
            self.stage = stage
        return self

    @property
    def stage_title(self) -> str:
        return self.run.stages[self.stage - 1].title

    @property
    def tasks(self) -> dict[str, str]:
        """Task id → title of the tasks that a question can be asked as at this stage."""
        return askable(self.run, self.stage)

    @property
    def experts(self) -> dict[str, str]:
        """Names of what is routed to (an expert, a task's prompt) → the title of the task that it learned."""
        learned = [task.index for task in self.session.tasks]
        return {f"{kind}-{i + 1:02d}": self.run.tasks[i].title for kind in ("expert", "task") for i in learned}

    # ---- asking ------------------------------------------------------------------------------------------------------
    def ask(
        self, image: Pictures, text: str, max_new_tokens: int | None = None,
        history: Sequence[tuple[str, str]] = (), task: str | None = None,
    ) -> Answer:  # fmt: skip
        """The greedy answer to a question. image: a path, the content of a file, a PIL image, a list of them, or None; the
        rest is of `Question`.

        Raises:
            UserError: an empty question, a picture that cannot be read, more pictures than the family takes, an unknown task,
                or none for a method that is told the task's id.
        """
        return self.ask_all([Question(text, image, task, history, max_new_tokens)], 1)[0]

    def ask_all(self, questions: Sequence[Question], batch_size: int = ON_CPU) -> list[Answer]:
        """Answers in the order of the questions, which are answered together where they have task and length in common; in
        fp32 the same as one by one."""
        answers: list[Answer | None] = [None] * len(questions)
        groups: dict[tuple[str | None, int | None], list[int]] = {}
        for place, question in enumerate(questions):
            groups.setdefault((question.task, question.max_new_tokens), []).append(place)
        for places in groups.values():
            places.sort(key=lambda i: (-len(questions[i].text), i))
            for start in range(0, len(places), batch_size):
                part = places[start : start + batch_size]
                for place, answer in zip(part, self._answers([questions[i] for i in part])):
                    answers[place] = answer
        return answers

    def stream(
        self, image: Pictures, text: str, max_new_tokens: int | None = None,
        history: Sequence[tuple[str, str]] = (), task: str | None = None,
    ) -> Stream:  # fmt: skip
        """`ask`, as pieces of text that can be iterated over as they are said; `.answer` is complete behind the last."""
        question, backbone = Question(text, image, task, history, max_new_tokens), self.session.backbone
        return Stream(lambda seen: self._answers([question], seen)[0], backbone.tokenizer, backbone.stop_ids)

    def each_expert(
        self, image: Pictures, text: str, max_new_tokens: int | None = None,
        history: Sequence[tuple[str, str]] = (), task: str | None = None,
    ) -> dict[str, Answer]:  # fmt: skip
        """What every expert alone would answer: y = W x + s B_e A_e x in each adapted linear, with its own projector where the
        method keeps one for each task, else with that of the stage.

        Raises:
            UserError: the method has no experts that answer alone; and as of `ask`.
        """
        names = self.session.method.experts
        if not names:
            raise UserError(f"method={self.run.preset} has no expert of its own for each task, so none can be asked alone.")
        question = Question(text, image, task, history, max_new_tokens)
        with self._lock, self.session.bare():
            return {name: self._answers([question], route=self._alone(name))[0] for name in names}

    def _alone(self, expert: str) -> Route:
        ones = {expert: torch.ones(1, device=self.session.core.llava.device)}
        return Route([expert], projectors=ones if expert in self.session.core.projectors else None, weights=ones)

    # ---- a batch -----------------------------------------------------------------------------------------------------
    def _answers(self, questions: list[Question], seen: Seen | None = None, route: Route | None = None) -> list[Answer]:
        """Answers of questions that have task and length in common."""
        if not self.stage:
            raise UserError(f"{self.run.folder.path}: no stage is loaded; `at(stage)` loads one.")
        for question in questions:
            check(self.run, self.stage, question)
        task, most = questions[0].task, questions[0].max_new_tokens
        of_task = None if task is None else self.run.task(task)
        index = oracle_task(self.session, of_task) if self.run.oracle else None
        settings = self.run.common.settings(of_task and of_task.entry)
        reader = self.session.reader(settings["image_transform"])
        items = []
        for number, question in enumerate(questions):
            (row,) = with_suffix([{"question_id": number, "text": question.text}], settings["prompt_suffix"])
            images = [taken(one, settings["image_orientation"], self.most_pixels) for one in question.pictures]
            items.append({**asked(reader, row["text"], images, question.turns), "question_id": number})

        def answer(batch: dict[str, Any]) -> list[dict[str, Any]]:
            return answer_batch(self.session, batch, most or settings["max_new_tokens"], index, seen, route)

        with self._lock:
            rows = within_memory(answer, collated(items))
        return [Answer(row["text"], row["token_ids"], row["prompt"], row["routing"]) for row in rows]
