"""Interleaved timing, peak memory in a process of its own, and the printed table."""

from __future__ import annotations

import gc
import json
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import peft
import torch
import transformers

Call = Callable[[], object]


def clocks(call: Call, device: str) -> tuple[float, float]:
    """Wall and CPU seconds of one call; the collector runs before it, not in it."""
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - wall, time.process_time() - cpu


def interleave(calls: dict[str, Call], rounds: int, device: str) -> dict[str, list[tuple[float, float]]]:
    """Each round times every call once, beginning with another one each time; one round before them warms up."""
    names = list(calls)
    for name in names:
        calls[name]()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for turn in range(rounds):
        for i in range(len(names)):
            name = names[(turn + i) % len(names)]
            times[name].append(clocks(calls[name], device))
    return times


def ratios(times: list[tuple[float, float]], baseline: list[tuple[float, float]]) -> tuple[float, float]:
    """Median over rounds of this variant's time divided by the baseline's of the same round: (wall, CPU)."""
    pairs = list(zip(times, baseline))
    return median(a[0] / b[0] for a, b in pairs), median(a[1] / b[1] for a, b in pairs)


def peak_mib(call: Call, device: str) -> float:
    """Peak memory of two calls: the GPU's allocator, or the resident set of this process (interpreter and model too).

    On Linux the high-water mark is reset first, so the peak of *building* the model does not count.
    """
    if device.startswith("cuda"):
        call()
        torch.cuda.reset_peak_memory_stats()
        call()
        return torch.cuda.max_memory_allocated() / 2**20
    gc.collect()
    try:
        Path("/proc/self/clear_refs").write_text("5")
        call()
        call()
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**10
    except (OSError, StopIteration):  # not Linux: the peak since the process began; macOS counts bytes
        call()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2 ** (20 if sys.platform == "darwin" else 10)


def peak_in_process(variant: str, batch: int) -> dict[str, float]:
    """Run this script again for one variant and batch size; it prints one JSON object as its last line."""
    words = [sys.executable, *sys.argv, "--peak", variant, "--batch", str(batch)]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"measuring the memory of '{variant}' failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def start(threads: int) -> None:
    """Quiet upstream, fixed thread count."""
    torch.set_num_threads(threads)
    transformers.utils.logging.set_verbosity_error()


def machine(device: str, threads: int) -> str:
    """One line that says where the numbers come from."""
    cpu = f"{platform.machine()} CPU, {threads} thread(s)"
    name = torch.cuda.get_device_name() if device.startswith("cuda") else cpu
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, peft {peft.__version__}"
    return f"{name}; {versions}, Python {platform.python_version()}"


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table with aligned columns."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths)) + " |"

    return "\n".join([line(header), line(["-" * width for width in widths]), *map(line, rows)])
