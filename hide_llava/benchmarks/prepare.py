"""Make a benchmark's files available: an embedded one is written under data_root on first use."""

from __future__ import annotations

from pathlib import Path

from hide_llava.benchmarks.mini.generate import SUITES, generate
from hide_llava.distributed import is_main
from hide_llava.errors import UserError
from hide_llava.schema import BenchmarkConfig


def prepare(benchmark: BenchmarkConfig, data: Path) -> None:
    """Write an embedded benchmark into the data folder if it is not there yet.

    Raises UserError for another benchmark that says it is generated.
    """
    if not benchmark.generated or not is_main():
        return
    if benchmark.name not in SUITES:
        raise UserError(f"benchmark '{benchmark.name}' says generated: true, but only {' and '.join(SUITES)} are embedded.")
    generate(data, name=benchmark.name)
