"""The configuration: a tree of dataclasses, composed from one YAML per thing a user names and `key=value` overrides.

Every YAML under `configs/` is a partial of the same tree, so a method preset may also set, say, `train.epochs`.
Order of composition (later wins): defaults, model, benchmark, train, method, command line. A task's own epochs and global
batch stand between train and method.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from omegaconf import BooleanNode, IntegerNode, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hide_llava.errors import UserError
from hide_llava.naming import default_output
from hide_llava.schema import (
    BEFORE,
    CHOICES,
    OR_AUTO,
    POSITIVE,
    SECTIONS,
    TASK_RECIPE,
    BenchmarkConfig,
    ModelConfig,
    RunConfig,
    TaskConfig,
    TrainConfig,
)

__all__ = ["BenchmarkConfig", "ModelConfig", "RunConfig", "TaskConfig", "TrainConfig", "compose", "configs_folder",
           "finish", "flatten", "from_yaml", "names", "nearest", "read_group", "read_yaml", "to_yaml"]  # fmt: skip

GROUPS = ("model", "benchmark", "train", "method")
# names that other programs give to what is called otherwise here; where several are known, the first that fits is meant
OTHER_NAMES = {
    "lr": ("learning_rate",), "batch_size": ("global_batch_size",), "bs": ("global_batch_size", "batch_size"),
    "batch": ("global_batch_size", "batch_size"), "train_batch_size": ("global_batch_size",),
    "per_device_train_batch_size": ("per_device_batch_size",), "micro_batch_size": ("per_device_batch_size",),
    "gradient_accumulation_steps": ("global_batch_size",), "num_epochs": ("epochs",), "num_train_epochs": ("epochs",),
    "steps": ("max_steps",), "wd": ("weight_decay",), "warmup": ("warmup_ratio",), "mm_projector_lr": ("projector_lr",),
    "lr_scheduler_type": ("schedule",), "scheduler": ("schedule",), "optim": ("optimizer",), "clip_grad": ("max_grad_norm",),
    "model_max_length": ("max_length",), "max_seq_length": ("max_length",), "cutoff_len": ("max_length",),
    "deepspeed": ("engine",), "zero": ("engine",), "bf16": ("dtype",), "fp16": ("dtype",), "precision": ("dtype",),
    "torch_dtype": ("dtype",), "load_in_4bit": ("quantization",), "bits": ("quantization",), "quant": ("quantization",),
    "attn_implementation": ("attention",), "model_name_or_path": ("path",), "r": ("rank",), "lora_r": ("rank",),
    "lora_rank": ("rank",), "lora_alpha": ("alpha",), "lora_dropout": ("dropout",), "target_modules": ("targets",),
    "lora_target_modules": ("targets",), "max_tokens": ("max_new_tokens",), "max_length": ("max_new_tokens",),
    "random_seed": ("seed",), "output_dir": ("output",), "out": ("output",), "data_dir": ("data_root",),
    "data_path": ("data_root",), "dataset": ("benchmark",), "max_samples": ("limit",), "order": ("task_order",),
}  # fmt: skip


def configs_folder() -> Path:
    """The folder of the YAML files: inside the wheel, or beside the package in a checkout."""
    inside = Path(__file__).parent / "configs"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "configs"


def names(group: str) -> list[str]:
    """Names that `group=` accepts without a path."""
    return sorted(p.stem for p in (configs_folder() / group).glob("*.yaml"))


def nearest(word: str, known: list[str], prefix: str = "") -> str:
    """`Did you mean '<prefix>x'?`, whatever the case, or the list of what is known."""
    if not known:
        return "It has no options." if prefix else "There is none."
    spelt = {name.lower(): name for name in known}
    close = _known_as(word, spelt) or difflib.get_close_matches(word.lower(), spelt, 1, 0.5)
    return f"Did you mean '{prefix}{spelt[close[0]]}'?" if close else f"Known: {', '.join(sorted(known))}."


def _known_as(word: str, known: Iterable[str]) -> list[str]:
    """What that word of other programs is called here, if it is among the known names."""
    return [name for name in OTHER_NAMES.get(word.lower(), ()) if name in known]


def read_yaml(path: Path) -> dict:
    """A YAML file as a plain dictionary.

    Raises:
        UserError: missing file, broken YAML, or a top level that is not a mapping.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such configuration file.")
    try:
        tree = parse_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid YAML ({' '.join(str(error).split())}).") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: expected a mapping at the top level.")
    return tree


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """YAML 1.2's plain values: 010 is no octal 8, 1:30 no 90, on and no are words; a key may not occur twice."""

    yaml_implicit_resolvers: dict = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        written = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = next((key for key in written if written.count(key) > 1 and key != "<<"), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"the key '{twice}' occurs twice", node.start_mark)
        return super().construct_mapping(node, deep)


# (tag, what a plain value of it looks like, its first characters). Every other plain value is text, which a field of a
# number or a truth value still converts: seed: 010 is ten, yes is true.
for _tag, _form, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(0|[1-9][0-9]*)", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+|[-+]?\.(inf|Inf|INF)|"
              r"\.(nan|NaN|NAN)", "-+.0123456789"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("merge", r"<<", "<"),
):  # fmt: skip
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_form})$"), list(_first))


def parse_yaml(text: str) -> Any:
    """A YAML text, or the value of `key=value`, with the plain values of YAML 1.2. Raises yaml.YAMLError, ValueError."""
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def _group_file(group: str, name: str) -> Path:
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        return path
    path = configs_folder() / group / f"{name}.yaml"
    if not path.is_file():
        endings = (".yaml", ".py") if group == "method" else (".yaml",)
        here = [f"./{name}{ending}" for ending in endings if Path(f"{name}{ending}").is_file()]
        hint = f"Did you mean {group}={here[0]}?" if here else nearest(name, names(group))
        raise UserError(f"unknown {group} '{name}'. {hint}")
    return path


def _read_section(group: str, path: Path) -> dict:
    """A YAML file that has a mapping as its section of that group."""
    tree = read_yaml(path)
    if tree.get(group) is None:
        raise UserError(f"{path}: has no top-level '{group}:' section, so it is not a {group} file.")
    if not isinstance(value := tree[group], dict):
        example = f"{{name: {value if isinstance(value, str) else '…'}}}"
        raise UserError(f"{path}: '{group}' must be a mapping, e.g. `{group}: {example}`, got {value!r}.")
    return tree


def read_group(group: str, path: Path) -> dict:
    """A YAML file of a group. A benchmark may say which one it `extends`: its own keys win, tasks are merged by id.

    Raises:
        UserError: as `read_yaml`, no section of that group, or a circle of `extends`.
    """
    tree = _read_section(group, path)
    return extend(tree, path) if group == "benchmark" and "extends" in tree[group] else tree


def extend(tree: dict, path: Path, seen: tuple[Path, ...] = ()) -> dict:
    """`tree` on top of the benchmark it extends."""
    name = str(tree["benchmark"].pop("extends"))
    base_path = _group_file("benchmark", name if not name.endswith((".yaml", ".yml")) else str(path.parent / name))
    if base_path in (*seen, path):
        raise UserError(f"{path}: 'extends' goes in a circle ({base_path.name}).")
    base = _read_section("benchmark", base_path)
    if "extends" in base["benchmark"]:
        base = extend(base, base_path, (*seen, path))
    for one, where in ((base, base_path), (tree, path)):
        _check_keys(one, RunConfig, where.name)
    own = {task.get("id"): task for task in tree["benchmark"].pop("tasks", [])}
    tasks = [{**task, **own.pop(task.get("id"), {})} for task in base["benchmark"].get("tasks", [])]
    merged = OmegaConf.to_container(OmegaConf.merge(base, tree))
    merged["benchmark"]["tasks"] = [*tasks, *own.values()]
    return merged


def _check_keys(tree: dict, schema: type, where: str, prefix: str = "", method: Any = None) -> None:
    """`method`: name of the method whose options a misplaced key may mean."""
    fields = [f.name for f in dataclasses.fields(schema)]
    for key, value in tree.items():
        if key not in fields:
            hint = _nearest_of_all(str(key), method) if schema is RunConfig else nearest(str(key), fields, prefix)
            raise UserError(f"{where}: unknown key '{prefix}{key}'. {hint}")
        child = SECTIONS.get(schema, {}).get(key)
        if child is not None and not (value is None and schema is TaskConfig):
            if not isinstance(value, dict):
                raise UserError(f"{where}: '{prefix}{key}' must be a mapping of its keys, got {value!r}.")
            _check_keys(value, child, where, f"{prefix}{key}.")
        elif schema is RunConfig and key == "method":
            if not isinstance(value, dict):
                raise UserError(f"{where}: 'method' must be a mapping, e.g. `method: {{name: lora}}`, got {value!r}.")
            if not isinstance(name := value.get("name"), str | None):
                raise UserError(f"{where}: 'method.name' takes the name of one method, e.g. lora, got {name!r}.")
        elif schema is BenchmarkConfig and key in ("tasks", "general"):
            if not isinstance(value, list) or not all(isinstance(task, dict) for task in value):
                raise UserError(f"{where}: '{prefix}{key}' takes a list of mappings, one per task.")
            for i, task in enumerate(value):
                _check_keys(task, TaskConfig, where, f"{prefix}{key}[{i}].")


def _nearest_of_all(word: str, method: Any) -> str:
    """`nearest` among the top level and, the section being forgotten, among the keys of the sections and the method."""
    from hide_llava.methods.base import method_class

    places = {f.name: [f.name] for f in dataclasses.fields(RunConfig)}
    sections = {key: schema for key, schema in SECTIONS[RunConfig].items() if key != "benchmark"}
    if isinstance(method, str):
        with contextlib.suppress(UserError):  # an unknown method is told later
            sections["method"] = method_class(method).Config
    for section, schema in sections.items():
        for field in dataclasses.fields(schema):
            if field.name not in ("name", "preset"):
                places.setdefault(field.name, []).append(f"{section}.{field.name}")
    close = _known_as(word, places) or difflib.get_close_matches(word.lower(), places, 1, 0.5)
    if not close:
        return nearest(word, [f.name for f in dataclasses.fields(RunConfig)])
    return f"Did you mean {' or '.join(map(repr, places[close[0]]))}?"


def _merge(config: Any, tree: dict, where: str) -> Any:
    section = tree.get("method")
    name = section.get("name") if isinstance(section, dict) else None
    _check_keys(tree, RunConfig, where, method=name or OmegaConf.select(config, "method.name"))
    try:
        merged = OmegaConf.merge(config, tree)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or "?"
        text = str(error).splitlines()[0]
        raise UserError(f"{where}: wrong value for '{key}': {text}{comma_hint(flatten(tree).get(key))}") from None
    _check_finite(OmegaConf.to_container(merged), f"{where}: ")
    return merged


def comma_hint(value: Any) -> str:
    """What a refused text with commas may have been meant as."""
    if not isinstance(value, str) or "," not in value:
        return ""
    return f"; a list is written [{value}], and several values, one run for each, are for the verbs run, train and eval."


def _check_finite(tree: Any, where: str = "") -> None:
    """Raises UserError for a number of the tree that is nan or infinite."""
    for key, value in flatten(tree).items():
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, float) and not math.isfinite(number):
                raise UserError(f"{where}{key}={number}: must be a finite number.")


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
                one = OmegaConf.create()
                OmegaConf.update(one, key, parse_yaml(value))
                one = OmegaConf.to_container(one)
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
    chosen = {"train": "default", **(defaults or {}), **_defaults_of(chosen.get("benchmark")), **chosen}
    for group in ("model", "benchmark", "method"):
        if group not in chosen:
            raise UserError(f"{group}= is missing. Known: {', '.join(names(group))}.")
    config = OmegaConf.structured(RunConfig)
    for group in GROUPS:
        file, partial = _partial(group, chosen[group])
        if group == "train":
            partial["train"].setdefault("name", Path(file).stem)
        if group == "benchmark":
            partial["benchmark"].pop("defaults", None)  # taken above; no part of a run's configuration
        config = _merge(config, partial, file)
        if group == "method":
            preset, preset_file = partial["method"], file
            _above_tasks(config, partial)
    plain, config = config, _merge(config, tree, "command line")
    _above_tasks(config, tree)
    try:
        finished = finish(config)
    except UserError:
        _check_preset(preset, preset_file)
        raise
    if finished.output is None:
        finished.output = default_output(finished, _finished(plain), flatten(tree), _own_recipe(chosen))
    return finished


def _partial(group: str, name: str) -> tuple[str, dict]:
    """(name of the file, its tree) of a member of a group; a method also from a Python file or an installed package."""
    if group != "method":
        path = _group_file(group, name)
        return path.name, read_group(group, path)
    if _is_plugin(name):
        return name, {"method": {"name": name, "preset": name}}
    if Path(name).suffix == ".py":
        path = Path(name).with_suffix(".yaml")
        tree = read_group(group, path) if path.is_file() else {"method": {}}
        tree["method"]["file"] = name
    else:
        path = _group_file(group, name)
        tree = read_group(group, path)
        if isinstance(own := tree["method"].get("file"), str):
            tree["method"]["file"] = str(path.parent / own)
    tree["method"]["preset"] = path.stem
    if isinstance(tree["method"].get("file"), str) and isinstance(tree["method"].get("name"), str | None):
        _add_file(tree["method"])
    return path.name, tree


def _add_file(section: dict) -> None:
    """Complete a `method:` section that names a Python file: the method's name, the file's place and its hash."""
    from hide_llava.methods.own_file import file_sha256, load_file

    file = Path(section["file"]).resolve()
    cls = load_file(file, section.get("name"))
    section |= {"name": cls.name, "file": str(file), "file_sha256": file_sha256(cls)}


def _finished(config: Any) -> RunConfig | None:
    """`finish`, or None where the configuration is none without the user's own keys."""
    with contextlib.suppress(UserError):
        return finish(config)
    return None


def _own_recipe(chosen: dict[str, str]) -> str | None:
    """The training recipe's name, where it is not what would be taken without `train=`."""
    usual = {"train": "default", **_defaults_of(chosen["benchmark"])}["train"]
    return Path(chosen["train"]).stem if chosen["train"] != usual else None


def _above_tasks(config: Any, partial: dict) -> None:
    """A method preset and the command line also speak for tasks that state their own epochs or global batch.

    Those of a benchmark's task stand above a training recipe's alone. What does not hold is taken out, so that the stored
    configuration says what was done.
    """
    train = partial.get("train") or {}
    for key in TASK_RECIPE:
        for task in config.benchmark.tasks if train.get(key) is not None else ():
            task[key] = None


def _is_plugin(method: str) -> bool:
    """Whether it is a method of an installed package, whose name stands for its defaults, and no preset of ours."""
    from hide_llava.methods.base import plugins

    return method in {entry.name for entry in plugins()} - set(names("method"))


def _method_values(section: dict) -> dict[str, Any]:
    """The `method:` section with every option of the method."""
    from hide_llava.methods.base import method_config

    values = {**section, **dataclasses.asdict(method_config(section))}
    if values.get("file"):
        values["file"] = str(Path(values["file"]).resolve())
    _check_finite({"method": values})
    return values


def _check_preset(section: dict, file: str) -> None:
    """What is wrong with the preset itself is said with its file's name."""
    try:
        _method_values(section)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None


def _defaults_of(benchmark: str | None) -> dict[str, str]:
    """The model and training recipe that a benchmark is run with when none is named."""
    if benchmark is None:
        return {}
    path = _group_file("benchmark", benchmark)
    found = read_group("benchmark", path)["benchmark"].get("defaults") or {}
    if not isinstance(found, dict) or not found.keys() <= {"model", "train"}:
        raise UserError(f"{path}: 'benchmark.defaults' takes model and train, got {found!r}.")
    return found


def finish(config: Any) -> RunConfig:
    """Check values, resolve the method's own fields, and return plain dataclasses."""
    from hide_llava.benchmarks.selection import select_tasks

    missing = [str(k) for k in OmegaConf.missing_keys(config)]
    if missing:
        raise UserError(f"the configuration lacks {', '.join(sorted(missing))}.")
    for key in OR_AUTO:
        OmegaConf.update(config, key, _or_auto(key, OmegaConf.select(config, key)))
    for key, allowed in CHOICES.items():
        value = OmegaConf.select(config, key)
        if value not in allowed:
            raise UserError(f"{key}={value}: expected one of {', '.join(map(str, allowed))}.")
    for key in POSITIVE:
        value = OmegaConf.select(config, key)
        if value is not None and value <= 0:
            raise UserError(f"{key}={value}: must be greater than 0.")
    plain: RunConfig = OmegaConf.to_object(config)
    select_tasks(plain)
    plain.method = _method_values(plain.method)
    return plain


def _or_auto(key: str, value: Any) -> Any:
    """`auto`, or the value of the kind that the key takes, read as for a field that is always of that kind."""
    kind = OR_AUTO[key]
    if value == "auto" or (value is None and kind is not bool):
        return value
    node = BooleanNode if kind is bool else IntegerNode
    try:
        if value is None or (kind is not bool and isinstance(value, bool)):
            raise ValueError
        return node(value)._value()
    except (ValueError, OmegaConfBaseException):
        expected = "auto, true or false" if kind is bool else "auto, null or a number of records"
        raise UserError(f"wrong value for '{key}': {value!r}; expected {expected}.") from None


def to_yaml(config: RunConfig) -> str:
    """The resolved configuration as YAML text."""
    return OmegaConf.to_yaml(OmegaConf.create(dataclasses.asdict(config)))


def from_yaml(path: Path, overrides: list[str] | None = None) -> RunConfig:
    """Read back a resolved configuration (`config.yaml` of a run), with `key=value` changes.

    Raises:
        UserError: damaged file, or an override that does not fit.
    """
    stored_tree = read_yaml(path)
    for key in _unstated(stored_tree):
        section, name = key.split(".")
        stored_tree[section][name] = BEFORE[key]
    config = _merge(OmegaConf.structured(RunConfig), stored_tree, str(path))
    chosen, tree = _parse_overrides(overrides or [])
    if chosen:
        raise UserError(f"{', '.join(f'{k}=' for k in chosen)} of an existing run cannot be changed.")
    if "file" in (tree.get("method") or {}):  # where the method's file lies now; the stored place need not exist
        return finish(_merge(config, tree, "command line"))
    try:
        stored = finish(config)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return finish(_merge(config, tree, "command line")) if tree else stored


def as_begun(config: RunConfig) -> tuple[RunConfig, list[str]]:
    """`config` for a run that may have been begun before some keys existed: there they mean what was done then.

    Returns the configuration and what was taken over, as key=value.
    """
    path = config.run_folder() / "config.yaml"
    taken = {key: BEFORE[key] for key in (_unstated(read_yaml(path)) if path.is_file() else ())}
    taken = {key: value for key, value in taken.items() if _get(config, key) != value}
    for key, value in taken.items():
        section, name = key.split(".")
        setattr(getattr(config, section), name, value)
    return config, [f"{key}={value}" for key, value in taken.items()]


def _unstated(tree: dict) -> list[str]:
    """The keys of BEFORE that a stored configuration does not have."""
    sections = {key: tree.get(key.split(".")[0]) for key in BEFORE}
    return [key for key, held in sections.items() if isinstance(held, dict) and key.split(".")[1] not in held]


def _get(config: RunConfig, key: str) -> Any:
    section, name = key.split(".")
    return getattr(getattr(config, section), name)


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` → `{"a.b": 1}`, for comparing two configurations."""
    if isinstance(tree, dict):
        return {k: v for key, value in tree.items() for k, v in flatten(value, f"{prefix}{key}.").items()}
    if isinstance(tree, list) and any(isinstance(v, dict) for v in tree):
        return {k: v for i, value in enumerate(tree) for k, v in flatten(value, f"{prefix}{i}.").items()}
    return {prefix[:-1]: tree}
