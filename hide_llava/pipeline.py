"""`run`: train every stage, evaluate it on its tasks, report. Idempotent: what is finished is skipped."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import time
from pathlib import Path
from typing import Any

import torch

from hide_llava.adapters.anchors import is_main
from hide_llava.benchmarks.prepare import prepare
from hide_llava.config import RunConfig
from hide_llava.data.records import load_questions, load_records
from hide_llava.errors import UserError
from hide_llava.evaluation.cells import evaluate_cell, generation_settings, question_file, reference_file
from hide_llava.methods.base import Stage, method_class
from hide_llava.metrics import get, java_available
from hide_llava.storage import read_json, sha256
from hide_llava.training.run_folder import RunFolder, open_run, stage_name, stages_of
from hide_llava.training.sequence import image_root, stage_plan, train_file, train_stage
from hide_llava.training.session import Session


def say(text: str) -> None:
    """A line for people, from one process, with the time."""
    if is_main():
        print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


def start_processes(config: RunConfig) -> None:
    """Join the other processes of a torchrun launch, if there are any."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from accelerate import PartialState

        state = PartialState(cpu=config.model.device == "cpu" or not torch.cuda.is_available())
        if state.device.type == "cuda":
            torch.cuda.set_device(state.device)


def preflight(config: RunConfig, train: bool = True, evaluate: bool = True) -> None:
    """Everything that would stop the run later, checked now.

    Raises:
        UserError: a file of the benchmark is missing, or a metric cannot be computed on this machine.
    """
    prepare(config)
    wanted: list[Path] = []
    for stage in stages_of(config) if train else ():
        stage_plan(config, stage)
    for index, task in enumerate(config.benchmark.tasks):
        if train and any(index in s.train for s in stages_of(config)):
            wanted.append(train_file(config, index))
        if evaluate:
            metric = get(task.metric)
            wanted += [f for f in (question_file(config, task), reference_file(config, task)) if f is not None]
            if metric.needs != "questions" and reference_file(config, task) is None:
                key = "references" if config.eval.split == "test" else "val_references"
                raise UserError(f"task '{task.id}': metric {metric.name} needs a file of references; set its '{key}'.")
            if task.metric.startswith("caption"):
                require_caption_metrics(config.caption.tokenizer)
    missing = [str(f) for f in wanted if not f.exists()]
    if missing:
        raise UserError(
            f"benchmark '{config.benchmark.name}': {len(missing)} of {len(wanted)} files are missing, first {missing[0]}. "
            f"Set data_root= or HIDE_DATA to the folder that holds '{config.benchmark.instructions}'."
        )
    if is_main():
        _read_files(config, train, evaluate)


def _read_files(config: RunConfig, train: bool, evaluate: bool) -> None:
    """Read every annotation file once: a damaged file of the last task is no surprise after days of training."""
    root = image_root(config)
    for index, task in enumerate(config.benchmark.tasks):
        if train and any(index in s.train for s in stages_of(config)):
            load_records(train_file(config, index), root)
        if evaluate:
            load_questions(question_file(config, task), root)


def require_caption_metrics(tokenizer: str) -> None:
    """Raises UserError if captions cannot be scored here, so that nobody learns it after days of training."""
    if importlib.util.find_spec("pycocoevalcap") is None:
        raise UserError("caption scores need pycocoevalcap: pip install 'hide-llava[caption]'.")
    if tokenizer == "ptb" and not java_available():
        raise UserError(
            "caption scores need Java (PTB tokeniser and METEOR) and none was found; install a Java runtime, or set "
            "caption.tokenizer=python for a score without METEOR that is labelled as not comparable."
        )


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
        start = time.time()
        train_stage(session, self.run, stage)
        self._at = stage.index
        say(f"{name}: trained in {time.time() - start:.0f} s")

    def _session_trains(self) -> bool:
        return method_class(self.config.method["name"]).trains

    def evaluate(self, stage: Stage, tasks: list[int] | None = None) -> None:
        """All cells of a stage that are not scored yet, with the experts folded once."""
        name = stage_name(stage)
        wanted = [j for j in stage.evaluate if tasks is None or j in tasks]
        todo = [j for j in wanted if not self._is_scored(name, j)]
        if torch.distributed.is_initialized():
            torch.distributed.barrier()
        if not todo:
            return
        trained = self._session_trains() and bool(stage.train)
        with self.session(stage.index if trained else -1) as session:
            for j in todo:
                task, start = self.config.benchmark.tasks[j], time.time()
                result = evaluate_cell(session, j, self.run.cell(name, task.id), f"{name} on {task.id}")
                if result is not None:
                    say(
                        f"{name} on {task.id}: {result['score']:.2f} ({result['n_scored']} answers, {time.time() - start:.0f} s)"
                    )

    def _is_scored(self, stage: str, j: int) -> bool:
        task = self.config.benchmark.tasks[j]
        folder = self.run.cell(stage, task.id)
        if not (folder / "score.json").is_file():
            return False
        stored, settings = read_json(folder / "score.json"), generation_settings(self.config, task)
        if stored.get("limit") != self.config.eval.limit:
            return False  # its answers are kept and completed
        same = all(stored.get(k) == v for k, v in settings.items())
        if not same or stored["questions_sha256"] != sha256(question_file(self.config, task)):
            raise UserError(
                f"{folder}: was answered with other settings or another question file; delete it to evaluate again."
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
    start_processes(config)
    preflight(config, train, evaluate)
    with RunFolder(config.run_folder()).lock() if is_main() else contextlib.nullcontext():
        pipeline = Pipeline(config, existing)
        for stage in pipeline.stages:
            if train:
                pipeline.train(stage)
            if evaluate:
                pipeline.evaluate(stage)
        return {"run": pipeline.run.path, "report": pipeline.report() if report else None}
