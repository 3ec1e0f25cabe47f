"""Variants of one finished run, several at once: one model is loaded, and each variant answers with it in turn.

    hide-llava eval runs/A method.temperature=0.05,0.1,0.5 method.image_weight=0,0.5,1 --stages last

Nothing is trained and no stage is copied. Each combination is a run folder under RUN/variants/ (`training/variant.py`) that is
left out where it is finished, and goes on where it is not. Afterwards all are compared, and drawn against what was varied.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hide_llava.config import RunConfig, as_begun, from_yaml
from hide_llava.distributed import is_main
from hide_llava.errors import UserError
from hide_llava.pipeline import Pipeline, Stages, say
from hide_llava.preflight import preflight
from hide_llava.several import values_of
from hide_llava.training.engines import start_processes
from hide_llava.training.run import Run
from hide_llava.training.run_folder import RunFolder
from hide_llava.training.variant import variant_of

Options = dict[str, Any]  # of a method, by name


def lists(folder: Path, words: list[str]) -> dict[str, list[str]]:
    """The words that name several values, with the words of one value that each stands for.

    Raises:
        UserError: one value is named twice.
    """

    def composes(some: list[str]) -> bool:
        try:
            from_yaml(folder / "config.yaml", some)
        except UserError:
            return False
        return True

    options = [word for word in words if word.startswith("method.")]
    found = {word: parts for word in options if (parts := values_of(word, words, composes))}
    for word, parts in found.items():
        if len(set(parts)) < len(parts):
            raise UserError(f"'{word}': names one value twice; name each once.")
    return found


def combinations(folder: Path, words: list[str]) -> tuple[list[str], list[RunConfig]]:
    """(options that are varied, configuration of every combination), the last list changing fastest. Nothing is written."""
    varied = lists(folder, words)
    if not varied:
        return [], []
    plain = [word for word in words if word not in varied]
    keys = [word.partition("=")[0].removeprefix("method.") for word in varied]
    configs = [from_yaml(folder / "config.yaml", [*plain, *change]) for change in itertools.product(*varied.values())]
    return keys, configs


def of_options(folder: Path, options: list[Options]) -> list[RunConfig]:
    """The run's own configuration with each of these options. Nothing is written.

    Raises:
        UserError: an option that the method does not have, or a value that it refuses.
    """
    stored = RunFolder(folder).config
    return [_checked(stored, change) for change in options]


def _checked(stored: RunConfig, options: Options) -> RunConfig:
    from hide_llava.methods.registry import method_config

    config = stored.model_copy(deep=True)
    config.method = {**config.method, **options}
    config.method |= method_config(config.method).model_dump()
    return config


def evaluate(
    folder: Path, configs: list[RunConfig], stages: Stages = "all", again: bool = False,
    done: Callable[[Path], None] = lambda path: None,
) -> list[Path]:  # fmt: skip
    """Evaluate every configuration as a variant of the run in `folder`; returns their run folders, in order.

    stages: after which they are asked. again: of `pipeline.run`. done: called with each folder that is complete.

    Raises:
        UserError: an option that decides what is trained, a stage that is not complete, or answers of other settings.
        Interrupted: stopped by a signal; the same call goes on.
    """
    runs = [_variant(folder, config) for config in configs]
    before: Pipeline | None = None
    kept = total = 0
    for number, run in enumerate(runs, 1):
        if before is None:
            start_processes(run.train, run.model.device)
            for warning in preflight(run, train=False):
                say(f"warning: {warning}")
        say(f"=== {number} of {len(runs)}: {run.folder.path}")
        with run.folder.lock_main():
            before = Pipeline(run, existing=True, again=again, after=before)
            before.evaluate_stages(stages)
        kept, total = kept + before.scored, total + before.cells
        done(run.folder.path)
    if kept:
        say(f"{kept} of {total} cells were scored already, and are kept")
    return [run.folder.path for run in runs]


def _variant(folder: Path, config: RunConfig) -> Run:
    config, _ = as_begun(variant_of(folder, config))
    return Run(config)


def compared(folder: Path, keys: list[str], paths: list[Path]) -> Path | None:
    """Compare the run and its variants, and draw them against what was varied; the page, None but in the main process."""
    if not is_main():
        return None
    from hide_llava.results.comparison import write_comparison
    from hide_llava.results.variants import write_variants

    run = RunFolder(folder).trained_in.resolve()
    place = run / "results" / f"variants-{'+'.join(keys)}"
    write_variants(paths, keys, place)
    return write_comparison(list(dict.fromkeys([run, *paths])), place)
