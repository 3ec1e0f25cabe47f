"""Services that a training is reported to (`train.report_to`), through transformers' own callbacks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from transformers.integrations.integration_utils import (
    INTEGRATION_TO_CALLBACK,
    TensorBoardCallback,
    get_available_reporting_integrations,
)

from hide_llava.config import RunConfig
from hide_llava.errors import UserError, nearest

PROJECT = "hide-llava"  # under which wandb and trackio list the runs; wandb: unless WANDB_PROJECT says another


def services(config: RunConfig) -> list[str]:
    """The services of `train.report_to`: none, all (that are installed), or names with commas between them."""
    names = [name.strip() for name in config.train.report_to.split(",") if name.strip()]
    return get_available_reporting_integrations() if names == ["all"] else [n for n in names if n != "none"]


def check_reporting(config: RunConfig) -> None:
    """Said before anything is loaded; transformers would find out when the first stage begins.

    Raises:
        UserError: a service that is not known, or whose package is not installed.
    """
    known, there = sorted(INTEGRATION_TO_CALLBACK), get_available_reporting_integrations()
    for name in services(config):
        if name not in known:
            raise UserError(f"train.report_to={config.train.report_to}: {nearest(name, ['none', 'all', *known])}")
        if name not in there:
            raise UserError(
                f"train.report_to={config.train.report_to}: {name} is not installed; `pip install {name.replace('_', '-')}`, or "
                "train.report_to=none (each stage's trainer_log.jsonl holds the same numbers)."
            )


def report_arguments(config: RunConfig, stage: str) -> dict[str, Any]:
    """What TrainingArguments take: the services, and the name of the run and stage there."""
    return {"report_to": services(config) or "none", "run_name": f"{config.run_folder().name}-{stage}", "project": PROJECT}


def begin_reporting(config: RunConfig, stage: str, callbacks: list[Any]) -> None:
    """Before a stage trains: wandb groups the stages of a run; TensorBoard's files stay in the run folder."""
    os.environ.setdefault("WANDB_PROJECT", PROJECT)
    os.environ["WANDB_RUN_GROUP"] = config.run_folder().name
    for callback in callbacks:
        if isinstance(callback, TensorBoardCallback):
            callback.logging_dir = str(Path(callback.logging_dir or config.run_folder() / "tensorboard") / stage)


def end_reporting(config: RunConfig) -> None:
    """After a stage: the next one is a wandb run of its own, because its steps count from 1 again."""
    if "wandb" in services(config):
        import wandb

        if wandb.run is not None:
            wandb.finish()
