"""How time and memory grow with the number of tasks, the rank, the batch and the sequence, at a small CPU shape.

    python perf/growth.py --rounds 5                 # all four axes
    python perf/growth.py --axis tasks --rounds 7

Every cell is `measured / predicted`, both as a ratio to the axis's first point. Times are CPU times of this process, the
points of an axis taking turns; bytes are counted, not estimated. The formulas are in perf/formulas.py. They leave out fixed
costs, so what grows as they say shows at most their ratio. A time more than 25 % above it, or bytes more than 5 %
(headers of files), is named under the table. Targets: none is; step and decoding are flat in the number of tasks, but
for the top layer's gated experts in decoding.

step         one step of `MethodTrainer`: collation, forward, backward, clipping, AdamW, the Trainer's own work
activations  bytes that autograd keeps for the backward pass, parameters not counted
state        bytes of gradients and AdamW's moments
decode       `RoutedLlava.generate` of one batch after folding
route        `method.route` on given features, 20 calls
gates        bytes of the route's gates
fold         `prepare_inference` and `fuse` (fusion=delta_sum);  kept: bytes of the original weights and of the gated top layer
restore      unfold, then every expert from its folder (reading a stage);  add: a new task's adapter
checkpoint   `save_trained`: time (predicted: by number of tensors) and bytes;  stage: bytes of `Session.save_stage`
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch
from formulas import FORMULAS, Point
from measure import Call, clocks, interleave, machine, ratios, start, table
from shapes import Shape, build_batch, build_hide, build_samples
from torch import Tensor
from torch.utils.data import SequentialSampler
from transformers import TrainerCallback, TrainingArguments

from hide_llava.data.collator import Collator
from hide_llava.methods.routed import RoutedLlava
from hide_llava.training.checkpoint import save_trained
from hide_llava.training.session import Session
from hide_llava.training.trainer import MethodTrainer

SMALL = Shape(
    hidden=64, layers=4, heads=2, vocabulary=256, vision_hidden=32, image_tokens=16, prompt_tokens=16, answer_tokens=4,
    new_tokens=4, experts=4, rank=4, fusion="delta_sum",
)  # fmt: skip
STEPS = 4  # optimizer steps per timed call of the Trainer, one of them to warm up


AXES: dict[str, list[Point]] = {
    "tasks": [Point(n, replace(SMALL, experts=n)) for n in (1, 2, 4, 8, 16, 32, 64)],
    "rank": [Point(n, replace(SMALL, rank=n)) for n in (2, 4, 8, 16, 32, 64)],
    "batch": [Point(n, SMALL, n) for n in (1, 2, 4, 8, 16)],
    "prompt tokens": [Point(n, replace(SMALL, prompt_tokens=n)) for n in (16, 32, 64, 128, 256)],
}


TIMES = ("step", "decode", "route", "fold", "restore", "add", "checkpoint")


# ---- what is measured --------------------------------------------------------------------------------------------
class StepClock(TrainerCallback):
    """Wall and CPU seconds from the begin of each step to the begin of the next."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, float]] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.seen.append((time.perf_counter(), time.process_time()))

    def taken(self) -> tuple[float, float]:
        """Medians of the steps between; the first is warm-up. Forgets them."""
        pairs = [(b[0] - a[0], b[1] - a[1]) for a, b in zip(self.seen[1:], self.seen[2:])]
        self.seen = []
        return median(w for w, _ in pairs), median(c for _, c in pairs)


class Trained:
    """A model at its last task, with the Trainer that trains it."""

    def __init__(self, point: Point, folder: Path):
        self.routed, self.folder = build_hide(point.shape, training=True), folder
        self.trained = [p for group in self.routed.method.params() for p in group["params"]]
        for parameter in self.trained:
            parameter.requires_grad_(True)
        self.clock, data = StepClock(), build_samples(point.shape, point.size * (STEPS + 2), "right")
        args = TrainingArguments(
            str(folder / "trainer"), per_device_train_batch_size=point.size, max_steps=STEPS + 2, use_cpu=True,
            save_strategy="no", report_to=[], disable_tqdm=True, remove_unused_columns=False, logging_strategy="no",
        )  # fmt: skip
        self.trainer = MethodTrainer(
            self.routed, args, SequentialSampler(data), {"adapter": 1e-4, "projector": 1e-4}, train_dataset=data,
            data_collator=Collator(side="right"), callbacks=[self.clock],
        )  # fmt: skip
        self.batch = build_batch(point.shape, point.size, "right")

    def step(self) -> tuple[float, float]:
        gc.collect()
        gc.disable()  # a collection of all models' objects would fall into some point's step
        try:
            self.trainer.train()
        finally:
            gc.enable()
        return self.clock.taken()

    def counted(self) -> dict[str, float]:
        """Bytes of activations, state, checkpoint and stage folder."""
        own, storages = {p.data_ptr() for p in self.routed.parameters()}, {}

        def pack(x: Tensor) -> Tensor:
            if x.data_ptr() not in own:
                storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            loss = self.routed.train()(**self.batch).loss
        loss.backward()
        moments = sum(t.nbytes for s in self.trainer.optimizer.state.values() for t in s.values() if t.dim())
        state = moments + sum(p.grad.nbytes for p in self.trained)
        self.routed.zero_grad()
        save_trained(self.routed, self.folder / "checkpoint")
        parts = SimpleNamespace(method=self.routed.method, core=self.routed.core)
        Session.save_stage(parts, self.folder / "stage", [])
        return {"activations": sum(storages.values()), "state": state,
                "checkpoint bytes": size_of(self.folder / "checkpoint"),
                "stage bytes": size_of(self.folder / "stage")}  # fmt: skip


def size_of(folder: Path) -> int:
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())


class Folded:
    """A model after all tasks, answering."""

    def __init__(self, point: Point, folder: Path):
        self.routed: RoutedLlava = build_hide(point.shape, training=False).eval().requires_grad_(False)
        self.core, self.method, self.folder, self.point = self.routed.core, self.routed.method, folder, point
        self.names = [self.method.expert(t) for t in self.method.learned]
        for name in self.names:
            self.core.save(name, folder / name)
        self.batch = build_batch(point.shape, point.size, "left")
        self.features = self.routed.features(self.batch, self.routed.see(self.batch))

    def fold(self) -> tuple[float, float]:
        self.core.unfold()
        return clocks(self.prepare, "cpu")

    def prepare(self) -> None:
        """As `with session:` does it."""
        self.method.prepare_inference()
        self.core.fuse()

    def restore(self) -> None:
        self.core.unfold()
        for name in self.names:
            self.core.load(name, self.folder / name)

    def add(self) -> tuple[float, float]:
        self.core.unfold()
        taken = clocks(lambda: self.core.add("new", self.method.config), "cpu")
        self.core.delete("new")
        return taken

    def route(self) -> None:
        for _ in range(20):
            self.method.route(self.batch, self.features, False)

    def counted(self) -> dict[str, float]:
        """Bytes of the gates, and of what folding keeps."""
        held, folded = self.core.parameters_of("routed"), self.core.folds._kept.values()
        gates = self.method.route(self.batch, self.features, False).gates.values()
        return {"gates": sum(g.nbytes for g in gates), "kept": sum(p.nbytes for p in [*held, *folded])}


def rounds_of(calls: dict[str, Callable[[], tuple[float, float]]], rounds: int) -> dict[str, list]:
    """Like `interleave`, for calls that time themselves."""
    names, times = list(calls), {name: [] for name in calls}
    for turn in range(rounds + 1):
        for i in range(len(names)):
            name = names[(turn + i) % len(names)]
            taken = calls[name]()
            if turn:
                times[name].append(taken)
    return times


def measured(points: list[Point], rounds: int, folder: Path) -> dict[str, dict[int, float]]:
    """measure → point label → milliseconds (first point's median × ratio to it), or bytes."""
    values: dict[str, dict[int, float]] = {name: {} for name in FORMULAS}

    def timed(name: str, times: dict[str, list]) -> None:
        first = times[str(points[0].label)]
        for point in points:
            values[name][point.label] = 1000 * median(c for _, c in first) * ratios(times[str(point.label)], first)[1]

    def turns(name: str, make: Callable[[Any], Call], models: dict[str, Any]) -> None:
        timed(name, interleave({label: make(m) for label, m in models.items()}, rounds, "cpu"))

    models = {str(p.label): Trained(p, folder / f"trained-{p.label}") for p in points}
    timed("step", rounds_of({label: m.step for label, m in models.items()}, rounds))
    turns("checkpoint", lambda m: lambda: save_trained(m.routed, m.folder / "checkpoint"), models)
    folded = {str(p.label): Folded(p, folder / f"folded-{p.label}") for p in points}
    timed("fold", rounds_of({label: m.fold for label, m in folded.items()}, rounds))
    turns("route", lambda m: m.route, folded)
    turns("decode", lambda m: lambda: m.routed.generate(m.batch, m.point.shape.new_tokens), folded)
    for point in points:
        for made in (models[str(point.label)], folded[str(point.label)]):
            for name, value in made.counted().items():
                values[name][point.label] = value
    timed("add", rounds_of({label: m.add for label, m in folded.items()}, rounds))
    turns("restore", lambda m: m.restore, folded)
    return values


def compare(points: list[Point], values: dict[str, dict[int, float]]) -> tuple[list[list[str]], list[str]]:
    """Table rows `measured / predicted`, and what grew faster than predicted."""
    rows, faster = [], []
    for name, formula in FORMULAS.items():
        first = values[name][points[0].label]
        cells = [f"{first:.2f} ms" if name in TIMES else f"{first / 1024:.1f} KiB"]
        for point in points:
            ratio = values[name][point.label] / first
            predicted = formula(point) / formula(points[0])
            cells.append(f"{ratio:.2f} / {predicted:.2f}")
            if ratio > predicted * (1.25 if name in TIMES else 1.05):
                faster.append(f"{name} at {point.label}: {ratio:.2f}, predicted {predicted:.2f}")
        rows.append([name, *cells])
    return rows, faster


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axis", choices=list(AXES), action="append", help="default: all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--points", type=int, help="only the first points of an axis")
    args = parser.parse_args()
    start(1)
    print(f"growth: {SMALL}\n{machine('cpu', 1)}")
    for axis in args.axis or AXES:
        points = AXES[axis][: args.points]
        with tempfile.TemporaryDirectory(prefix="growth-") as folder:
            values = measured(points, args.rounds, Path(folder))
        rows, faster = compare(points, values)
        print(f"\n{axis}\n\n{table(['', 'first', *(str(p.label) for p in points)], rows)}\n")
        print("faster than predicted: " + ("; ".join(faster) or "nothing"), flush=True)


if __name__ == "__main__":
    main()
