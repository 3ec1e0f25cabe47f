"""The learning rate and the strengths of a method, chosen on the validation split: as many trials for every method.

Which options are strengths, the method says (`Strength`, `Searched` in `settings.py`); every method also has its learning
rate. A trial is a whole run with seed 0, judged by Last on the validation split; the test split is never read.

    trial 1        the usual values: the preset's and the command line's, as a rule the published ones
    trials 2, 3    the learning rate, divided and multiplied by 3
    the others     divided among the strengths, in their order; what does not come out even goes to the first ones, and all
                   of it to the learning rate where there are no strengths

One option is varied at a time; the others are as in the best trial so far. What is tried of an option is first its grid: the
usual value divided and multiplied by a step (3 for a learning rate, 10 for a strength), or candidates of its own where it has
a limit other than 0. Then, if the best value is the lowest or the highest one tried, the next is one step beyond it, else
halfway to the better of its two neighbours, on the logarithmic scale. Between candidates of its own it is always halfway,
arithmetically. A trial that differs from an earlier one in nothing but options that act at inference takes over what that one
trained.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from hide_llava import pipeline
from hide_llava.config import compose
from hide_llava.errors import Diverged, UserError
from hide_llava.methods.registry import method_class, method_config
from hide_llava.results.aggregates import last
from hide_llava.results.run_reader import read_run
from hide_llava.results.searches import Search, Trial, Values, best, read_search, words_of, write_search
from hide_llava.settings import LIMITS, MethodConfig, inference_options, learning_rates, strengths
from hide_llava.training.memory import reclaim
from hide_llava.training.run import Run

TRIALS = 6
RATES = 3  # of the trials go to the learning rate first, if there are as many
RATE_STEP = 3.0
JUDGED = ("eval.split=val", "seed=0")
OURS = ("eval.split=", "seed=", "seeds=", "output=")  # what a search says itself


@dataclass(frozen=True)
class Axis:
    """One thing that a search varies. key: of the configuration. values: candidates of its own; none: steps from `usual`."""

    key: str
    usual: float | None
    step: float
    values: tuple[float, ...] = ()

    @property
    def grid(self) -> tuple[float, ...]:
        """What is tried first beside the usual value, in this order."""
        return self.values or (rounded(self.usual / self.step), rounded(self.usual * self.step))


def rounded(value: float) -> float:
    """To four digits: no search is finer, and names of folders and tables stay short."""
    return float(f"{value:.4g}")


def axes_of(words: list[str]) -> list[Axis]:
    """What is varied of the method that a configuration names: its learning rate first, then its strengths; none: no training.

    Raises:
        UserError: a bad configuration, or a strength of which the grid cannot be made or is refused by the method.
    """
    config = compose(words)
    cls, options = method_class(config.method["name"]), config.method
    if not cls.trains:
        return []
    own = [name for name in learning_rates(cls.Config) if options[name] is not None]
    rates = [(f"method.{name}", options[name]) for name in own] or [("train.learning_rate", config.train.learning_rate)]
    axes = [Axis(key, value, RATE_STEP) for key, value in rates[:1]]
    for name, mark in strengths(cls.Config).items():
        axis = Axis(f"method.{name}", options[name], mark.step, mark.values)
        _check(axis, cls.Config, name)
        for value in axis.grid:
            method_config({**options, name: value})
        axes.append(axis)
    return axes


def _check(axis: Axis, config: type[MethodConfig], name: str) -> None:
    """Raises UserError for a strength of which no grid can be made."""
    if axis.values:
        if len({*axis.values, axis.usual} - {None}) < 2:
            raise UserError(f"{axis.key}: a search needs two candidates, has {axis.values}; name more in its Searched(…).")
        return
    limits = {limit: getattr(one, limit) for one in config.model_fields[name].metadata for limit in LIMITS if hasattr(one, limit)}
    if any(limit in limits for limit in LIMITS[2:]) or any(limits.get(limit, 0) > 0 for limit in LIMITS[:2]):
        raise UserError(f"{axis.key}: a search cannot multiply a strength that has a limit other than 0; name its candidates: "
                        "Annotated[float, Searched((0.25, 0.75, 0.9))].")  # fmt: skip
    if not axis.usual or axis.usual < 0 or axis.step <= 1:
        shown = "null" if axis.usual is None else axis.usual
        raise UserError(f"{axis.key}={shown}: a search divides and multiplies it by {axis.step:g}; give it a value above 0.")


def schedule(axes: list[Axis], trials: int) -> list[Axis]:
    """What each trial after the first varies."""
    rate, *others = axes
    grid = min(RATES, trials) - 1
    rest = trials - 1 - grid
    if not others:
        return [rate] * (grid + rest)
    share, more = divmod(rest, len(others))
    return [rate] * grid + [axis for i, axis in enumerate(others) for _ in range(share + (i < more))]


def following(axes: list[Axis], trials: int, tried: list[Trial]) -> Values | None:
    """The values of the next trial after those in `tried`; None: there is none. The same trials are followed by the same."""
    if not axes or len(tried) >= trials:
        return None
    if not tried:
        return {axis.key: axis.usual for axis in axes}
    axis = schedule(axes, trials)[len(tried) - 1]
    base = (best(tried) or tried[0]).values
    line = {t.values[axis.key]: t.last for t in tried if {**t.values, axis.key: None} == {**base, axis.key: None}}
    return {**base, axis.key: next_value(axis, line)}


def begins(axes: list[Axis], trials: int, found: Search) -> bool:
    """Whether what was tried already is how a search of so many trials begins, and does not go beyond it."""
    if not axes:
        return not found.tried
    ours = [following(axes, trials, found.tried[:i]) for i in range(len(found.tried))]
    return found.trials <= trials and ours == [trial.values for trial in found.tried]


def next_value(axis: Axis, scores: dict[float | None, float | None]) -> float:
    """What is tried next on an axis. scores: value → Last of the trials that differ in it alone; None: it diverged."""
    for value in axis.grid:
        if value not in scores:
            return value
    ranked = {v: -math.inf if score is None else score for v, score in scores.items() if v is not None}
    line = sorted(ranked)
    place = max(range(len(line)), key=lambda i: ranked[line[i]])
    at, around = line[place], [line[i] for i in (place - 1, place + 1) if 0 <= i < len(line)]
    if not axis.values and len(around) == 1:
        return rounded(at / axis.step if place == 0 else at * axis.step)
    toward = max(around, key=lambda v: ranked[v])
    return rounded((at + toward) / 2 if axis.values else math.sqrt(at * toward))


def search(words: list[str], folder: Path, trials: int = TRIALS) -> Search:
    """Search the method that a configuration names; FOLDER/PRESET.json says what was tried and chosen.

    Called again, it goes on: a trial that is in the file is not run again, one that was stopped is resumed in its run folder,
    FOLDER/PRESET/NAME. With more trials than the file has, those in it are the first ones. A training that diverges is a trial
    without a score.

    Raises:
        UserError: a bad configuration, also where only a value of the grid is refused (before anything runs); fewer than one
            trial; a file of a search with other words or more trials; every trial diverged; whatever stops a run.
        Interrupted: stopped by a signal.
    """
    if own := [word for word in words if word.startswith(OURS)]:
        raise UserError(f"'{own[0]}': a search sets {', '.join(JUDGED)} and its run folders itself; leave the word out.")
    if trials < 1:
        raise UserError(f"{trials} trials: a search needs at least one.")
    fixed = [*words, *JUDGED]
    axes, options = axes_of(fixed), compose(fixed).method
    method, at_inference = options["preset"], inference_options(method_class(options["name"]).Config)
    file = folder / f"{method}.json"
    found = read_search(file) if file.is_file() else Search(method, trials if axes else 0, fixed)
    if found.words != fixed or not begins(axes, trials, found):
        raise UserError(f"{file}: is of a search with {found.trials} trials of `{' '.join(found.words)}`; delete it and "
                        f"{folder / method}, or search in another folder.")  # fmt: skip
    if axes and trials > found.trials:
        found.trials, found.chosen = trials, None
    while (values := following(axes, found.trials, found.tried)) is not None:
        pipeline.say(f"=== {method}, trial {len(found.tried) + 1} of {found.trials}: {' '.join(words_of(values))}")
        same = trained_alike(values, found.tried, at_inference)
        found.tried.append(run_trial(fixed, values, folder / method, same))
        write_search(file, found)
    top = best(found.tried)
    if axes and top is None:
        raise UserError(f"{file}: every trial of {method} diverged; lower {axes[0].key} and search in another folder.")
    found.chosen = top.values if top else {}
    write_search(file, found)
    return found


def trained_alike(values: Values, tried: list[Trial], at_inference: frozenset[str]) -> Values | None:
    """The values of an earlier trial that was trained as one with `values` would be. at_inference: options of the method."""

    def training(values: Values) -> Values:
        return {key: value for key, value in values.items() if key.removeprefix("method.") not in at_inference}

    return next((t.values for t in tried if t.last is not None and training(t.values) == training(values)), None)


def place_of(values: Values, folder: Path) -> Path:
    """The run folder of a trial."""
    return folder / "-".join(f"{key.rpartition('.')[2]}-{'null' if v is None else f'{v:g}'}" for key, v in values.items())


def run_trial(words: list[str], values: Values, folder: Path, same: Values | None = None) -> Trial:
    """Run one trial, or what is left of it, in a folder that is named after its values.

    same: of an earlier trial whose training is this one's.

    Raises:
        UserError: whatever stops a run but divergence, or a benchmark whose runs have no Last.
    """
    place = place_of(values, folder)
    config = compose([*words, *words_of(values), f"output={place}"])
    try:
        if same is not None:
            pipeline.reuse_stages(place_of(same, folder), Run(config))
        pipeline.run(config, report=False, stages="last")
    except (Diverged, torch.linalg.LinAlgError) as error:  # torch refuses to decompose what is not finite
        pipeline.say(f"diverged: {error}")
        return Trial(values, None, str(error))
    finally:
        reclaim()
    score = last(read_run(place).matrix)
    if score is None:
        raise UserError(f"{place}: has no Last, by which a search chooses; hide-llava report {place} says why.")
    pipeline.say(f"Last {score:.2f} on the validation split")
    return Trial(values, score)
