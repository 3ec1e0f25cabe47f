"""Services that a training may be reported to (`train.report_to`): which there are, and whether they can be used here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers.integrations.integration_utils import (
    INTEGRATION_TO_CALLBACK,
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


def report_arguments(report_to: str, tracked: tuple[str, ...], run: Path, stage: str) -> dict[str, Any]:
    """What TrainingArguments take for the services that do not get the whole sequence as one run. run: its folder.

    tracked: those that do (`tracking.py`). Each stage is a run of its own at the others.
    """
    rest = [name for name in services(report_to) if name not in tracked]
    return {"report_to": rest or "none", "run_name": f"{run.name}-{stage}", "project": PROJECT}
