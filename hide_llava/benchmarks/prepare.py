"""Make a benchmark's files available: the embedded one is written under data_root on first use."""

from __future__ import annotations

from pathlib import Path

from hide_llava.benchmarks.mini.generate import generate
from hide_llava.distributed import is_main
from hide_llava.errors import UserError
from hide_llava.schema import BenchmarkConfig


def prepare(benchmark: BenchmarkConfig, data: Path) -> None:
    """Write `mini-ucit` into the data folder if that is the benchmark and it is not there yet."""
    if not benchmark.generated or not is_main():
        return
    if benchmark.name != "mini-ucit":
        raise UserError(f"benchmark '{benchmark.name}' says generated: true, but only mini-ucit is embedded.")
    generate(data)
