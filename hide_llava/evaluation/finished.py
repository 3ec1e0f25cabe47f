"""A run that was trained, as programs see it: `hide_llava.Run`."""

from __future__ import annotations

from pathlib import Path

from hide_llava.evaluation.model import Model, checked_stage, trained_stages
from hide_llava.training.run import Run
from hide_llava.training.run_folder import RunFolder


class FinishedRun:
    """The run in a folder, to be asked: `hide_llava.Run`.

    run: all that is known of it.

    Raises:
        UserError: it is no run folder, or its configuration is damaged.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.run = Run.at(self.folder)

    @property
    def trained(self) -> list[int]:
        """Numbers of the stages that can be asked; 1 is after the first task."""
        return trained_stages(self.run)

    def model(self, stage: int | None = None, dtype: str | None = None, device: str | None = None) -> Model:
        """The model as it was after a stage; None: after the last one that is trained. dtype, device: None takes the run's."""
        number = checked_stage(self.run, stage)
        config = RunFolder(self.folder).config
        config.model.dtype, config.model.device = dtype or config.model.dtype, device or config.model.device
        return Model(Run(config, self.folder), number)
