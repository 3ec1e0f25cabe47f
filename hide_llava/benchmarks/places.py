"""Where the files of a benchmark lie."""

from __future__ import annotations

from pathlib import Path

from hide_llava.config import RunConfig, TaskConfig
from hide_llava.errors import UserError


def train_file(config: RunConfig, task: int) -> Path:
    entry = config.benchmark.tasks[task]
    if entry.train is None:
        raise UserError(f"task '{entry.id}' of benchmark '{config.benchmark.name}' has no training file.")
    return config.data_folder() / config.benchmark.instructions / entry.train


def image_root(config: RunConfig, task: TaskConfig | None = None, test: bool = False) -> Path:
    """The folder that `image` is relative to in a task's training file, or (`test`) in its question file."""
    own = (task.test_images if test and task.test_images is not None else task.images) if task else None
    return config.data_folder() / (config.benchmark.images if own is None else own)


def table_root(config: RunConfig) -> Path:
    """The folder that `image` is relative to in the tables of `task_records`: one for all tasks, so that they mix."""
    apart = any(task.images is not None for task in config.benchmark.tasks)
    return config.data_folder() if apart else image_root(config)
