"""Variants of one finished run, several at once: one model is loaded, and each variant answers with it in turn.

    hide-llava eval runs/A method.temperature=0.05,0.1,0.5 method.image_weight=0,0.5,1 --stages last

Nothing is trained and no stage is copied. Each combination is a run folder under RUN/variants/ (`training/variant.py`) that is
left out where it is finished, and goes on where it is not. Afterwards all are compared, and drawn against what was varied.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from hide_llava.backbones.loading import device_of, local
from hide_llava.config import RunConfig, as_begun, from_yaml
from hide_llava.distributed import is_main
from hide_llava.errors import UserError
from hide_llava.parallel import processes, share
from hide_llava.pipeline import Pipeline, Stages, say
from hide_llava.preflight import preflight
from hide_llava.several import values_of
from hide_llava.training.engines import start_processes
from hide_llava.training.run import Run
from hide_llava.training.run_folder import RunFolder, stage_name
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


def evaluate(folder: Path, configs: list[RunConfig], stages: Stages = "all", again: bool = False) -> list[Path]:
    """Evaluate every configuration as a variant of the run in `folder`; returns their run folders, in order.

    On a CPU several processes take a part of those that wait, each with the model. stages: after which they are asked. again:
    of `pipeline.run`.

    Raises:
        UserError: an option that decides what is trained, a stage that is not complete, or answers of other settings.
        Interrupted: stopped by a signal; the same call goes on.
    """
    own = [as_begun(variant_of(folder, config))[0] for config in configs]
    runs = [Run(config) for config in own]
    start_processes(runs[0].train, runs[0].model.device)
    for warning in preflight(runs[0], train=False):
        say(f"warning: {warning}")
    pieces = list(enumerate(own, 1))
    waiting = [piece for piece, run in zip(pieces, runs) if again or _waits(run, stages)]
    count = processes(device_of(runs[0].model), _bytes(runs[0]), len(waiting))
    if count > 1:
        say(f"{len(waiting)} of {len(runs)} variants are to be answered, by {count} processes")
        share(partial(_answer, stages=stages, again=again, total=len(runs)), waiting, count, say)
        again = False  # what was answered with other settings has been answered anew
    _answer(pieces, lambda text: None, stages, again, len(runs))
    return [run.folder.path for run in runs]


def _answer(
    pieces: list[tuple[int, RunConfig]], told: Callable[[str], None], stages: Stages, again: bool, total: int
) -> None:
    """Evaluate variants, each under its number of `total`, with one model. told: gets a line for each that was waiting."""
    before: Pipeline | None = None
    kept = cells = 0
    for number, config in pieces:
        run = Run(config)
        waited, name = _waits(run, stages), f"{number} of {total}: {run.folder.path}"
        if waited:
            say(f"=== {name}")
        with run.folder.lock_main():
            before = Pipeline(run, existing=True, again=again, after=before)
            before.evaluate_stages(stages)
        kept, cells = kept + before.scored, cells + before.cells
        if waited:
            told(f"answered: {name}")
    if kept:
        say(f"{kept} of {cells} cells were scored already, and are kept")


def _waits(run: Run, stages: Stages) -> bool:
    """Whether a cell of the variant is without a score."""
    wanted = run.stages[-1:] if stages == "last" else run.stages
    cells = (run.folder.cell(stage_name(stage), task.id) for stage in wanted for task in run.asked_after(stage))
    return not all((cell / "score.json").is_file() for cell in cells)


def _bytes(run: Run) -> int:
    """Of the model's files; 0 where it is not on this machine yet."""
    folder = local(run.model.path, run.model_root)
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) if folder else 0


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
