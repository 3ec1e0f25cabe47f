"""The configuration: a tree of dataclasses, composed from one YAML per thing a user names and `key=value` overrides.

Every YAML under `configs/` is a partial of the same tree, so a method preset may also set, say, `train.epochs`.
Order of composition (later wins): defaults, model, benchmark, train, method, command line.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hide_llava.errors import UserError

GROUPS = ("model", "benchmark", "train", "method")


@dataclass
class ModelConfig:
    """Which LLaVA-1.5, and how it is held in memory."""

    name: str = MISSING
    path: str = MISSING  # folder under model_root, absolute folder, `package:` folder, or hub id
    clip: str | None = None  # CLIP folder or hub id: text tower and projections for routing
    projector: str | None = None  # original format only: an `mm_projector.bin` that replaces the projector
    dtype: str = "auto"  # auto (bf16 on a GPU, fp32 on a CPU) | float32 | bfloat16 | float16
    attention: str = "auto"  # auto | sdpa | flash | eager
    device: str = "auto"  # auto | cpu | cuda


@dataclass
class RouterConfig:
    """Where routing features come from: `clip` (LLaVA's own tower + CLIP text tower) or `open_clip:<model>:<weights>`."""

    encoder: str = "clip"


@dataclass
class TaskConfig:
    """One task of a benchmark; file names are relative to the benchmark's folders."""

    id: str = MISSING
    title: str = MISSING
    train: str | None = None
    test: str = MISSING
    val: str | None = None
    metric: str = MISSING
    references: str | None = None
    val_references: str | None = None
    epochs: float | None = None
    global_batch_size: int | None = None
    max_new_tokens: int | None = None
    images: str | None = None  # image folder of this task, relative to data_root; None: the benchmark's
    image_transform: str | None = None  # pad | crop; None: the benchmark's
    prompt_suffix: str | None = None  # appended to every test question
    n_train: int | None = None  # expected record counts; None: not known
    n_test: int | None = None
    aliases: list[str] = field(default_factory=list)  # other names of the task in papers and code
    source: str = ""  # data set, split and licence


@dataclass
class BenchmarkConfig:
    """A benchmark is data: ordered tasks, files, image root, transform, metric names."""

    name: str = MISSING
    title: str = ""
    instructions: str = ""  # folder of the JSON files, relative to data_root
    images: str = ""  # folder that record.image is relative to, relative to data_root
    generated: bool = False  # the embedded benchmark: written under data_root on first use
    image_transform: str = "pad"  # pad | crop
    max_new_tokens: int = 128
    tasks: list[TaskConfig] = field(default_factory=list)
    general: list[TaskConfig] = field(default_factory=list)  # never trained, asked after every stage: general ability


@dataclass
class TrainConfig:
    """The training recipe of one task (spec hide.md §2.1); the schedule restarts with every task."""

    name: str = "default"
    global_batch_size: int = 96
    per_device_batch_size: int | None = None  # None: the largest that divides the global batch, at most 16
    epochs: float = 1.0
    max_steps: int = -1
    learning_rate: float = 2e-4
    projector_lr: float = 2e-5
    weight_decay: float = 0.0
    warmup_ratio: float = 0.03
    max_grad_norm: float = 0.0  # 0: no clipping, as the published runs effectively did (hide.md §2.1)
    schedule: str = "cosine"
    optimizer: str = "adamw_torch"
    gradient_checkpointing: bool = True
    max_length: int = 2048
    group_by_modality_length: bool = True
    num_workers: int = 4
    on_bad_sample: str = "error"  # error | skip
    save_steps: int = 100
    logging_steps: int = 1
    report_to: str = "none"


@dataclass
class EvalConfig:
    """Greedy generation. `None` takes the benchmark's value."""

    batch_size: int = 16
    split: str = "test"  # test | val
    max_new_tokens: int | None = None
    image_transform: str | None = None
    num_workers: int = 0
    limit: int | None = None


@dataclass
class CaptionConfig:
    """`ptb` needs Java; `python` leaves METEOR out and labels the score as not comparable."""

    tokenizer: str = "ptb"


@dataclass
class RunConfig:
    """The whole tree."""

    output: str | None = None  # run folder; None: runs/<benchmark>-<method>-<model>-seed<seed>
    seed: int = 42
    data_root: str | None = None  # None: $HIDE_DATA, else ./data
    model_root: str | None = None  # None: $HIDE_MODELS, else ./models
    model: ModelConfig = field(default_factory=ModelConfig)
    router: RouterConfig = field(default_factory=RouterConfig)
    benchmark: BenchmarkConfig = field(default_factory=BenchmarkConfig)
    method: Any = field(default_factory=dict)  # {name, preset, …fields of the method's own Config}
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    caption: CaptionConfig = field(default_factory=CaptionConfig)

    def data_folder(self) -> Path:
        return Path(self.data_root or os.environ.get("HIDE_DATA") or "data")

    def model_folder(self) -> Path:
        return Path(self.model_root or os.environ.get("HIDE_MODELS") or "models")

    def run_folder(self) -> Path:
        name = f"{self.benchmark.name}-{self.method['preset']}-{self.model.name}-seed{self.seed}"
        return Path(self.output or Path("runs") / name)


CHOICES = {
    "model.dtype": ("auto", "float32", "bfloat16", "float16"),
    "model.attention": ("auto", "sdpa", "flash", "eager"),
    "benchmark.image_transform": ("pad", "crop"),
    "eval.image_transform": (None, "pad", "crop"),
    "eval.split": ("test", "val"),
    "train.on_bad_sample": ("error", "skip"),
    "caption.tokenizer": ("ptb", "python"),
}
POSITIVE = (
    "train.global_batch_size", "train.epochs", "train.learning_rate", "train.max_length", "train.save_steps",
    "train.logging_steps", "eval.batch_size", "benchmark.max_new_tokens",
)  # fmt: skip


def configs_folder() -> Path:
    """The folder of the YAML files: inside the wheel, or beside the package in a checkout."""
    inside = Path(__file__).parent / "configs"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "configs"


def names(group: str) -> list[str]:
    """Names that `group=` accepts without a path."""
    return sorted(p.stem for p in (configs_folder() / group).glob("*.yaml"))


def nearest(word: str, known: list[str], prefix: str = "") -> str:
    """`Did you mean '<prefix>x'?` or the list of what is known."""
    close = difflib.get_close_matches(word, known, 1, 0.5)
    return f"Did you mean '{prefix}{close[0]}'?" if close else f"Known: {', '.join(sorted(known))}."


def read_yaml(path: Path) -> dict:
    """A YAML file as a plain dictionary.

    Raises:
        UserError: missing file, broken YAML, or a top level that is not a mapping.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such configuration file.")
    try:
        tree = OmegaConf.to_container(OmegaConf.load(path))
    except Exception as error:
        raise UserError(f"{path}: not valid YAML ({' '.join(str(error).split())}).") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: expected a mapping at the top level.")
    return tree


def _group_file(group: str, name: str) -> Path:
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        return path
    path = configs_folder() / group / f"{name}.yaml"
    if not path.is_file():
        raise UserError(f"unknown {group} '{name}'. {nearest(name, names(group))}")
    return path


def _check_keys(tree: dict, schema: type, where: str, prefix: str = "") -> None:
    fields = {f.name: f for f in dataclasses.fields(schema)}
    for key, value in tree.items():
        if key not in fields:
            raise UserError(f"{where}: unknown key '{prefix}{key}'. {nearest(str(key), list(fields), prefix)}")
        child = {"model": ModelConfig, "router": RouterConfig, "benchmark": BenchmarkConfig, "train": TrainConfig,
                 "eval": EvalConfig, "caption": CaptionConfig}.get(key) if schema is RunConfig else None  # fmt: skip
        if child is not None:
            if not isinstance(value, dict):
                raise UserError(f"{where}: '{prefix}{key}' takes a name or a mapping, got {value!r}.")
            _check_keys(value, child, where, f"{prefix}{key}.")
        elif key in ("tasks", "general"):
            if not isinstance(value, list) or not all(isinstance(task, dict) for task in value):
                raise UserError(f"{where}: '{prefix}{key}' takes a list of mappings, one per task.")
            for i, task in enumerate(value):
                _check_keys(task, TaskConfig, where, f"{prefix}{key}[{i}].")


def _merge(config: Any, tree: dict, where: str) -> Any:
    _check_keys(tree, RunConfig, where)
    try:
        return OmegaConf.merge(config, tree)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or "?"
        raise UserError(f"{where}: wrong value for '{key}': {str(error).splitlines()[0]}") from None


def _parse_overrides(overrides: list[str]) -> tuple[dict[str, str], dict]:
    chosen: dict[str, str] = {}
    tree: dict = {}
    for item in overrides:
        key, equals, value = item.partition("=")
        if not equals or not key:
            raise UserError(f"'{item}' is not an override; write key=value, e.g. train.epochs=1.")
        if key in GROUPS:
            chosen[key] = value
        else:
            try:
                one = OmegaConf.to_container(OmegaConf.from_dotlist([item]))
            except Exception:
                raise UserError(f"'{item}': the value cannot be read as YAML.") from None
            tree = OmegaConf.to_container(OmegaConf.merge(tree, one))
    return chosen, tree


def compose(overrides: list[str], defaults: dict[str, str] | None = None) -> RunConfig:
    """Compose the tree from `group=name` choices and `key=value` overrides.

    Raises:
        UserError: unknown group member or key (with the nearest known one), wrong type, value out of range.
    """
    chosen, tree = _parse_overrides(overrides)
    chosen = {"train": "default", **(defaults or {}), **chosen}
    for group in ("model", "benchmark", "method"):
        if group not in chosen:
            raise UserError(f"{group}= is missing. Known: {', '.join(names(group))}.")
    config = OmegaConf.structured(RunConfig)
    for group in GROUPS:
        path = _group_file(group, chosen[group])
        partial = read_yaml(path)
        if not isinstance(partial.get(group), dict):
            raise UserError(f"{path}: has no top-level '{group}:' section, so it is not a {group} file.")
        if group == "method":
            partial["method"]["preset"] = path.stem
        config = _merge(config, partial, str(path.name))
    config = _merge(config, tree, "command line")
    return finish(config)


def finish(config: Any) -> RunConfig:
    """Check values, resolve the method's own fields, and return plain dataclasses."""
    from hide_llava.methods.base import method_config

    missing = [str(k) for k in OmegaConf.missing_keys(config)]
    if missing:
        raise UserError(f"the configuration lacks {', '.join(sorted(missing))}.")
    for key, allowed in CHOICES.items():
        value = OmegaConf.select(config, key)
        if value not in allowed:
            raise UserError(f"{key}={value}: expected one of {', '.join(map(str, allowed))}.")
    for key in POSITIVE:
        if OmegaConf.select(config, key) <= 0:
            raise UserError(f"{key}={OmegaConf.select(config, key)}: must be greater than 0.")
    plain: RunConfig = OmegaConf.to_object(config)
    if not plain.benchmark.tasks:
        raise UserError(f"benchmark '{plain.benchmark.name}' has no tasks.")
    ids = [t.id for t in plain.benchmark.tasks]
    if len(set(ids)) != len(ids):
        raise UserError(f"benchmark '{plain.benchmark.name}': task ids repeat ({', '.join(ids)}).")
    plain.method = {**plain.method, **dataclasses.asdict(method_config(plain.method))}
    return plain


def to_yaml(config: RunConfig) -> str:
    """The resolved configuration as YAML text."""
    return OmegaConf.to_yaml(OmegaConf.create(dataclasses.asdict(config)))


def from_yaml(path: Path, overrides: list[str] | None = None) -> RunConfig:
    """Read back a resolved configuration (`config.yaml` of a run), with `key=value` changes.

    Raises:
        UserError: damaged file, or an override that does not fit.
    """
    config = _merge(OmegaConf.structured(RunConfig), read_yaml(path), str(path))
    try:
        stored = finish(config)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    chosen, tree = _parse_overrides(overrides or [])
    if chosen:
        raise UserError(f"{', '.join(f'{k}=' for k in chosen)} of an existing run cannot be changed.")
    return finish(_merge(config, tree, "command line")) if tree else stored


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` → `{"a.b": 1}`, for comparing two configurations."""
    if isinstance(tree, dict):
        return {k: v for key, value in tree.items() for k, v in flatten(value, f"{prefix}{key}.").items()}
    if isinstance(tree, list) and any(isinstance(v, dict) for v in tree):
        return {k: v for i, value in enumerate(tree) for k, v in flatten(value, f"{prefix}{i}.").items()}
    return {prefix[:-1]: tree}
