"""LLaVA-1.5-7B's shape on one GPU, random weights: LoRA step, answers, folding. One table, under 10 minutes.

    bash perf/gpu.sh               # needs torch, transformers, peft, pydantic; downloads nothing
    bash perf/gpu.sh --small       # the same code at toy size on a CPU; the times then mean nothing

training step  peft   upstream LoRA on transformers' own LLaVA; hide: this package at task 6 of 6; naive: every task's
                      expert in the optimizer, as in the reference. One answer of 10 tokens per sample is trained on.
answers        base   transformers' generate without adapters; hide: folded; naive: batch 1, all experts summed anew in
                      every forward (perf/generation.py, weights not initialised first). 10 new tokens each.
stages         fold, unfold, and swap = unfold, read every expert from its folder, fold (what `Session.restore` does).

Every section has its share of the time (`SHARES`). A row that would not end in it, judged by the row before, is not
begun. Each row also goes to stderr at once, and a run that is stopped prints the table of what it has.

tokens/s counts all positions of the padded sequence, image tokens included. MFU and HFU: see perf/flops.py. The CLIP
text tower that HiDe routes by is inside `hide` and `naive`. Not inside: reading and resizing pictures, metrics.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

import flops
import torch
from generation import base_call, naive, routed_call
from measure import Call, clocks, machine, start, table
from shapes import Shape, build_batch, build_hide, build_llava
from training_step import Variant
from transformers.utils import is_flash_attn_2_available

from hide_llava.methods.routed import RoutedLlava

REAL = Shape(
    hidden=4096, layers=32, heads=32, vocabulary=32_000, vision_hidden=1024, vision_layers=24, vision_heads=16,
    vision_mlp=4, image_tokens=576, prompt_tokens=40, answer_tokens=10, new_tokens=10, experts=6, rank=8,
    device="cuda", dtype="bfloat16", routing="clip",
)  # fmt: skip
TOY = replace(
    REAL, hidden=32, layers=2, heads=2, vocabulary=64, vision_hidden=16, vision_layers=2, vision_heads=4,
    image_tokens=4, prompt_tokens=8, answer_tokens=3, new_tokens=3, experts=2, rank=2, device="cpu",
)  # fmt: skip
CELLS, ANSWERS = 21, 63_000  # of a UCIT run: the lower triangle of six tasks, 3,000 answers a cell
# of the whole time, at which each section's last row must be done
SHARES = {("answers", "base"): 0.15, ("answers", "hide"): 0.40, ("answers", "naive"): 0.45,
          ("training step", "peft"): 0.70, ("training step", "hide"): 0.92, ("training step", "naive"): 1.0}  # fmt: skip
HEADER = ["part", "variant", "setting", "batch", "ms", "rate", "MFU", "HFU", "ratio", "peak GiB"]


class Report:
    """The rows so far, and the time that is left for more."""

    def __init__(self, device: str, repeats: int, seconds: float):
        self.device, self.repeats, self.rows = device, repeats, []
        self.begun, self.seconds, self.end = time.monotonic(), seconds, 0.0
        self.took: dict[tuple[str, str, str], float] = {}  # row but its batch size → seconds of the last one per sample
        self.flops = flops.peak(torch.cuda.get_device_name()) if device == "cuda" else None

    def section(self, part: str, variant: str, rows: Callable[[], None]) -> None:
        """One model at a time: its share of the time, a row instead of a crash if it does not fit, its memory back."""
        self.end = self.begun + SHARES[part, variant] * self.seconds
        try:
            if time.monotonic() < self.end:
                rows()
            else:
                self.add(part, variant, "", "", "not run (time)")
        except torch.OutOfMemoryError:
            self.add(part, variant, "", "", "model does not fit")
        release(self.device)

    def add(self, part: str, variant: str, setting: str, batch: object, *cells: str) -> None:
        """One row; also to stderr at once, so that a run that is stopped has shown what it measured."""
        row = [part, variant, setting, str(batch), *cells]
        self.rows.append(row + [""] * (len(HEADER) - len(row)))
        print(" | ".join(self.rows[-1]), file=sys.stderr, flush=True)

    def measure(self, part: str, variant: str, setting: str, size: int, make: Callable[[], Call],
                cells: Callable[[float], list[str]]) -> float | None:  # fmt: skip
        """Time `make()()` and add a row; `cells(seconds)`: rate, MFU, HFU, ratio. None: not measured."""
        series, begun = (part, variant, setting), time.monotonic()
        if begun + size * self.took.get(series, 0.0) > self.end:
            self.add(part, variant, setting, size, "not run (time)")
            return None
        seconds, peak = self._attempt(make)
        self.took[series] = (time.monotonic() - begun) / size
        if seconds is None:
            self.add(part, variant, setting, size, "does not fit")
        else:
            self.add(part, variant, setting, size, f"{1000 * seconds:.1f}", *cells(seconds), peak)
        return seconds

    def _attempt(self, make: Callable[[], Call]) -> tuple[float | None, str]:
        """(median seconds, peak memory) after one warm-up call; (None, "") when memory runs out."""
        result: tuple[float | None, str] = None, ""
        with contextlib.suppress(torch.OutOfMemoryError):
            call = make()
            call()
            if self.device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            seconds = median(clocks(call, self.device)[0] for _ in range(self.repeats))
            result = seconds, f"{torch.cuda.max_memory_allocated() / 2**30:.1f}" if self.device == "cuda" else ""
        release(self.device)
        return result

    def share(self, work: float, seconds: float) -> str:
        """FLOPs per second as a share of the device's peak."""
        return "" if self.flops is None else f"{100 * work / seconds / self.flops:.1f} %"


def release(device: str) -> None:
    """Give memory back between measurements."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def over(seconds: float, baseline: float | None, name: str) -> str:
    return "" if baseline is None else f"{seconds / baseline:.3f} × {name}"


# ---- training ----------------------------------------------------------------------------------------------------
Times = dict[tuple[str, str, int], "float | None"]  # (variant, setting, batch) → seconds


def training(report: Report, shape: Shape, sizes: list[int]) -> None:
    """peft with every attention; hide and naive with sdpa; naive at two batch sizes."""
    flash = is_flash_attn_2_available() and shape.device == "cuda"
    times: Times = {}
    for name in ("peft", "hide", "naive"):
        few = sizes[:1] + sizes[3:4] if name == "naive" else sizes
        attentions = ("sdpa", "flash_attention_2") if flash and name == "peft" else ("sdpa",)
        report.section("training step", name, partial(train, report, shape, name, attentions, few, times))


def train(report: Report, shape: Shape, name: str, attentions: tuple[str, ...], sizes: list[int], times: Times) -> None:
    """All rows of one variant."""
    variant = Variant(name, shape)
    for attention in attentions:
        variant.llava.set_attn_implementation(attention)
        for recompute in (True, False):
            train_rows(report, variant, name, attention, recompute, sizes, times)
    if variant.optimizer.state:
        state = f"{variant.state_bytes() / 2**20:.2f} MiB"
        report.add("optimizer state", name, "AdamW moments, fp32", "", "", state)


def train_rows(
    report: Report, variant: Variant, name: str, attention: str, recompute: bool, sizes: list[int], times: Times
) -> None:
    """One row per batch size, with or without activation checkpointing."""
    if recompute:
        variant.llava.gradient_checkpointing_enable({"use_reentrant": False})
    else:
        variant.llava.gradient_checkpointing_disable()
    setting = f"{attention}, checkpointing {'on' if recompute else 'off'}"
    for size in sizes:
        before = times.get(("peft", setting, size))

        def cells(seconds: float, size: int = size, before: float | None = before) -> list[str]:
            return [*step_rates(report, variant, size, recompute, seconds), over(seconds, before, "peft")]

        seconds = report.measure("training step", name, setting, size, partial(variant.step, size), cells)
        times[name, setting, size] = seconds


def step_rates(report: Report, variant: Variant, size: int, recompute: bool, seconds: float) -> list[str]:
    """tokens/s, MFU and HFU of one step."""
    shape = variant.shape
    positions = build_batch(shape, 1, "right")["input_ids"].shape[1]  # the longest sample, to which all are padded
    labelled = len(build_batch(shape, size, "right")["targets"]) if variant.routed is not None else None
    useful, again = flops.step(shape, positions, labelled)
    executed = useful + again * recompute
    return [f"{size * positions / seconds:,.0f} tokens/s",
            report.share(size * useful, seconds), report.share(size * executed, seconds)]  # fmt: skip


# ---- answers -----------------------------------------------------------------------------------------------------
def answers(report: Report, shape: Shape, sizes: list[int]) -> dict[str, float]:
    """All rows on answering, one model in memory at a time. Returns the best answers per second of each variant."""
    times: Times = {}
    for name, rows in (("base", base_answers), ("hide", hide_answers), ("naive", naive_answers)):
        report.section("answers", name, partial(rows, report, shape, sizes, times))
    best: dict[str, float] = {}
    for (name, _, size), seconds in times.items():
        if seconds is not None:
            best[name] = max(best.get(name, 0.0), size / seconds)
    return best


def base_answers(report: Report, shape: Shape, sizes: list[int], times: Times) -> None:
    llava = build_llava(shape)
    for size in sizes:
        answer_row(report, shape, "base", size, partial(base_call, llava, shape, size), "", times)


def hide_answers(report: Report, shape: Shape, sizes: list[int], times: Times) -> None:
    routed = build_hide(shape, training=False).eval().requires_grad_(False)
    stages(report, routed)
    for size in sizes:
        answer_row(report, shape, "hide", size, partial(routed_call, routed, shape, size), "base", times)


def naive_answers(report: Report, shape: Shape, sizes: list[int], times: Times) -> None:
    routed = naive(shape, initialise=False).eval().requires_grad_(False)
    answer_row(report, shape, "naive", 1, partial(routed_call, routed, shape, 1), "hide", times)


def answer_row(
    report: Report, shape: Shape, name: str, size: int, make: Callable[[], Call], baseline: str, times: Times
) -> None:
    """One row; the ratio is to `baseline` at the same batch size."""
    before = times.get((baseline, "", size))
    times[name, "", size] = report.measure("answers", name, shape.attention, size, make, lambda seconds: [
        f"{size / seconds:.2f} answers/s", "", "", over(seconds, before, baseline)
    ])  # fmt: skip


def stages(report: Report, routed: RoutedLlava) -> None:
    """Time to fold, unfold and swap; the model ends folded."""
    core, method = routed.core, routed.method
    names = [method.expert(t) for t in method.learned]
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            core.save(name, Path(folder) / name)

        def fold() -> None:
            method.prepare_inference()
            core.fuse()  # as `with session:` does

        def swap() -> None:
            core.unfold()
            for name in names:
                core.load(name, Path(folder) / name)
            fold()

        for label, call in (("fold", fold), ("unfold", core.unfold), ("swap", swap)):
            seconds = clocks(call, report.device)[0]
            report.add("stages", label, f"{len(names)} experts", "", f"{1000 * seconds:.1f}")


def projection(best: dict[str, float]) -> str:
    """What the best rates mean for one UCIT run."""
    parts = [f"{name} {ANSWERS / rate / 60:,.1f} minutes" for name, rate in best.items()]
    return (f"UCIT's {CELLS} cells ({ANSWERS:,} answers of ~10 tokens), generation alone, at the best batch measured: "
            f"{', '.join(parts)}.")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="toy size on a CPU")
    parser.add_argument("--minutes", type=float, default=9.0, help="the time to divide among the sections")
    parser.add_argument("--repeats", type=int, default=3, help="timed calls per row; the median is shown")
    args = parser.parse_args()
    if not args.small and not torch.cuda.is_available():
        raise SystemExit("perf/gpu.py: torch sees no CUDA device; use a machine with a GPU, or --small for the CPU.")
    shape = TOY if args.small else REAL
    start(1 if args.small else torch.get_num_threads())
    print(f"{shape}\n{machine(shape.device, torch.get_num_threads())}\n{shape.note}\n", flush=True)
    if args.small:
        print("Toy size on a CPU: this shows that everything runs, its times and ratios mean nothing.\n")
    report = Report(shape.device, 1 if args.small else args.repeats, 60 * args.minutes)
    try:
        best = answers(report, shape, [1, 2] if args.small else [1, 2, 4, 8, 16, 32, 64, 128])
        training(report, shape, [1] if args.small else [1, 2, 4, 8, 16, 32])
    finally:
        print(table(HEADER, report.rows), flush=True)
    print(f"\n{projection(best)}\ntotal: {time.monotonic() - report.begun:.0f} s")


if __name__ == "__main__":
    main()
