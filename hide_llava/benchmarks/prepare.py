"""Make a benchmark's files available: the embedded one is written under data_root on first use."""

from __future__ import annotations

from hide_llava.benchmarks.mini.generate import generate
from hide_llava.config import RunConfig
from hide_llava.distributed import is_main
from hide_llava.errors import UserError


def prepare(config: RunConfig) -> None:
    """Write `mini-ucit` if the configured benchmark is generated and not there yet."""
    if not config.benchmark.generated or not is_main():
        return
    if config.benchmark.name != "mini-ucit":
        raise UserError(f"benchmark '{config.benchmark.name}' says generated: true, but only mini-ucit is embedded.")
    generate(config.data_folder())
