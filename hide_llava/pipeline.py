"""`run`: train every stage, evaluate it on its tasks, report. Idempotent: what is finished is skipped."""

from __future__ import annotations

import contextlib
import copy
import shutil
import time
from pathlib import Path
from typing import Any, Literal

import torch

from hide_llava.adapters.folding import ENOUGH
from hide_llava.benchmarks.files import BenchmarkTask
from hide_llava.config import RunConfig, as_begun
from hide_llava.distributed import is_main, on_main
from hide_llava.errors import UserError
from hide_llava.evaluation.binding import answered_with, differences, edited, refuse_other, scored_with, stored_settings
from hide_llava.evaluation.cells import Cell, cell_of, evaluate_cells, score_cell
from hide_llava.methods.base import Stage
from hide_llava.metrics import ALL_EMPTY
from hide_llava.preflight import preflight
from hide_llava.storage import read_json, write_json
from hide_llava.training.engines import check_engine, start_processes
from hide_llava.training.lineage import checked_chain
from hide_llava.training.memory import reclaim
from hide_llava.training.run import Run
from hide_llava.training.run_folder import RunFolder, stage_name
from hide_llava.training.sequence import refuse_changed_data, train_stage
from hide_llava.training.session import Session

BASE = Stage(-1, "base", "Untouched model", (), ())  # eval/00-base: before the first stage
Stages = Literal["all", "last"]  # after which of them the tasks are asked


def say(text: str) -> None:
    """A line for people, from one process, with the time."""
    if is_main():
        print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


def _peak_memory() -> float | None:
    """GiB of GPU memory that this process had in use at most since it last asked; None on a CPU."""
    if not torch.cuda.is_available():
        return None
    peak = torch.cuda.max_memory_allocated() / 2**30
    torch.cuda.reset_peak_memory_stats()
    return peak


class Pipeline:
    """The work of one run. The model is loaded when the first unfinished piece of it needs it.

    after: the work on the same run or a variant of it that was done before; its model, and what it knows of the stages, are
    taken over.
    """

    def __init__(self, run: Run, existing: bool = False, again: bool = False, after: Pipeline | None = None):
        self.run, self.again = run, again
        self.folder: RunFolder = run.folder
        if is_main():
            run.open(existing=existing)
        self.cells, self.scored = 0, 0  # all that were looked at, and those that were finished before
        if torch.distributed.is_initialized():
            torch.distributed.barrier()
        self._session: Session | None = after and after._session
        self._at = -1  # the stage that the session stands at
        self._restored: float | None = None  # seconds that reading the stages took, until it is noted
        self._chains: list[str] = after._chains if after else []  # of the stages that were checked, in order
        on_main(self._check_stages)

    def session(self, at: int) -> Session:
        """The session as it was after stage `at`."""
        if self._session is None:
            say(f"loading {self.run.model.name}")
            self._session = Session(self.run)
            self._at = -1
        elif self._session.run is not self.run:
            self._session.become(self.run)
            self._at = -1
        if self._at != at:
            start = time.monotonic()
            self._session.restore(at)
            self._at, self._restored = at, time.monotonic() - start
        return self._session

    def _check_stages(self) -> None:
        """Read the finished stages, as far as none is missing, and compare them with what was written."""
        names = [stage_name(s) for s in self.run.stages if s.train and self.run.trains]
        there = [self.folder.stage(name) for name in names if self.folder.is_complete(name)]
        training = self.run.training_part() if len(there) > len(self._chains) else {}
        for name in names[len(self._chains) :]:
            if not self.folder.is_complete(name):
                return
            i = len(self._chains)
            self._chains.append(checked_chain(there, i, self._chains[-1] if i else None, training))

    def train(self, stage: Stage) -> None:
        name = stage_name(stage)
        if not stage.train or not self.run.trains or self.folder.is_complete(name):
            on_main(self._check_stages)  # a stage before it may have been trained again
            if is_main():
                self.folder.close_stage(name)  # also after a kill between the stage folder and its entry in the manifest
            return
        self.run.tracking.open()
        session = self.session(stage.index - 1)
        say(f"{name}: training")
        start, whole = time.monotonic(), not self.folder.state(name).exists()
        self._session = train_stage(session, stage)
        self._at = stage.index
        seconds = time.monotonic() - start
        self._took(name, train_seconds=seconds if whole else None, train_peak_gib=_peak_memory())
        say(f"{name}: trained in {seconds:.0f} s")

    def _took(self, stage: str, **measured: float | None) -> None:
        """Note in the manifest how long a piece of work took, None when it was done in several goes, and what it needed."""
        if is_main():
            self.folder.update_stage(stage, **{k: v and round(v, 2) for k, v in measured.items()})

    def evaluate_stages(self, stages: Stages) -> None:
        """Evaluate all stages, or the last alone."""
        for stage in self.run.stages[-1:] if stages == "last" else self.run.stages:
            self.evaluate(stage)

    def evaluate(self, stage: Stage) -> None:
        """All cells of a stage that are not scored yet, with the experts folded once."""
        name = stage_name(stage)
        wanted = {task.id: task for task in self.run.asked_after(stage)}
        trained = self.run.trains and bool(stage.train)
        todo = on_main(lambda: self._open_cells(stage, list(wanted.values()), trained))
        self.cells += len(wanted)
        if not todo:
            return
        self.run.tracking.open()
        whole = not any(self.folder.cell(name, task).exists() for task in wanted)
        session, begun = self.session(stage.index if trained else -1), time.monotonic()
        with session:
            self._took(name, restore_seconds=self._restored, fold_seconds=time.monotonic() - begun)
            self._restored = None
            self._report_folding(name, session.core.kept)
            cells = [cell_of(session, wanted[task], self.folder.cell(name, task), settings, f"{name} on {task}", stage.index + 1)
                     for task, settings in todo.items()]  # fmt: skip

            def scored(cell: Cell, result: dict[str, Any]) -> None:
                self._say_score(name, cell.task.id, result, f"{result['n_scored']} answers, {cell.seconds:.0f} s")

            evaluate_cells(session, cells, scored)
            asked = time.monotonic()
        self._took(name, eval_seconds=asked - begun if whole else None, unfold_seconds=time.monotonic() - asked,
                   eval_peak_gib=_peak_memory())  # fmt: skip

    def evaluate_base(self) -> None:
        """The tests of general ability once of the model as it is (`eval.general_base`), into `eval/00-base/`."""
        if not self.run.eval.general_base or not self.run.general or not self.run.trains:
            return
        base = copy.copy(self)
        base.run, base.folder, base._chains = self.run.untouched(), RunFolder(self.folder.trained_in), []
        base.evaluate(BASE)
        self.cells, self.scored = base.cells, base.scored
        if base._session is not None:  # its place is that of the model that is trained
            base._session.routed.to("meta")
            base._session = None
            reclaim()

    def _open_cells(self, stage: Stage, tasks: list[BenchmarkTask], trained: bool) -> dict[str, dict[str, Any]]:
        """Tasks whose questions are still to be asked, with what their answers depend on. Scores that only depend on
        something that has changed since, such as references, are made anew from the answers."""
        name, todo, weights = stage_name(stage), {}, None
        if trained:
            self._check_stages()
            if len(self._chains) <= stage.index:
                raise UserError(f"{self.folder.stage(name)}: this stage is not complete; train it first.")
            weights = self._chains[stage.index]
        for task in tasks:
            cell, settings = self.folder.cell(name, task.id), answered_with(self.run, task, weights)
            stored = stored_settings(cell)
            wished = settings | ({"batch_size": self.run.eval.batch_size} if self.run.eval.batch_size else {})
            if stored is not None and self.again and (differences(stored, wished) or edited(cell)):
                self._put_aside(cell)
                stored = None
            if stored is None:
                todo[task.id] = settings
                continue
            refuse_other(cell, stored, wished, "add --again to `hide-llava eval`")
            if not (cell / "predictions.jsonl").is_file() or list(cell.glob("part-*.jsonl")):
                todo[task.id] = settings
                continue
            if edited(cell):
                raise UserError(f"{cell / 'predictions.jsonl'}: is not what was scored; bring the file back, or add --again "
                                "to `hide-llava eval` to answer it anew.")  # fmt: skip
            score = read_json(cell / "score.json") if (cell / "score.json").is_file() else None
            why = ["its score was missing"] if score is None else differences(score, scored_with(task))
            if why:
                try:
                    self._say_score(name, task.id, score_cell(task, cell), f"scored again: {'; '.join(why)}")
                except UserError as error:
                    raise UserError(f"{cell}: {error}") from None
            else:
                self.scored += 1
        return todo

    def _put_aside(self, cell: Path) -> None:
        """Keep what is there under `replaced/`, so that nothing is lost."""
        place = self.folder.path / "replaced" / cell.parent.name / cell.name
        number = 1 + len(list(place.parent.glob(f"{place.name}-*")))
        place.parent.mkdir(parents=True, exist_ok=True)
        cell.rename(place.with_name(f"{place.name}-{number}"))

    def _say_score(self, stage: str, task: str, result: dict[str, Any], about: str) -> None:
        say(f"{stage} on {task}: {result['score']:.2f} ({about})")
        self.run.tracking.cell(stage, task, result["score"], task in [one.id for one in self.run.general])
        if ALL_EMPTY in result["labels"]:
            say(f"warning: {stage} on {task}: {ALL_EMPTY}; look at the losses of its training")

    def _report_folding(self, stage: str, kept: dict[str, float]) -> None:
        """Store and say how much of the experts' update the folded weights hold; in fp32 there is nothing to say."""
        if not kept or min(kept.values()) == 1.0 or not is_main():
            return
        apart = sum(share < ENOUGH for share in kept.values())
        summary = {"linears": len(kept), "kept_least": round(min(kept.values()), 4), "as_adapter": apart}
        self.folder.update_stage(stage, folding=summary)
        write_json(self.folder.path / "eval" / stage / "folding.json", {k: round(v, 5) for k, v in kept.items()})
        if apart:
            say(f"{stage}: {apart} of {len(kept)} linears keep the fused update as a low-rank adapter: folded into the "
                f"weights, {self.run.model.dtype} would hold as little as {100 * min(kept.values()):.0f} % of it")  # fmt: skip

    def report(self) -> Path | None:
        if not is_main():
            return None
        from hide_llava.results.report import write_report

        self.run.note_places()
        return write_report(self.folder.path)


def run(
    config: RunConfig, train: bool = True, evaluate: bool = True, report: bool = True, existing: bool = False,
    again: bool = False, stages: Stages = "all",
) -> dict[str, Any]:  # fmt: skip
    """Train and evaluate the whole sequence, resuming whatever an earlier call left.

    `existing`: the configuration was read from the run folder, perhaps with other eval.* values. `again`: what was answered
    with other settings is answered anew instead of refused; the old answers are kept under `replaced/`. `stages`: after which
    the tasks are asked.

    Raises:
        UserError, Interrupted: see the parts.
    """
    config, taken = as_begun(config)
    work = Run(config)
    if train:
        check_engine(work.train.engine, work.model, work.method)
    start_processes(work.train, work.model.device)
    if taken:
        say(f"this run was begun before these keys existed and goes on as it did: {', '.join(taken)}")
    for warning in preflight(work, train, evaluate):
        say(f"warning: {warning}")
    with work.folder.lock_main(), contextlib.closing(work.tracking):
        pipeline = Pipeline(work, existing, again)
        if train and is_main():
            refuse_changed_data(work)
        if evaluate:
            pipeline.evaluate_base()
        for stage in work.stages:
            if train:
                pipeline.train(stage)
            if evaluate and (stages == "all" or stage is work.stages[-1]):
                pipeline.evaluate(stage)
        if pipeline.scored:
            say(f"{pipeline.scored} of {pipeline.cells} cells were scored already, and are kept")
        return {"run": work.folder.path, "report": pipeline.report() if report else None}


def reuse_stages(trained: Path, run: Run) -> None:
    """Give a new run the trained stages of another one, whose folder is `trained` and which differs from it at inference only.

    Where that has none any more, or the run has begun on its own, it stays as it is and trains what it lacks.
    """
    stages = run.open().path / "stages"
    if not stages.exists() and (trained / "stages").is_dir():
        temporary = stages.with_name(".stages.tmp")
        shutil.copytree(trained / "stages", temporary, dirs_exist_ok=True)
        temporary.rename(stages)
