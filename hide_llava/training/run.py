"""One run, resolved once from its configuration: tasks, stages, method, model and folder. All that follows takes it from here."""

from __future__ import annotations

import dataclasses
import datetime
import os
import platform
import re
import shutil
import subprocess
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch

from hide_llava.backbones.auto import family_of
from hide_llava.backbones.base import Backbone
from hide_llava.backbones.identity import model_sha256
from hide_llava.backbones.llava15 import Llava15
from hide_llava.benchmarks.files import BenchmarkTask, Common
from hide_llava.benchmarks.prepare import prepare
from hide_llava.benchmarks.selection import partial_label
from hide_llava.config import to_yaml
from hide_llava.errors import UserError, nearest
from hide_llava.methods.base import Method, Stage, Task
from hide_llava.methods.registry import method_class, method_config, plugins
from hide_llava.plugins import versions
from hide_llava.schema import FREE, EvalConfig, ImageConfig, ModelConfig, RunConfig, TrainConfig, flatten
from hide_llava.settings import MethodConfig, inference_options
from hide_llava.storage import read_json, write_json, write_text
from hide_llava.training.batching import BatchPlan, plan_batches
from hide_llava.training.lineage import chains
from hide_llava.training.run_folder import RunFolder, refuse_foreign, stage_name
from hide_llava.training.tracking import Tracking

# keys that say most about why two configurations differ: told first
FIRST = ("method.name", "method.preset", "benchmark.name", "tasks", "task_order")
PACKAGES = ("torch", "transformers", "peft", "accelerate", "tokenizers", "datasets", "numpy", "pillow")
# Fields of a task that decide the score of given answers, and nothing else: a run goes on with other values of theirs.
SCORED_BY = ("metric_options", "references", "val_references", "legacy")
OF_SCORES = re.compile(rf"benchmark\.tasks\.\d+\.({'|'.join(SCORED_BY)})(\.|$)")
# Sections and keys that no training reads.
ASIDE = ("output", "data_root", "model_root", "tasks", "task_order", "eval.", "caption.", "benchmark.general",
         "benchmark.title", "benchmark.defaults", "benchmark.image_transform", "benchmark.max_new_tokens", "model.name",
         "model.path", "model.family", "model.clip", "model.sentence", "model.projector", "model.device", "train.name",
         "train.num_workers", "train.save_steps", "train.logging_steps", "train.report_to", "train.timeout_minutes",
         "train.on_bad_sample", "train.gradient_checkpointing", "method.preset", "method.file")  # fmt: skip
OF_A_TASK = ("id", "train", "epochs", "global_batch_size", "images")  # what training reads of a task


class Run:
    """What a configuration says, in the form in which it is used.

    tasks: of the benchmark, the trained ones first; a stage knows them by their places. all_general: those of general
    ability; general: of those, the ones that are asked after a stage. method: its class; options: its own Config.
    method_tasks: the trained tasks, as a method sees them. trains: whether the method does. oracle: whether it is told the
    task id at inference. model, train, eval, benchmark: sections of the configuration. encoder: `router.encoder`.
    tracking: where it is reported to. some_tasks: the benchmark may have others, which were not chosen.

    A model that answers in another number format than it was trained in is given it apart (dtype).

    Raises:
        UserError: the method trains, but no task has a training file.
    """

    def __init__(self, config: RunConfig, folder: Path | None = None, dtype: str | None = None):
        self._config = config
        self.folder = RunFolder(folder or config.run_folder())
        self.seed, self.model, self.train, self.eval = config.seed, config.model, config.train, config.eval
        if dtype is not None:  # what was trained was trained in the configuration's
            self.model = config.model.model_copy(update={"dtype": dtype})
        self.benchmark, self.preset, self.encoder = config.benchmark, config.method["preset"], config.router.encoder
        self.data, self.model_root = config.data_folder(), config.model_folder()
        self.method: type[Method] = method_class(config.method["name"])
        self.options = method_config(config.method)
        self._refuse_undecided(config.method)
        self.trains, self.oracle = self.method.trains, self.method.is_oracle(config.method)
        self.common = Common(config.benchmark, config.eval, self.data, config.limit, config.seed,
                             config.train.on_bad_sample, config.caption.tokenizer, self.family.several)  # fmt: skip
        self.tasks = [BenchmarkTask(entry, self.common) for entry in config.benchmark.tasks]
        self.some_tasks = config.tasks is not None
        trained = [task.id for task in self.tasks if task.trained]
        self.method_tasks = [Task(i, name, len(trained)) for i, name in enumerate(trained)]
        self.all_general = [BenchmarkTask(entry, self.common) for entry in config.benchmark.general]
        self.general = [task for task in self.all_general if self.can_answer(task)] if config.eval.general else []
        self.stages = self._stages()
        self._check_family()
        names, tags = [stage_name(stage) for stage in self.stages], [self.preset, self.benchmark.name, self.model.name]
        self.tracking = Tracking(self.folder, self.train.report_to, flatten(config.model_dump()), names, tags)

    @cached_property
    def family(self) -> type[Backbone]:
        """The model's family; LLaVA-1.5 where the model is not on this machine and `model.family` does not say."""
        return family_of(self.model, self.model_root) or Llava15

    @classmethod
    def at(cls, folder: Path) -> Run:
        """The run that lies in a folder, wherever the folder was when it was made.

        Raises:
            UserError: it is no run folder, or its configuration is damaged.
        """
        return cls(RunFolder(folder).config, folder)

    def _refuse_undecided(self, options: dict[str, Any]) -> None:
        """Raises UserError for an option that only a variant of a finished run can leave to that run's studies."""
        for name in self.method.decided_by_studies(options, self.folder.trained_in):
            path = self.folder.path
            raise UserError(f"method.{name}={options[name]}: a study of the finished run decides it, so it is no option of the "
                            f"run itself; give `hide-llava eval {path} method.{name}={options[name]}`.")  # fmt: skip

    def _check_family(self) -> None:
        """Raises UserError for options that do not go with the model's family."""
        reason = unfit(self.method, self.options, self.train, self.eval, self.model, self.family)
        if reason is not None:
            raise UserError(f"method={self.preset} does not go with model={self.model.name} ({self.family.title}): {reason}.")

    def can_answer(self, task: BenchmarkTask) -> bool:
        """An oracle has no task id for a task that was never trained and borrows none."""
        return task.trained or task.entry.instruction_of is not None or not self.oracle

    def _stages(self) -> list[Stage]:
        """Those that the method makes of the trained tasks; tasks never trained are asked after the last one."""
        trained = [task for task in self.tasks if task.trained] if self.trains else self.tasks
        if not trained:
            raise UserError(
                f"no task of benchmark '{self.benchmark.name}' has a training file; only method=zero_shot fits."
            )
        *before, last = self.method.stages([(task.id, task.title) for task in trained])
        unseen = tuple(i for i in range(len(trained), len(self.tasks)) if self.can_answer(self.tasks[i]))
        return [*before, dataclasses.replace(last, evaluate=last.evaluate + unseen)]

    def untouched(self) -> Run:
        """The same run of the model as it is: what `eval.general_base` asks the tests of general ability."""
        method = {"name": "zero_shot", "preset": "zero_shot", **method_config({"name": "zero_shot"}).model_dump()}
        base = Run(self._config.model_copy(update={"method": method}), self.folder.trained_in)
        base.tracking = self.tracking
        base.general = [task for task in base.general if task.id in [own.id for own in self.general]]
        return base

    def general_after(self, stage: Stage) -> list[BenchmarkTask]:
        """Tasks of general ability that are asked after a stage.

        An oracle answers one as the task whose id it borrows, so it is not asked before that task is learned.
        """
        if not self.oracle:
            return self.general
        learned = {self.tasks[i].id for s in self.stages[: stage.index + 1] for i in s.train}
        return [task for task in self.general if task.entry.instruction_of in learned]

    def asked_after(self, stage: Stage) -> list[BenchmarkTask]:
        """All tasks that are asked after a stage."""
        return [*(self.tasks[i] for i in stage.evaluate), *self.general_after(stage)]

    def task(self, name: str, general: bool = True) -> BenchmarkTask:
        """The task that `--task` names. general: it may be one of general ability.

        Raises:
            UserError: the run has none of that id.
        """
        known = {task.id: task for task in [*self.tasks, *(self.all_general if general else [])]}
        if name not in known:
            raise UserError(f"--task {name}: the run has no such task. {nearest(name, list(known))}")
        return known[name]

    def check_stage(self, number: int) -> None:
        """Raises UserError for a `--stage` that the run does not have."""
        last = len(self.stages)
        if not 1 <= number <= last:
            raise UserError(f"--stage {number}: {self.folder.path} has stages 1 to {last}; 1 is after its first task.")

    def trains_in(self, number: int) -> bool:
        """Whether stage `number` (from 1) trains anything: after one that does not, the base model answers untouched."""
        return self.trains and bool(self.stages[number - 1].train)

    def chain_after(self, number: int) -> str | None:
        """What the answers after stage `number` say of their weights (`lineage.py`); None for the untouched base.

        Raises:
            UserError: a stage up to there is not complete, is damaged, or is of another configuration.
        """
        if not self.trains_in(number):
            return None
        return chains([self.folder.stage(stage_name(s)) for s in self.stages[:number]], self.training_part())[-1]

    def recipe(self, stage: Stage) -> tuple[int, float]:
        """Global batch and epochs of a stage: one that learns a single task takes the task's own, if it states them."""
        own = self.tasks[stage.train[0]].entry if len(stage.train) == 1 else None
        batch, epochs = (own.global_batch_size, own.epochs) if own else (None, None)
        return batch or self.train.global_batch_size, epochs or self.train.epochs

    def batches(self, stage: Stage) -> tuple[BatchPlan, float]:
        """How the batches of a stage are cut, and its epochs.

        Raises:
            UserError: the global batch cannot be split over the processes.
        """
        total, epochs = self.recipe(stage)
        return plan_batches(self.train, int(os.environ.get("WORLD_SIZE", "1")), total), epochs

    def records_of(self, stage: Stage) -> int:
        """Training records of a stage, before what a method adds to them or an unusable one takes away."""
        return sum(len(self.tasks[task].records()) for task in stage.train)

    def prepare(self) -> None:
        """Write the embedded benchmark if it is this run's."""
        prepare(self.benchmark, self.data)

    def model_sha256(self) -> str:
        return model_sha256(self.model, self.model_root)

    def training_part(self) -> dict[str, Any]:
        """The values that decide what is trained, by their names in the configuration; the model by the hash of its files."""
        aside = tuple(f"method.{name}" for name in inference_options(self.method.Config))
        found: dict[str, Any] = {"model_sha256": self.model_sha256()}
        for key, value in flatten(self._config.model_dump()).items():
            if key in aside or any(key == part or (part[-1] == "." and key.startswith(part)) for part in ASIDE):
                continue
            if key.startswith(("benchmark.general", "benchmark.tasks")):
                continue
            found[key] = value
        for i, task in enumerate(task for task in self.tasks if task.trained):
            found |= {f"benchmark.tasks.{i}.{name}": getattr(task.entry, name) for name in OF_A_TASK}
        return found

    # ---- the folder --------------------------------------------------------------------------------------------------
    def open(self, extra: dict[str, Any] | None = None, existing: bool = False) -> RunFolder:
        """Create the run folder, or open it if it holds a run of this very configuration.

        existing: the configuration is the run's own with eval.* changed, which every cell checks for itself.

        Raises:
            UserError: the folder holds another run; the differing keys are listed.
        """
        folder = self.folder
        refuse_foreign(folder.path)
        begun = any(p.is_file() for name in ("stages", "state", "eval") for p in (folder.path / name).rglob("*"))
        if begun and (folder.path / "config.yaml").exists():
            stored = folder.config
            self._refuse_other(stored, existing)
            if (folder.path / "manifest.json").exists():
                self._note_changes(stored)
                self._add_general(stored)
                return folder
        folder.path.mkdir(parents=True, exist_ok=True)
        manifest = {**self.new_manifest(), **(extra or {})}
        if folder.trained_in != folder.path:
            trained = {s["name"]: s for s in RunFolder(folder.trained_in).manifest["stages"]}
            for stage in manifest["stages"]:
                here = ("eval_tasks", "general_tasks", "eval_seconds", "folding")
                stage |= {k: v for k, v in trained.get(stage["name"], {}).items() if k not in here}
            manifest["variant"] = read_json(folder.path / "variant.json")
        write_json(folder.path / "manifest.json", manifest)
        write_text(folder.path / "config.yaml", to_yaml(self._config))
        return folder

    def note_places(self) -> None:
        """Note in the folder where the data and the models lie now: whatever is said of the run later looks there."""
        stored = self.folder.config
        here = (self._config.data_root, self._config.model_root)
        if (stored.data_root, stored.model_root) != here:
            stored.data_root, stored.model_root = here
            write_text(self.folder.path / "config.yaml", to_yaml(stored))

    def _note_changes(self, stored: RunConfig) -> None:
        """Note in the folder that bad records are skipped now, and how answers are scored now.

        Each cell makes its score anew if it was scored otherwise.
        """
        before = to_yaml(stored)
        stored.train.on_bad_sample = self.train.on_bad_sample  # only error → skip gets here
        stored.caption, wished = self._config.caption, {entry.id: entry for entry in self._config.benchmark.general}
        pairs = [*zip(stored.benchmark.tasks, self._config.benchmark.tasks)]
        pairs += [(entry, wished[entry.id]) for entry in stored.benchmark.general if entry.id in wished]
        for there, here in pairs:
            for name in SCORED_BY:
                setattr(there, name, getattr(here, name))
        if (now := to_yaml(stored)) != before:
            write_text(self.folder.path / "config.yaml", now)

    def _add_general(self, stored: RunConfig) -> None:
        """Note the tests of general ability that the run is asked for the first time: nothing that is trained depends on them."""
        known, manifest = {entry.id for entry in stored.benchmark.general}, self.folder.manifest
        if more := [entry for entry in self.benchmark.general if entry.id not in known]:
            stored.benchmark.general += more
            write_text(self.folder.path / "config.yaml", to_yaml(stored))
        named = [*manifest.get("general", [])]
        named += [_named(task) for task in self.general if _named(task) not in named]
        if named == manifest.get("general", []):
            return
        for entry, stage in zip(manifest["stages"], self.stages):
            asked = [*entry.get("general_tasks", []), *(task.id for task in self.general_after(stage))]
            entry["general_tasks"] = list(dict.fromkeys(asked))
        write_json(self.folder.path / "manifest.json", {**manifest, "general": named})

    def _refuse_other(self, stored: RunConfig, existing: bool) -> None:
        general = {entry.id: entry for entry in stored.benchmark.general}
        for entry in self.benchmark.general:
            there, now = (one.model_dump(exclude=set(SCORED_BY)) for one in (general.get(entry.id, entry), entry))
            if there != now:
                raise UserError(f"{self.folder.path}: asks its general task '{entry.id}' otherwise; give the new one another id.")
        old, new = (flatten(c.model_dump()) for c in (stored, self._config))
        asked = ("benchmark.general", "caption.", *(("eval.",) if existing else ()))
        free = tuple(k for k in (*old, *new) if k in FREE or k.startswith(asked) or OF_SCORES.match(k))
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
                f"{self.folder.path}: holds a run with another configuration ({listed}{more}). Choose another output=, "
                "delete the folder, or give the old values back."
            )

    def new_manifest(self) -> dict[str, Any]:
        """Everything a reader needs to tell what made these numbers, before anything is done."""
        added = {e.dist.name: e.dist.version for e in plugins() if e.name == self.method.name and e.dist}
        stages = [
            {
                "name": stage_name(s), "title": s.title, "status": "pending",
                "train_tasks": [self.tasks[i].id for i in s.train],
                "eval_tasks": [self.tasks[i].id for i in s.evaluate],
                "general_tasks": [task.id for task in self.general_after(s)],
                **(dict(zip(("global_batch", "epochs"), self.recipe(s))) if s.train else {}),
            }
            for s in self.stages
        ]  # fmt: skip
        batches = list(dict.fromkeys(s["global_batch"] for s in stages if "global_batch" in s))
        limit, quantization = self.common.limit, self.model.quantization
        labels = ["oracle: task id given at inference"] if self.oracle else []
        labels += self.method.labels
        if quantization != "none":
            labels.append(f"base model in {quantization}: not comparable with runs on an unquantised one")
        labels += [partial_label(limit)] if limit is not None else []
        return {
            "schema": 1, "name": self.folder.path.name, "method": self.method.name,
            "preset": self.preset, "benchmark": self.benchmark.name, "model": self.model.name,
            "seed": self.seed, "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "versions": {"python": platform.python_version(), **versions(PACKAGES), **added}, "git": git_commit(),
            "global_batch": batches[0] if len(batches) == 1 else ", ".join(map(str, batches)),
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "cpu",
            "labels": labels,
            "tasks": [_named(task) for task in self.tasks],
            "general": [_named(task) for task in self.general],
            "stages": stages, "data": {},
        }  # fmt: skip


def unfit(
    method: type[Method], options: MethodConfig, train: TrainConfig, ev: EvalConfig, model: ModelConfig, family: type[Backbone]
) -> str | None:
    """Why a method, its options and the recipe that its preset sets do not go with a family of models; None: they do."""
    reasons = {
        "train.label_masks=reference repeats the published code of LLaVA-1.5; use exact":
            train.label_masks == "reference" and not family.recorded,
        "eval.image_transform pads or crops pictures for LLaVA-1.5, and this model's own processor prepares them; set it to null":
            ev.image_transform is not None and not family.transforms,
        "eval.shrink_batches and eval.static_cache are of our own decoding of LLaVA-1.5; this model's is transformers'":
            bool(ev.shrink_batches or ev.static_cache) and not family.shrinks,
        "model.image.* is for models that see pictures in their own size or in tiles; this one takes 336 × 336 pixels. "
        "(A model that is not on this machine yet is taken for a LLaVA-1.5, unless model.family says its model_type)":
            model.image != ImageConfig() and family.transforms,
        "model.projector is of LLaVA-1.5's original format": model.projector is not None and not family.recorded,
    }  # fmt: skip
    return method.unfit(options, family) or next((reason for reason, holds in reasons.items() if holds), None)


def _skips_now(old: dict[str, Any], new: dict[str, Any]) -> bool:
    """From error to skip: the stages so far had no bad record, so skipping could not have changed them."""
    return (old["train.on_bad_sample"], new["train.on_bad_sample"]) == ("error", "skip")


def _named(task: BenchmarkTask) -> dict[str, str]:
    return {"id": task.id, "title": task.title, "metric": task.metric}


@cache
def git_commit() -> str | None:
    """Commit of the checkout this package runs from, with `+` if it has changes; None for an installed package.

    Asked once: what is imported stays what it was, whatever becomes of the checkout while runs follow each other.
    """
    here = Path(__file__).parent
    if shutil.which("git") is None:
        return None
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, timeout=10)
        dirty = subprocess.run(["git", "status", "--porcelain"], cwd=here, capture_output=True, text=True, timeout=10)
    except subprocess.SubprocessError:
        return None
    return None if commit.returncode else commit.stdout.strip() + ("+" if dirty.stdout.strip() else "")
