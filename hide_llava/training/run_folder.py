"""The run folder: layout, manifest, and the rule that a run has one configuration (DESIGN §4)."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import fcntl
import importlib.metadata
import platform
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from hide_llava.benchmarks.selection import partial_label
from hide_llava.config import RunConfig, TaskConfig, flatten, from_yaml, to_yaml
from hide_llava.errors import UserError
from hide_llava.methods.base import Stage, Task
from hide_llava.methods.registry import method_class, plugins
from hide_llava.storage import read_json, write_json, write_text
from hide_llava.training.batching import task_recipe

# keys that may differ between two calls of one run: they cannot change a result
FREE = ("output", "data_root", "model_root", "eval.batch_size", "eval.num_workers", "train.num_workers",
        "train.save_steps", "train.logging_steps", "train.report_to", "train.gradient_checkpointing", "model.device",
        "method.file")  # fmt: skip
# keys that say most about why two configurations differ: told first
FIRST = ("method.name", "method.preset", "benchmark.name", "tasks", "task_order")
PACKAGES = ("torch", "transformers", "peft", "accelerate", "tokenizers", "datasets", "numpy", "pillow")


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
        _refuse_foreign(self.path)
        self.path.mkdir(parents=True, exist_ok=True)
        with open(self.path / ".lock", "a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UserError(
                    f"{self.path}: another process is working on this run; wait for it or stop it."
                ) from None
            yield


def stage_name(stage: Stage) -> str:
    return f"{stage.index + 1:02d}-{stage.id}"


def method_tasks(config: RunConfig) -> list[Task]:
    """The tasks as a method sees them: those that are trained, in order."""
    ids = [t.id for t in config.benchmark.tasks if t.train is not None]
    return [Task(i, name, len(ids)) for i, name in enumerate(ids)]


def is_oracle(config: RunConfig) -> bool:
    """Whether the method is told the task id at inference."""
    return method_class(config.method["name"]).is_oracle(config.method)


def answerable(config: RunConfig, tasks: list[TaskConfig]) -> list[TaskConfig]:
    """The tasks that the method can be asked: an oracle has no task id for one that was never trained."""
    return [t for t in tasks if t.train is not None or t.instruction_of is not None or not is_oracle(config)]


def stages_of(config: RunConfig) -> list[Stage]:
    """The stages the configured method makes of the trained tasks; tasks never trained are asked after the last one.

    Raises:
        UserError: the method trains, but no task has a training file.
    """
    cls, tasks = method_class(config.method["name"]), config.benchmark.tasks
    trained = [t for t in tasks if t.train is not None] if cls.trains else tasks
    if not trained:
        raise UserError(
            f"no task of benchmark '{config.benchmark.name}' has a training file; only method=zero_shot fits."
        )
    *before, last = cls.stages([(t.id, t.title) for t in trained])
    unseen = tuple(i for i in range(len(trained), len(tasks)) if tasks[i] in answerable(config, tasks))
    return [*before, dataclasses.replace(last, evaluate=last.evaluate + unseen)]


def general_tasks(config: RunConfig, stage: Stage | None = None) -> list[TaskConfig]:
    """Tasks of general ability that are asked after `stage`; None: after any stage.

    An oracle answers one as the task whose id it borrows, so it is not asked before that task is learned.
    """
    tasks = answerable(config, config.benchmark.general) if config.eval.general else []
    if stage is None or not is_oracle(config):
        return tasks
    learned = {config.benchmark.tasks[i].id for s in stages_of(config)[: stage.index + 1] for i in s.train}
    return [task for task in tasks if task.instruction_of in learned]


def open_run(config: RunConfig, extra: dict[str, Any] | None = None, existing: bool = False) -> RunFolder:
    """Create the run folder, or open it if it holds a run of this very configuration.

    `existing`: the configuration is the run's own with eval.* changed, which every cell checks for itself.

    Raises:
        UserError: the folder holds another run; the differing keys are listed.
    """
    run = RunFolder(config.run_folder())
    _refuse_foreign(run.path)
    begun = any(p.is_file() for name in ("stages", "state", "eval") for p in (run.path / name).rglob("*"))
    if begun and (run.path / "config.yaml").exists():
        _refuse_other(run, config, existing)
        if (run.path / "manifest.json").exists():
            stored = run.config
            if stored.train.on_bad_sample != config.train.on_bad_sample:  # only error → skip gets here
                stored.train.on_bad_sample = config.train.on_bad_sample
                write_text(run.path / "config.yaml", to_yaml(stored))
            return run
    run.path.mkdir(parents=True, exist_ok=True)
    manifest = {**new_manifest(config), **(extra or {})}
    if run.trained_in != run.path:
        trained = {s["name"]: s for s in RunFolder(run.trained_in).manifest["stages"]}
        for stage in manifest["stages"]:
            here = ("eval_tasks", "general_tasks", "eval_seconds", "folding")
            stage |= {k: v for k, v in trained.get(stage["name"], {}).items() if k not in here}
        manifest["variant"] = read_json(run.path / "variant.json")
    write_json(run.path / "manifest.json", manifest)
    write_text(run.path / "config.yaml", to_yaml(config))
    return run


def open_variant(folder: Path, config: RunConfig) -> RunConfig:
    """Make `config` a variant of the run in `folder`: other inference options on the same stages.

    It is a run folder under `variants/` of that run, named by the options, without stages of its own. A configuration that
    differs in none of them stays that of the run itself.

    Raises:
        UserError: an option that decides what is trained.
    """
    run = RunFolder(RunFolder(folder).trained_in.resolve())
    options = method_class(config.method["name"]).inference_options
    # a method's own file may have moved: its content is compared when it is read
    changed = {k: v for k, v in config.method.items() if v != run.config.method.get(k) and k != "file"}
    for key in changed.keys() - options:
        may = f"; of a finished run these can be changed: {', '.join(sorted(options))}" if options else ""
        raise UserError(f"method.{key} decides what is trained, so it needs a run of its own{may}.")
    config.output = str(run.path)
    if not changed:
        return config
    name = "+".join(f"{k}={_short(v)}" for k, v in sorted(changed.items()))
    variant = run.path / "variants" / name
    config.output = str(variant)
    if not (variant / "variant.json").is_file():
        write_json(variant / "variant.json", {"of": "../..", "changes": changed})
    return config


def _short(value: Any) -> str:
    return "[" + ",".join(map(str, value)) + "]" if isinstance(value, list) else str(value).replace("/", "_")


def _refuse_foreign(path: Path) -> None:
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


def _refuse_other(run: RunFolder, config: RunConfig, existing: bool) -> None:
    old, new = (flatten(c.model_dump()) for c in (run.config, config))
    free = tuple(k for k in new if k in FREE or (existing and k.startswith("eval.")))
    if _skips_now(old, new):
        free = (*free, "train.on_bad_sample")
    said = {k: tuple(repr(c[k]) if k in c else "absent" for c in (old, new)) for k in old.keys() | new.keys()}
    differing = sorted(
        (k for k, (there, now) in said.items() if there != now and k not in free),
        key=lambda k: (FIRST.index(k) if k in FIRST else len(FIRST), k.startswith("benchmark.tasks."), k),
    )
    if differing:
        listed = "; ".join(f"{k}: {said[k][0]} there, {said[k][1]} now" for k in differing[:8])
        more = f"; and {len(differing) - 8} more" if len(differing) > 8 else ""
        raise UserError(
            f"{run.path}: holds a run with another configuration ({listed}{more}). Choose another output=, delete the "
            "folder, or give the old values back."
        )


def _skips_now(old: dict[str, Any], new: dict[str, Any]) -> bool:
    """From error to skip: the stages so far had no bad record, so skipping could not have changed them."""
    return (old["train.on_bad_sample"], new["train.on_bad_sample"]) == ("error", "skip")


def new_manifest(config: RunConfig) -> dict[str, Any]:
    """Everything a reader needs to tell what made these numbers."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    versions |= {e.dist.name: e.dist.version for e in plugins() if e.name == config.method["name"] and e.dist}
    stages = [
        {
            "name": stage_name(s), "title": s.title, "status": "pending",
            "train_tasks": [config.benchmark.tasks[i].id for i in s.train],
            "eval_tasks": [config.benchmark.tasks[i].id for i in s.evaluate],
            "general_tasks": [task.id for task in general_tasks(config, s)],
            **(dict(zip(("global_batch", "epochs"), task_recipe(config, s.train))) if s.train else {}),
        }
        for s in stages_of(config)
    ]  # fmt: skip
    batches = list(dict.fromkeys(s["global_batch"] for s in stages if "global_batch" in s))
    labels = ["oracle: task id given at inference"] if is_oracle(config) else []
    labels += method_class(config.method["name"]).labels
    if config.model.quantization != "none":
        labels.append(f"base model in {config.model.quantization}: not comparable with runs on an unquantised one")
    labels += [partial_label(config)] if config.limit is not None else []
    return {
        "schema": 1, "name": config.run_folder().name, "method": config.method["name"],
        "preset": config.method["preset"], "benchmark": config.benchmark.name, "model": config.model.name,
        "seed": config.seed, "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "versions": versions, "git": git_commit(),
        "global_batch": batches[0] if len(batches) == 1 else ", ".join(map(str, batches)),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "cpu",
        "labels": labels,
        "tasks": [_named(t) for t in config.benchmark.tasks],
        "general": [_named(t) for t in general_tasks(config)],
        "stages": stages, "data": {},
    }  # fmt: skip


def _named(task: TaskConfig) -> dict[str, str]:
    return {"id": task.id, "title": task.title, "metric": task.metric}


def git_commit() -> str | None:
    """Commit of the checkout this package runs from, with `+` if it has changes; None for an installed package."""
    here = Path(__file__).parent
    if shutil.which("git") is None:
        return None
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, timeout=10)
        dirty = subprocess.run(["git", "status", "--porcelain"], cwd=here, capture_output=True, text=True, timeout=10)
    except subprocess.SubprocessError:
        return None
    return None if commit.returncode else commit.stdout.strip() + ("+" if dirty.stdout.strip() else "")
