"""A whole sequence as one tracked run in wandb, TensorBoard or trackio (`train.report_to`).

The step goes on from stage to stage, and each cell of the matrix is reported when it is scored, in training or by a later
`hide-llava eval`. What is tracked is known by an id in the run folder (`tracking.json`), so that going on goes on there too.
Only the main process reports. Other services get a run of each stage, from transformers' own callbacks.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hide_llava.distributed import is_main
from hide_llava.errors import UserError
from hide_llava.storage import read_json, write_json
from hide_llava.training.reporting import services
from hide_llava.training.run_folder import RunFolder
from hide_llava.training.trackers import STAGE, STEP, TRACKERS, Tracked, Tracker


class Tracking:
    """The services that a run is reported to. Nothing is opened before there is something to report.

    folder: of the run. report_to: `train.report_to`. config: what is stored with the tracked run, by dotted key. stages: their
    folder names, in order. tags: words to find it by.
    """

    def __init__(self, folder: RunFolder, report_to: str, config: dict[str, Any], stages: list[str], tags: list[str]):
        self.folder, self.report_to, self.config, self.stages, self.tags = folder, report_to, config, stages, tags
        self._open: dict[str, Tracker] | None = None

    @property
    def name(self) -> str:
        """What it is called there: the run folder; a variant's behind its run's."""
        own, home = self.folder.path, self.folder.trained_in.resolve()
        return own.name if own.resolve() == home else f"{home.name} {own.name}"

    def open(self) -> None:
        """Begin, or go on: called before a model is loaded, so that a service that cannot be reached costs nothing.

        Raises:
            UserError: a service refuses.
        """
        if self._open is not None or not is_main():
            return
        self._open = {}
        for service in [name for name in services(self.report_to) if name in TRACKERS]:
            about = Tracked(self.name, self._identity(), self.folder.path, self.config, self.tags)
            try:
                self._open[service] = TRACKERS[service](about)
            except Exception as error:
                said = " ".join(str(error).split())[:300] or type(error).__name__
                raise UserError(f"train.report_to={self.report_to}: {service} could not begin ({said}); put that right, or set "
                                "train.report_to=none.") from None  # fmt: skip

    def _identity(self) -> str:
        file = self.folder.path / "tracking.json"
        if not file.is_file():
            write_json(file, {"id": uuid.uuid4().hex[:8]})
        return read_json(file)["id"]

    # ---- numbers -----------------------------------------------------------------------------------------------------
    def training(self, stage: int, task: str, step: int, values: dict[str, Any]) -> None:
        """Numbers of a step of the sequence. stage: from 1. task: its title, which goes with the first of them."""
        numbers = {f"train/{key}": value for key, value in values.items()}
        self._log({**numbers, STEP: step, STAGE: stage, **({"task": task} if task else {})}, step)

    def cell(self, stage: str, task: str, score: float, general: bool) -> None:
        """A score in percent, drawn over the stages. stage: its folder's name; one that is none of them is stage 0."""
        number = self.stages.index(stage) + 1 if stage in self.stages else 0
        kind = "general" if general else "matrix"
        self._log({f"{kind}/{task}": score, STAGE: number}, self.steps_before(number + 1), number)

    def _log(self, values: dict[str, Any], step: int, stage: int | None = None) -> None:
        """step: of the whole sequence. stage: for numbers that are drawn over the stages."""
        if not is_main():
            return
        self.open()
        for service, tracker in [*self._open.items()]:
            try:
                tracker.log(values, step, stage)
            except Exception as error:  # a run of days does not end because a dashboard does
                print(f"warning: {service} takes no more ({' '.join(str(error).split())[:200]}); the run goes on, and "
                      "trainer_log.jsonl and score.json hold the numbers", flush=True)  # fmt: skip
                del self._open[service]

    def steps_before(self, stage: int) -> int:
        """Optimizer steps of the stages before one, counted from 1, as far as they are finished."""
        return sum(_last_step(self.folder.stage(name) / "trainer_log.jsonl") for name in self.stages[: stage - 1])

    def close(self) -> None:
        """Everything is sent. The same run may be opened again."""
        opened, self._open = self._open or {}, None
        for service, tracker in opened.items():
            try:
                tracker.finish()
            except Exception as error:
                print(f"warning: {service} could not be closed ({' '.join(str(error).split())[:200]})", flush=True)


def _last_step(log: Path) -> int:
    return max((row.get("step", 0) for row in _rows(log)), default=0)


def _rows(log: Path) -> Iterator[dict[str, Any]]:
    if log.is_file():
        yield from (json.loads(line) for line in log.read_text(encoding="utf-8").splitlines() if line)


class TrackingCallback(TrainerCallback):
    """Hands what a stage's Trainer logs to the tracking of the run. number: of the stage, from 1."""

    def __init__(self, tracking: Tracking, number: int, title: str):
        self.tracking, self.number, self.title = tracking, number, title
        self.before = tracking.steps_before(number)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict | None = None, **_: Any
    ) -> None:
        if not state.is_world_process_zero or not logs:
            return
        values = {key: value for key, value in logs.items() if isinstance(value, (int, float))}
        self.tracking.training(self.number, self.title, self.before + state.global_step, values)
        self.title = ""
