"""The model that `lmms-eval --model hide_llava --model_args run=RUN,stage=N` evaluates (docs/OTHER_HARNESSES.md).

It needs lmms-eval. As of its modules `lmms_eval.api.model` and `lmms_eval.models.chat`, 0.7: a request is (context, document →
messages, options, number of the document, task, split), and answers go back in the order of the requests.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from lmms_eval.api.instance import GenerationResult, TokenCounts
from lmms_eval.api.model import lmms
from loguru import logger

from hide_llava import Run
from hide_llava.errors import UserError
from hide_llava.evaluation.model import Question
from hide_llava.interop.lmms_requests import OWN, Decoding, decoding, question, until
from hide_llava.progress import Progress


class HideLlava(lmms):
    """A run as it was after a stage, routed as its method does.

    run: its folder. stage: 1 is after the first task; None: the last one that is trained. task: all is asked as this task of
    the run's benchmark (picture transform, length, suffix, and what an oracle is told). dtype, device: None takes the run's.
    batch_size: how many are answered at once; lmms-eval's `--batch_size`.

    Raises:
        UserError: no run, no such stage or task, an option that there is not, or several processes.
    """

    is_simple = False

    def __init__(
        self, run: str | None = None, stage: int | None = None, task: str | None = None, dtype: str | None = None,
        device: str | None = None, batch_size: int | str = 1, max_batch_size: int | None = None, **unknown: Any,
    ):  # fmt: skip
        super().__init__()
        if unknown:
            raise UserError(f"--model_args {', '.join(unknown)}: not known; there are run, stage, task, dtype and device.")
        if run is None:
            raise UserError("--model_args names no run; give --model_args run=RUN,stage=N.")
        if not str(batch_size).isdigit() or int(batch_size) < 1:
            raise UserError(f"--batch_size {batch_size}: give a number of questions that are answered at once.")
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UserError("lmms-eval was started in several processes; a run answers in one, so start it without a launcher.")
        finished = Run(run)
        if task is not None:
            finished.run.task(task)
        self.batch_size, self.task = int(batch_size), task
        self.said: set[str] = set()
        self.model_of_run = finished.model(stage, dtype, device)
        self.benchmark = finished.run.benchmark.name

    @property
    def device(self) -> Any:
        return self.model_of_run.session.core.llava.device

    def generate_until(self, requests: list[Any]) -> list[GenerationResult]:
        """The greedy answer to each request."""
        order = sorted(range(len(requests)), key=lambda i: (str(requests[i].args[2]), -len(str(requests[i].args[0])), i))
        answers: list[GenerationResult | None] = [None] * len(requests)
        with Progress("answers", len(requests), "question") as progress:
            for start in range(0, len(order), self.batch_size):
                places = order[start : start + self.batch_size]
                asked = [self._asked(requests[i]) for i in places]
                found = self.model_of_run.ask_all([one for one, _ in asked], self.batch_size)
                for place, answer, (_, how) in zip(places, found, asked):
                    text = until(answer.text, how.until)
                    answers[place] = GenerationResult(text, TokenCounts(output_tokens=len(answer.token_ids)))
                    self.cache_hook.add_partial("generate_until", requests[place].args[:1] + requests[place].args[2:3], text)
                progress.at(start + len(places))
        return answers

    def _asked(self, request: Any) -> tuple[Question, Decoding]:
        _, messages_of, options, number, task, split = request.args
        where = f"{task}, document {number}"
        how = decoding(options, where)
        for name in set(how.ignored) - self.said:
            logger.warning(f"{task}: {name} of its generation_kwargs is not read; a run prepares pictures as it was trained.")
            self.said.add(name)
        return self._question(self.task_dict[task][split][number], messages_of, how, where), how

    def _question(self, doc: dict[str, Any], messages_of: Callable[[Any], Any], how: Decoding, where: str) -> Question:
        """A question of a benchmark of ours is asked as an evaluation asks it, any other as its messages say."""
        benchmark, _, name = str(doc.get(OWN, "")).partition("/")
        if benchmark == self.benchmark and self.task in (None, name):
            made = Question(doc["text"], list(doc["images"]) or None, name, (), how.max_new_tokens)
        else:
            made = question(messages_of(doc), how.max_new_tokens, self.task, where)
        if self.model_of_run.run.oracle and made.task not in (known := self.model_of_run.tasks):
            raise UserError(f"{where}: method={self.model_of_run.run.preset} is told a question's task; give --model_args "
                            f"run=…,task=T with T one of {', '.join(known)}.")  # fmt: skip
        return made

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        raise UserError("this task asks for likelihoods of given answers (loglikelihood); a run answers, so take a task of "
                        "the kind generate_until.")  # fmt: skip

    def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
        raise UserError("this task asks in several rounds (generate_until_multi_round); take one of the kind generate_until.")
