"""Where the time of evaluating one cell goes: questions → images → answers → score, on the CPU with the small model.

    python perf/evaluation.py --folder FOLDER                 # mini-UCIT is written there on first use
    python perf/evaluation.py --folder FOLDER --task vizwiz --profile

The session is a real one (`evaluate_cells`, model=mini, method=hide-mini) whose experts hold random B and whose anchors
come from a few training records: what an answer says does not matter here, but how long it is does, so every question
of the file is answered until end-of-sequence or `max_new_tokens`, as in a run. One cell is answered first to warm up.

generation  features, routing, vision tower, splice and decoding: everything in `RoutedLlava.generate`
pictures    reading, decoding, padding and resizing, tokenising, in `QuestionDataset`
score       the task's metrics and the error profile
rest        reading questions, collation, text of the answers, writing with fsync, merging

Shares are of the CPU time of this process and its children: the captions' tokenizer and METEOR run in Java, whose start
is a second of CPU time per cell whatever its size. Target: generation at least 90 %. The small model's generation is three orders
cheaper than a 7B's, so these shares of everything else are the largest one may meet.
"""

from __future__ import annotations

import argparse
import contextlib
import cProfile
import pstats
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from cpu_seconds import cpu_seconds
from measure import machine, start, table

from hide_llava.config import compose
from hide_llava.data.dataset import QuestionDataset
from hide_llava.evaluation import cells
from hide_llava.evaluation.binding import answered_with
from hide_llava.training.run import Run
from hide_llava.training.sequence import _context, training_data
from hide_llava.training.session import Session

PARTS = ("generation", "pictures", "score", "rest")


class Meter:
    """CPU seconds spent inside functions, by label."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def inside(self, label: str, function: Callable, clock: Callable[[], float] = time.process_time) -> Callable:
        """`function`, with its time by `clock` added to `label`."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            begun = clock()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[label] = self.seconds.get(label, 0.0) + clock() - begun

        return timed

    @contextlib.contextmanager
    def watch(self, session: Session) -> Iterator[None]:
        """Time the three named parts while a cell is evaluated."""
        with (
            mock.patch.object(session.routed, "generate", self.inside("generation", session.routed.generate)),
            mock.patch.object(QuestionDataset, "__getitem__", self.inside("pictures", QuestionDataset.__getitem__)),
            mock.patch.object(cells, "score", self.inside("score", cells.score, cpu_seconds)),
        ):
            yield


def ready_session(folder: Path, overrides: list[str]) -> Session:
    """HiDe after all tasks, its experts random and its anchors from one batch of each task."""
    config = compose(["model=mini", "benchmark=mini-ucit", "train=mini", "method=hide-mini", "eval.num_workers=0",
                      f"data_root={folder / 'data'}", f"output={folder / 'runs'}", *overrides])  # fmt: skip
    run = Run(config)
    run.prepare()
    session = Session(run)
    for stage in session.stages:
        data = training_data(session, stage)
        context = _context(session, data)
        session.begin_stage(stage, context)
        for parameter in session.method.params()[0]["params"]:
            torch.nn.init.normal_(parameter, std=0.01)
        batch = next(iter(context.loader(data, 16)))
        session.method.loss(None, batch, context.features(batch))
        session.method.after_task(session.tasks[stage.train[0]], context)
    return session


def cell(session: Session, task: Any, folder: Path) -> tuple[dict[str, float], int]:
    """(CPU seconds by part, number of answers) of one cell, from nothing."""
    shutil.rmtree(folder, ignore_errors=True)
    settings, results = answered_with(session.run, task, None), []
    meter, begun = Meter(), cpu_seconds()
    with meter.watch(session):
        one = cells.cell_of(session, task, folder, settings, task.id, stage=1)
        cells.evaluate_cells(session, [one], lambda _, result: results.append(result))
    total = cpu_seconds() - begun
    return {**meter.seconds, "rest": total - sum(meter.seconds.values())}, results[0]["n_scored"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="data and answers are written here")
    parser.add_argument("--task", action="append", help="ids; default: all of mini-UCIT")
    parser.add_argument("--rounds", type=int, default=3, help="cells are evaluated this often, sums are shown")
    parser.add_argument("--profile", action="store_true", help="list the functions outside generation that cost most")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as limit=32 or eval.shrink_batches=false")
    args = parser.parse_args()
    start(1)
    session = ready_session(args.folder, args.overrides)
    tasks = [t for t in session.run.tasks if not args.task or t.id in args.task]
    answers = args.folder / "answers"
    rows = []
    with session:
        cell(session, tasks[0], answers)
        for task in tasks:
            taken = [cell(session, task, answers) for _ in range(args.rounds)]
            sums = {part: sum(seconds.get(part, 0.0) for seconds, _ in taken) for part in PARTS}
            total, count = sum(sums.values()), sum(n for _, n in taken)
            rows.append([task.id, task.metric, str(taken[0][1]), f"{1000 * total / count:.2f}",
                         *(f"{100 * sums[part] / total:.1f} %" for part in PARTS)])  # fmt: skip
        if args.profile:
            profile(lambda: cell(session, tasks[0], answers))
    print(f"evaluation of one cell: model=mini, {session.run.benchmark.name}\n{machine('cpu', 1)}")
    print(table(["task", "metric", "answers", "CPU ms/answer", *PARTS], rows))


def profile(call: Callable[[], Any]) -> None:
    """The functions that cost most by cumulative time, of which those under `generate` are the decoder's."""
    profiler = cProfile.Profile()
    profiler.runcall(call)
    pstats.Stats(profiler).sort_stats("cumulative").print_stats(r"hide_llava|PIL|image_processing|json", 30)


if __name__ == "__main__":
    main()
