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

from hide_llava.errors import UserError, nearest

PROJECT = "hide-llava"  # under which wandb and trackio list the runs; wandb: unless WANDB_PROJECT says another


def services(report_to: str) -> list[str]:
    """The services that `train.report_to` names: none, all (that are installed), or names with commas between them."""
    names = [name.strip() for name in report_to.split(",") if name.strip()]
    return get_available_reporting_integrations() if names == ["all"] else [n for n in names if n != "none"]


def check_reporting(report_to: str) -> None:
    """Said before anything is loaded; transformers would find out when the first stage begins.

    Raises:
        UserError: a service that is not known, or whose package is not installed.
    """
    known, there = sorted(INTEGRATION_TO_CALLBACK), get_available_reporting_integrations()
    for name in services(report_to):
        if name not in known:
            raise UserError(f"train.report_to={report_to}: {nearest(name, ['none', 'all', *known])}")
        if name not in there:
            raise UserError(
                f"train.report_to={report_to}: {name} is not installed; `pip install {name.replace('_', '-')}`, or "
                "train.report_to=none (each stage's trainer_log.jsonl holds the same numbers)."
            )


def report_arguments(report_to: str, run: Path, stage: str) -> dict[str, Any]:
    """What TrainingArguments take: the services, and the name of the run and stage there. run: its folder."""
    return {"report_to": services(report_to) or "none", "run_name": f"{run.name}-{stage}", "project": PROJECT}


def begin_reporting(run: Path, stage: str, callbacks: list[Any]) -> None:
    """Before a stage trains: wandb groups the stages of a run; TensorBoard's files stay in the run folder."""
    os.environ.setdefault("WANDB_PROJECT", PROJECT)
    os.environ["WANDB_RUN_GROUP"] = run.name
    for callback in callbacks:
        if isinstance(callback, TensorBoardCallback):
            callback.logging_dir = str(Path(callback.logging_dir or run / "tensorboard") / stage)


def end_reporting(report_to: str) -> None:
    """After a stage: the next one is a wandb run of its own, because its steps count from 1 again."""
    if "wandb" in services(report_to):
        import wandb

        if wandb.run is not None:
            wandb.finish()
