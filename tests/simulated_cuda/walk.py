"""One method on the simulated device, in bf16 with checkpointing, by the real pipeline: `python -m tests.simulated_cuda.walk`.

    walk WORLD OUTPUT METHOD…     one JSON line for each method

Two tasks are trained, evaluated, stored; the same again, stopped after every step of the second task and gone on with in
a new session each time; then both are compared. What made the host wait is counted per step, per batch and per token.
"""

from __future__ import annotations

import collections
import contextlib
import gc
import json
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.utils import logging

import hide_llava.methods.all  # noqa: F401
import tests.methods.extra  # noqa: F401
from hide_llava.backbones import llava15
from hide_llava.backbones.chat import ChatBackbone
from hide_llava.config import compose
from hide_llava.evaluation import cells
from hide_llava.pipeline import run
from hide_llava.training import sequence
from hide_llava.training.run_folder import RunFolder
from tests.methods.test_contract import assert_same, preset, small, tensors_of
from tests.simulated_cuda import device
from tests.stops import stopped_after, until_done
from tests.tiny import arguments

SETTINGS = ("model.device=cuda", "model.dtype=bfloat16", "train.gradient_checkpointing=true", "tasks=[task0,task1]",
            "train.epochs=1", "eval.num_workers=0", "eval.batch_size=6", "eval.max_new_tokens=4")  # fmt: skip
FEW = ("method.samples=2",)  # records that are looked at again after a task, one by one: more only take time
# Octopus trains every record twice: a step of each time are as many steps as the others have, so that it too answers at length.
QUICK = {"branchlora": (*FEW, "method.branches=4"), "clmoe": FEW, "same": FEW, "octopus": ("train.max_steps=2",)}


class Counted:
    """Waits of the host while training steps and batches of answers were at work, and what they were for."""

    def __init__(self) -> None:
        self.steps, self.batches = [], []
        self.by_place: dict[str, collections.Counter] = {"step": collections.Counter(), "batch": collections.Counter()}

    def during(self, kind: str, before: collections.Counter) -> int:
        new = device.waits - before
        self.by_place[kind] += new
        return new.total()


class _Steps(TrainerCallback):
    def __init__(self, counted: Counted):
        self.counted = counted

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.before = device.waits.copy()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.counted.steps.append(self.counted.during("step", self.before))


def walk(world: Path, output: Path, method: str) -> dict[str, Any]:
    """The numbers of one method: waits per step and batch, and where they come from."""
    words = arguments(world, preset(world, method), output / "whole", *small(method), *QUICK.get(method, ()), *SETTINGS)
    counted = Counted()
    with counting(counted):
        run(compose(words), report=False)
    disturbed = compose([*words, f"output={output / 'stopped'}"])
    with stopped_after(1):
        stops = until_done(lambda: run(disturbed, report=False))
    assert bool(stops) == bool(counted.steps)
    whole, again = output / "whole", output / "stopped"
    assert all(stage["status"] == "complete" for stage in RunFolder(again).manifest["stages"])
    if counted.steps:
        assert_same(tensors_of(again), tensors_of(whole))
    for file in sorted(whole.rglob("predictions.jsonl")):
        assert ids(file) == ids(again / file.relative_to(whole)), f"other answers after a restart: {file.parent.name}"
    places = {kind: dict(found.most_common()) for kind, found in counted.by_place.items()}
    return {"steps": counted.steps, "batches": counted.batches, "places": places}


@contextlib.contextmanager
def counting(counted: Counted) -> Iterator[None]:
    """Inside the block training steps, batches of answers and decoded tokens are counted."""
    build_trainer, answer_batch, greedy = sequence.build_trainer, cells.answer_batch, llava15.greedy
    of_upstream = ChatBackbone.answer
    decoding = [0, 0]  # waits of decoding, tokens

    def build(*args: Any) -> Any:
        trainer, callback = build_trainer(*args)
        trainer.add_callback(_Steps(counted))
        return trainer, callback

    def decode(*args: Any, **kwargs: Any) -> Any:
        before = device.waits.copy()
        result = greedy(*args, **kwargs)
        decoding[:] = [(device.waits - before).total(), max(map(len, result))]
        return result

    def generate(*args: Any, **kwargs: Any) -> Any:
        before = device.waits.copy()
        result = of_upstream(*args, **kwargs)
        decoding[:] = [(device.waits - before).total(), max(map(len, result))]
        return result

    def answer(*args: Any) -> list[dict]:
        before = device.waits.copy()
        rows = answer_batch(*args)
        waits, tokens = decoding
        counted.batches.append({"waits": counted.during("batch", before) - waits, "a token": waits / tokens})
        return rows

    sequence.build_trainer, cells.answer_batch, llava15.greedy = build, answer, decode
    ChatBackbone.answer = generate
    try:
        yield
    finally:
        sequence.build_trainer, cells.answer_batch, llava15.greedy = build_trainer, answer_batch, greedy
        ChatBackbone.answer = of_upstream


def ids(file: Path) -> list[list[int]]:
    return [json.loads(line)["token_ids"] for line in file.read_text().splitlines()]


def main() -> None:
    world, output, *methods = sys.argv[1:]
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    gc.freeze()  # what importing has made is never searched for garbage again
    with device.simulated_cuda():
        for method in methods:
            begun, line = time.monotonic(), {"method": method}
            try:
                line |= walk(Path(world), Path(output) / Path(method).stem, method)
            except Exception:
                line["error"] = traceback.format_exc()
            line["seconds"] = round(time.monotonic() - begun, 1)
            print("walked", json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
