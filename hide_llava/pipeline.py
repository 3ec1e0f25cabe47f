"""`run`: train every stage, evaluate it on its tasks, report. Idempotent: what is finished is skipped."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

import torch

from hide_llava.adapters.anchors import is_main
from hide_llava.config import RunConfig, TaskConfig, as_begun
from hide_llava.errors import UserError
from hide_llava.evaluation.cells import evaluate_cell
from hide_llava.evaluation.questions import as_stored, generation_settings, question_file
from hide_llava.methods.base import Stage, method_class
from hide_llava.preflight import preflight
from hide_llava.storage import check_stage, read_json, sha256, stage_hash
from hide_llava.training.engines import check_engine, start_processes
from hide_llava.training.run_folder import RunFolder, general_tasks, open_run, stage_name, stages_of
from hide_llava.training.sequence import refuse_changed_data, train_stage
from hide_llava.training.session import Session


def say(text: str) -> None:
    """A line for people, from one process, with the time."""
    if is_main():
        print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


class Pipeline:
    """One run. The model is loaded when the first unfinished piece of work needs it."""

    def __init__(self, config: RunConfig, existing: bool = False):
        self.config = config
        self.run: RunFolder = open_run(config, existing=existing) if is_main() else RunFolder(config.run_folder())
        if torch.distributed.is_initialized():
            torch.distributed.barrier()
        self.stages: list[Stage] = stages_of(config)
        self._session: Session | None = None
        self._at = -1  # the stage that the session stands at

    def session(self, at: int) -> Session:
        """The session as it was after stage `at`."""
        if self._session is None:
            say(f"loading {self.config.model.name}")
            self._session = Session(self.config)
            self._at = -1
        if self._at != at:
            self._session.restore(self.run, at)
            self._at = at
        return self._session

    def train(self, stage: Stage) -> None:
        name = stage_name(stage)
        if not stage.train or not self._session_trains() or self.run.is_complete(name):
            if is_main():
                self.run.close_stage(name)  # also after a kill between the stage folder and its entry in the manifest
            return
        session = self.session(stage.index - 1)
        say(f"{name}: training")
        start, whole = time.monotonic(), not self.run.state(name).exists()
        self._session = train_stage(session, self.run, stage)
        self._at = stage.index
        seconds = time.monotonic() - start
        self._took(name, "train_seconds", seconds if whole else None)
        say(f"{name}: trained in {seconds:.0f} s")

    def _took(self, stage: str, key: str, seconds: float | None) -> None:
        """Note in the manifest how long a piece of work took; None when it was done in several goes."""
        if is_main():
            self.run.update_stage(stage, **{key: seconds and round(seconds, 2)})

    def _session_trains(self) -> bool:
        return method_class(self.config.method["name"]).trains

    def evaluate(self, stage: Stage) -> None:
        """All cells of a stage that are not scored yet, with the experts folded once."""
        name = stage_name(stage)
        wanted = [*(self.config.benchmark.tasks[j] for j in stage.evaluate), *general_tasks(self.config)]
        trained = self._session_trains() and bool(stage.train)
        weights = stage_hash(self.run.stage(name)) if trained else None
        todo = [task for task in wanted if not self._is_scored(name, task, weights)]
        if torch.distributed.is_initialized():
            torch.distributed.barrier()
        if not todo:
            return
        whole = not any(self.run.cell(name, task.id).exists() for task in wanted)
        session, begun = self.session(stage.index if trained else -1), time.monotonic()
        with session:
            for task in todo:
                start = time.monotonic()
                result = evaluate_cell(session, task, self.run.cell(name, task.id), weights, f"{name} on {task.id}")
                if result is not None:
                    took = f"{result['n_scored']} answers, {time.monotonic() - start:.0f} s"
                    say(f"{name} on {task.id}: {result['score']:.2f} ({took})")
        self._took(name, "eval_seconds", time.monotonic() - begun if whole else None)

    def _is_scored(self, stage: str, task: TaskConfig, weights: str | None) -> bool:
        folder = self.run.cell(stage, task.id)
        if not (folder / "score.json").is_file():
            return False
        stored, settings = as_stored(read_json(folder / "score.json")), generation_settings(self.config, task)
        same = all(stored.get(k) == v for k, v in settings.items()) and stored.get("weights_sha256") == weights
        if not same and weights is not None:
            check_stage(self.run.stage(stage))
        if not same or stored["questions_sha256"] != sha256(question_file(self.config, task)):
            raise UserError(
                f"{folder}: was answered with other weights, settings or questions; delete it to evaluate again."
            )
        return True

    def report(self) -> Path | None:
        if not is_main():
            return None
        from hide_llava.results.report import write_report

        return write_report(self.run.path)


def run(
    config: RunConfig, train: bool = True, evaluate: bool = True, report: bool = True, existing: bool = False
) -> dict[str, Any]:
    """Train and evaluate the whole sequence, resuming whatever an earlier call left.

    `existing`: the configuration was read from the run folder, perhaps with other eval.* values.

    Raises:
        UserError, Interrupted: see the parts.
    """
    if train:
        check_engine(config, method_class(config.method["name"]))
    start_processes(config)
    config, taken = as_begun(config)
    if taken:
        say(f"this run was begun before these keys existed and goes on as it did: {', '.join(taken)}")
    for warning in preflight(config, train, evaluate):
        say(f"warning: {warning}")
    with RunFolder(config.run_folder()).lock() if is_main() else contextlib.nullcontext():
        pipeline = Pipeline(config, existing)
        if train and is_main():
            refuse_changed_data(pipeline.run, config)
        for stage in pipeline.stages:
            if train:
                pipeline.train(stage)
            if evaluate:
                pipeline.evaluate(stage)
        return {"run": pipeline.run.path, "report": pipeline.report() if report else None}
