"""Configurations of a benchmark on a folder of synthetic data."""

from pathlib import Path

from hide_llava.config import RunConfig, compose
from tests.benchmarks.synthetic import write_benchmark


def config(name: str, root: Path, *more: str, method: str = "lora") -> RunConfig:
    words = [f"benchmark={name}", "model=mini", f"method={method}", f"data_root={root}", "caption.tokenizer=python"]
    return compose([*words, *more])


def written(name: str, root: Path, *more: str, **options: str) -> RunConfig:
    made = config(name, root, *more, **options)
    write_benchmark(made, root)
    return made
