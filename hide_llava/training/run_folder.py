"""The run folder: where everything of a run lies, its manifest, and who may write into it."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hide_llava.config import from_yaml
from hide_llava.distributed import is_main
from hide_llava.errors import UserError
from hide_llava.methods.base import Stage
from hide_llava.schema import RunConfig
from hide_llava.storage import read_json, write_json


class RunFolder:
    """Paths of one run, and its manifest."""

    def __init__(self, path: Path):
        self.path = path

    @property
    def trained_in(self) -> Path:
        """The run folder that holds the stages: this one, or of a variant the run that it is a variant of."""
        file = self.path / "variant.json"
        return self.path / read_json(file)["of"] if file.is_file() else self.path

    def stage(self, name: str) -> Path:
        return self.trained_in / "stages" / name

    def state(self, name: str) -> Path:
        return self.path / "state" / name

    def cell(self, stage: str, task: str) -> Path:
        return self.path / "eval" / stage / task

    @property
    def manifest(self) -> dict[str, Any]:
        return read_json(self.path / "manifest.json")

    @property
    def config(self) -> RunConfig:
        if not (self.path / "config.yaml").is_file():
            raise UserError(f"{self.path}: not a run folder (no config.yaml); give a folder made by `hide-llava run`.")
        return from_yaml(self.path / "config.yaml")

    def is_complete(self, stage: str) -> bool:
        return (self.stage(stage) / "method.json").is_file()

    def update_stage(self, name: str, **values: Any) -> None:
        manifest = self.manifest
        for entry in manifest["stages"]:
            if entry["name"] == name:
                entry.update(values)
        write_json(self.path / "manifest.json", manifest)

    def close_stage(self, name: str) -> None:
        """The last steps after a stage folder was published: its entry in the manifest, and its state is dropped."""
        entry = next(e for e in self.manifest["stages"] if e["name"] == name)
        if entry["status"] in ("pending", "training"):
            self.update_stage(name, status="complete")
        shutil.rmtree(self.state(name), ignore_errors=True)
        with contextlib.suppress(OSError):  # not there, or another stage's state is in it
            self.state(name).parent.rmdir()

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """One process per run folder; the lock dies with its owner.

        Raises:
            UserError: another process works on this run, or the folder is something else.
        """
        refuse_foreign(self.path)
        self.path.mkdir(parents=True, exist_ok=True)
        with open(self.path / ".lock", "a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UserError(
                    f"{self.path}: another process is working on this run; wait for it or stop it."
                ) from None
            yield

    def lock_main(self) -> contextlib.AbstractContextManager[None]:
        """`lock`, held by the main process for all of a launch."""
        return self.lock() if is_main() else contextlib.nullcontext()


def stage_name(stage: Stage) -> str:
    return f"{stage.index + 1:02d}-{stage.id}"


def refuse_foreign(path: Path) -> None:
    """A folder without config.yaml is only ours if nothing but the first files of a run killed at its start is there."""
    if path.is_dir() and not (path / "config.yaml").exists():
        first = ("manifest.json", "variant.json", ".lock")
        other = [p for p in path.iterdir() if p.name not in first and not (p.name[0] == "." and p.suffix == ".tmp")]
        if other:
            raise UserError(
                f"{path}: exists and is not a run folder (it holds {other[0].name}); choose another output=."
            )
    elif path.exists() and not path.is_dir():
        raise UserError(f"{path}: is a file; choose another output=.")
