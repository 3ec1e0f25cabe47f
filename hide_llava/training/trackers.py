"""wandb, TensorBoard and trackio: each begins or goes on with one run, takes numbers, and ends. `tracking.py` uses them.

Nothing of them is imported before a run is reported to them.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from hide_llava.training.reporting import PROJECT

STEP, STAGE = "global_step", "stage"  # the two axes along which numbers are drawn


@dataclass(frozen=True)
class Tracked:
    """What a service is told of a run: its name and id there, its folder, its configuration, words to find it by."""

    name: str
    id: str
    folder: Path
    config: dict[str, Any]
    tags: list[str]


class Tracker(Protocol):
    """Made of a `Tracked`, which begins the run at the service or goes on with it."""

    def log(self, values: dict[str, Any], step: int, stage: int | None) -> None:
        """values: with their axes among them. step: of the whole sequence. stage: for numbers drawn over the stages."""

    def finish(self) -> None:
        """Send everything."""


class Wandb:
    """A run with our id. wandb's own step may not go back, as it would for a cell that is scored later, so it gets none."""

    def __init__(self, run: Tracked):
        import wandb

        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT), name=run.name, id=run.id, resume="allow", config=run.config,
            tags=run.tags, dir=os.environ.get("WANDB_DIR", str(run.folder)),
        )  # fmt: skip
        for axis, numbers in ((STEP, "train/*"), (STAGE, "matrix/*"), (STAGE, "general/*")):
            self.run.define_metric(axis)
            self.run.define_metric(numbers, step_metric=axis)

    def log(self, values: dict[str, Any], step: int, stage: int | None) -> None:
        self.run.log(values)

    def finish(self) -> None:
        self.run.finish()


class TensorBoard:
    """Files in the run folder, `tensorboard/`; going on adds one."""

    def __init__(self, run: Tracked):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            from tensorboardX import SummaryWriter
        self.writer = SummaryWriter(str(run.folder / "tensorboard"))
        text = json.dumps(run.config, indent=1, ensure_ascii=False).replace("\n", "\n    ")
        self.writer.add_text("configuration", f"    {text}")

    def log(self, values: dict[str, Any], step: int, stage: int | None) -> None:
        at = step if stage is None else stage
        for key, value in values.items():
            if isinstance(value, str):
                self.writer.add_text(key, value, at)
            elif key not in (STEP, STAGE):
                self.writer.add_scalar(key, value, at)
        self.writer.flush()

    def finish(self) -> None:
        self.writer.close()


class Trackio:
    """A run is known by its name alone, so that holds the id."""

    def __init__(self, run: Tracked):
        import trackio

        self.run = trackio.init(project=PROJECT, name=f"{run.name} {run.id}", config=run.config, resume="allow", embed=False)

    def log(self, values: dict[str, Any], step: int, stage: int | None) -> None:
        self.run.log(values, step=step)

    def finish(self) -> None:
        self.run.finish()


TRACKERS: dict[str, type[Tracker]] = {"wandb": Wandb, "tensorboard": TensorBoard, "trackio": Trackio}
