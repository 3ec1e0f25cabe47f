"""One command, several runs: every seed with every task order and every combination of values, then one comparison.

    hide-llava run benchmark=ucit method=hide model=llava-1.5-7b seeds=0,1,2 'task_order=[a,b,c;c,b,a]'
    hide-llava run benchmark=ucit method=hide model=llava-1.5-7b method.rank=8,16 train.epochs=1,2

Runs that differ in seed and order only are repetitions, and become one row with mean and standard deviation. Each is an
ordinary run in a folder of its own, under the name it would have alone: finished ones are skipped, unfinished ones go on,
and one that fails does not stop the others.
"""

from __future__ import annotations

import itertools
import re
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path

import torch

from hide_llava import pipeline
from hide_llava.config import RunConfig, compose
from hide_llava.distributed import is_main
from hide_llava.errors import UserError
from hide_llava.results.comparison import write_comparison
from hide_llava.several import values_of
from hide_llava.training.memory import reclaim

WHOLE = ("tasks=", "output=")  # words of which a comma is no separator


@dataclass
class Outcome:
    """What a sweep leaves: folders of finished runs, {folder: error} of the others, the page that compares."""

    finished: list[Path]
    failed: dict[Path, str]
    page: Path | None


def is_sweep(words: list[str]) -> bool:
    """Whether the overrides ask for more than one run."""
    if any(w.startswith("seeds=") for w in words) or any(len(_orders(w)) > 1 for w in words if _is_order(w)):
        return True
    return any(several(word, words) for word in words)


def _is_order(word: str) -> bool:
    return word.startswith("task_order=")


def _orders(word: str) -> list[str]:
    """`task_order=[a,b;b,a]` → `["a,b", "b,a"]`; the YAML spelling `[[a,b],[b,a]]` says the same."""
    inner = re.sub(r"\]\s*,\s*\[", ";", word.partition("=")[2]).replace("[", "").replace("]", "")
    return [part.strip() for part in inner.split(";")]


def several(word: str, words: list[str]) -> list[str]:
    """The words that one word with a list of values stands for; [] for a word that says one value."""
    plain = [other for other in words if not other.startswith("seeds=") and not _is_order(other)]
    return [] if word not in plain or word.startswith(WHOLE) else values_of(word, plain, _composes)


def _composes(words: list[str]) -> bool:
    try:
        compose(words)
    except UserError:
        return False
    return True


def expand(words: list[str]) -> list[RunConfig]:
    """The configurations of a sweep, in the order given (the last list changes fastest), each with its own run folder.

    `output=` is the folder that the runs' folders lie in.

    Raises:
        UserError: a seed that is no whole number, a repeated seed, order or value, `seed=` beside `seeds=`, or a bad
        configuration.
    """
    seeds = [word for word in words if word.startswith("seeds=")]
    orders = [word for word in words if _is_order(word)]
    output = [word.partition("=")[2] for word in words if word.startswith("output=")]
    lists = {word: several(word, words) for word in words}
    plain = [w for w in words if w not in seeds + orders and not lists[w] and not w.startswith("output=")]
    if len(seeds) > 1 or len(orders) > 1:
        raise UserError("seeds= or task_order= is given twice; write seeds=0,1,2 and task_order=[a,b;b,a] once each.")
    if seeds and any(word.startswith("seed=") for word in words):
        raise UserError("seed= and seeds= are both given; keep one of them.")
    changes = [
        *filter(None, lists.values()),
        [f"seed={seed}" for seed in _seeds(seeds[0])] if seeds else [""],
        [f"task_order=[{order}]" for order in _orders(orders[0])] if orders else [""],
    ]
    configs = [compose([*plain, *filter(None, change)]) for change in itertools.product(*changes)]
    folders = [config.run_folder() for config in configs]
    if len(set(folders)) < len(folders):
        aside = [word for word in words if word.startswith("eval.") and lists.get(word)]
        if aside:
            raise UserError(f"{aside[0]}: eval.* is of the answers and not of the run, so these would be one run; train it once, "
                            "then `hide-llava eval RUN` with each value.")  # fmt: skip
        raise UserError("The sweep names one seed, task order or value twice; name each once.")
    for config, folder in zip(configs, folders):
        config.output = str(Path(output[-1]) / folder.name if output else folder)
    return configs


def _seeds(word: str) -> list[int]:
    texts = [text.strip() for text in word.partition("=")[2].strip("[]").split(",")]
    if not all(text.isdecimal() for text in texts):
        raise UserError(f"'{word}': seeds are whole numbers separated by commas, for example seeds=0,1,2.")
    return [int(text) for text in texts]


def summary_folder(words: list[str], first: RunConfig) -> Path:
    """Where the comparison goes: `output=`, else beside the runs, under the name they share."""
    output = [word.partition("=")[2] for word in words if word.startswith("output=")]
    varied = [word.partition("=")[0].rpartition(".")[2] for word in words if several(word, words)]
    name = f"{first.benchmark.name}-{first.method['preset']}-{first.model.name}-sweep"
    return Path(output[-1] if output else Path("runs") / "-".join([name, *varied]))


def sweep(
    words: list[str], train: bool = True, evaluate: bool = True, again: bool = False, stages: pipeline.Stages = "all"
) -> Outcome:
    """Run or resume every configuration of `words`; afterwards compare those that finished.

    In a launch of several processes an error ends the launch, because one process cannot go on to the next run while
    the others still wait in this one; the same command then skips what is finished.

    Raises:
        UserError: the sweep itself is wrong (see `expand`); errors of single runs are in the outcome.
        Interrupted: stopped by a signal.
    """
    configs, finished, failed = expand(words), [], {}
    summary = summary_folder(words, configs[0])
    for number, config in enumerate(configs, 1):
        folder = config.run_folder()
        pipeline.say(f"=== {number} of {len(configs)}: {folder}")
        try:
            pipeline.run(config, train, evaluate, again=again, stages=stages)
            finished.append(folder)
        except Exception as error:
            if torch.distributed.is_initialized():
                raise
            failed[folder] = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            pipeline.say(f"failed: {failed[folder]}")
            if not isinstance(error, UserError):
                traceback.print_exc(file=sys.stderr)
        reclaim()
    page = write_comparison(finished, summary) if finished and evaluate and is_main() else None
    return Outcome(finished, failed, page)
