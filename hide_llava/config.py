"""The configuration: a tree of pydantic models, composed of one YAML per thing a user names and `key=value` overrides.

Every YAML under `configs/` is a partial of the same tree, so a method preset may also set, say, `train.epochs`.
Order of composition (later wins): defaults, model, benchmark, train, method, command line. A task's own epochs and global
batch stand between train and method. The layers are merged as plain dictionaries and checked once, when complete.
"""

from __future__ import annotations

import contextlib
import difflib
import math
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from hide_llava.benchmarks.selection import select_tasks
from hide_llava.benchmarks.shared import with_shared
from hide_llava.errors import UserError, known_as, nearest
from hide_llava.naming import default_output, plain_name
from hide_llava.presets import GROUPS, configs_folder, names
from hide_llava.schema import (
    BEFORE,
    SECTIONS,
    TASK_RECIPE,
    BenchmarkConfig,
    ModelConfig,
    RunConfig,
    TaskConfig,
    TrainConfig,
    flatten,
    merge,
)
from hide_llava.settings import Lacking, validated
from hide_llava.yaml_text import dump_yaml, parse_yaml, read_yaml

__all__ = ["BenchmarkConfig", "ModelConfig", "RunConfig", "TaskConfig", "TrainConfig", "compose", "compose_data",
           "configs_folder", "flatten", "from_yaml", "names", "read_group", "read_yaml", "to_yaml"]  # fmt: skip

Layers = list[tuple[str, dict]]  # partials of the tree, later ones winning, and where each was said


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
        if wrong := _against(_merged([(where.name, one)])):
            raise UserError(f"{where.name}: {wrong[0]}")
    own = {task.get("id"): task for task in tree["benchmark"].pop("tasks", [])}
    tasks = [{**task, **own.pop(task.get("id"), {})} for task in base["benchmark"].get("tasks", [])]
    merged = merge(base, tree)
    merged["benchmark"]["tasks"] = [*tasks, *own.values()]
    return merged


def _merged(layers: Layers) -> dict:
    """The layers as one tree that has every section."""
    sections = (*SECTIONS, "method")
    tree: dict = {key: {} for key in sections}
    for where, layer in layers:
        for key in sections:
            if not isinstance(layer.get(key, {}), dict):
                raise UserError(_at(where, f"'{key}' must be a mapping of its keys, got {layer[key]!r}."))
        tree = merge(tree, layer)
    return tree


def _at(where: str, text: str) -> str:
    return f"{where}: {text}" if where else text


def _checked(tree: dict, method: Any) -> RunConfig:
    """`method`: name of the method whose options a misplaced key may mean."""
    _check_finite(tree)
    tree = with_shared(tree, read_yaml)
    return validated(RunConfig, tree, partial(_unknown, method))


def _against(tree: dict, method: Any = None) -> list[str]:
    """All that is wrong with the tree but what it lacks."""
    found: list[str] = []
    named = tree["method"].keys() & {"name", "preset"}  # else another layer has the name
    for check in (lambda: _checked(tree, method), *([lambda: _method_values(tree["method"])] if named else [])):
        try:
            check()
        except Lacking:
            continue
        except UserError as error:
            found += getattr(error, "problems", [str(error)])
    return found


def _unknown(method: Any, prefix: str, key: str, known: list[str]) -> str:
    return f"unknown key '{prefix}{key}'. {nearest(key, known, prefix) if prefix else _nearest_of_all(key, method)}"


def _nearest_of_all(word: str, method: Any) -> str:
    """`nearest` among the top level and, the section being forgotten, among the keys of the sections and the method."""
    from hide_llava.methods.registry import method_class

    places = {name: [name] for name in RunConfig.model_fields}
    sections: dict[str, Any] = {key: schema for key, schema in SECTIONS.items() if key != "benchmark"}
    if isinstance(method, str):
        with contextlib.suppress(UserError):  # an unknown method is told later
            sections["method"] = method_class(method).Config
    for section, schema in sections.items():
        for name in schema.model_fields:
            if name not in ("name", "preset"):
                places.setdefault(name, []).append(f"{section}.{name}")
    close = known_as(word, places) or difflib.get_close_matches(word.lower(), places, 1, 0.5)
    if not close:
        return nearest(word, list(RunConfig.model_fields))
    return f"Did you mean {' or '.join(map(repr, places[close[0]]))}?"


def _check_finite(tree: Any) -> None:
    """Raises UserError for a number of the tree that is nan or infinite."""
    for key, value in flatten(tree).items():
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, float) and not math.isfinite(number):
                raise UserError(f"{key}={number}: must be a finite number.")


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
                one = parse_yaml(value)
            except (yaml.YAMLError, ValueError, RecursionError):
                raise UserError(f"'{item}': the value cannot be read as YAML.") from None
            for name in reversed(key.split(".")):
                one = {name: one}
            tree = merge(tree, one)
    return chosen, tree


def compose(overrides: list[str], defaults: dict[str, str] | None = None) -> RunConfig:
    """Compose the tree from `group=name` choices and `key=value` overrides.

    Raises:
        UserError: unknown group member or key (with the nearest known one), wrong type, value out of range.
    """
    chosen, words = _parse_overrides(overrides)
    chosen = {"train": "default", **(defaults or {}), **_defaults_of(chosen.get("benchmark")), **chosen}
    for group in ("model", "benchmark", "method"):
        if group not in chosen:
            raise UserError(f"{group}= is missing. Known: {', '.join(names(group))}.")
    layers: Layers = []
    for group in GROUPS:
        file, tree = _partial(group, chosen[group])
        if group == "train":
            tree["train"].setdefault("name", Path(file).stem)
        if group == "benchmark":
            tree["benchmark"].pop("defaults", None)  # taken above; no part of a run's configuration
        layers.append((file, tree))
    layers = _above_tasks(layers)
    config = finish(_above_tasks([*layers, ("command line", words)]))
    if config.output is None:
        config.output = default_output(config, _finished(layers), flatten(words), _own_recipe(chosen))
    return config


def compose_data(overrides: list[str]) -> RunConfig:
    """A configuration of which only the data matters: method and model need not be named."""
    return compose(overrides, {"method": "zero_shot", "model": "llava-1.5-7b"})


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


def _finished(layers: Layers) -> RunConfig | None:
    """`finish`, or None where the configuration is none without the user's own keys."""
    with contextlib.suppress(UserError):
        return finish(layers)
    return None


def _own_recipe(chosen: dict[str, str]) -> str | None:
    """The training recipe's name, where it is not what would be taken without `train=`."""
    usual = {"train": "default", **_defaults_of(chosen["benchmark"])}["train"]
    return Path(chosen["train"]).stem if chosen["train"] != usual else None


def _above_tasks(layers: Layers) -> Layers:
    """A method preset and the command line, the last of the layers, also speak for tasks with epochs or a global batch.

    Those of a benchmark's task stand above a training recipe's alone. What does not hold is taken out, so that the stored
    configuration says what was done.
    """
    tasks, (where, last) = _merged(layers)["benchmark"].get("tasks"), layers[-1]
    said = [key for key in TASK_RECIPE if last.get("train", {}).get(key) is not None]
    if not said or not isinstance(tasks, list):
        return layers
    silent = [{**task, **dict.fromkeys(said)} if isinstance(task, dict) else task for task in tasks]
    return [*layers[:-1], (where, merge(last, {"benchmark": {"tasks": silent}}))]


def _is_plugin(method: str) -> bool:
    """Whether it is a method of an installed package, whose name stands for its defaults, and no preset of ours."""
    from hide_llava.methods.registry import plugins

    return method in {entry.name for entry in plugins()} - set(names("method"))


def _method_values(section: dict) -> dict[str, Any]:
    """The `method:` section with every option of the method."""
    from hide_llava.methods.registry import method_config

    values = {**section, **method_config(section).model_dump()}
    if values.get("file"):
        values["file"] = str(Path(str(values["file"])).resolve())
    return values


def _defaults_of(benchmark: str | None) -> dict[str, str]:
    """The model and training recipe that a benchmark is run with when none is named."""
    if benchmark is None:
        return {}
    path = _group_file("benchmark", benchmark)
    found = read_group("benchmark", path)["benchmark"].get("defaults") or {}
    if not isinstance(found, dict) or not found.keys() <= {"model", "train"}:
        raise UserError(f"{path}: 'benchmark.defaults' takes model and train, got {found!r}.")
    return found


def finish(layers: Layers) -> RunConfig:
    """The configuration that the layers make, checked, with the tasks of the run and all options of the method.

    Raises:
        UserError: what is wrong, and in which layer.
    """
    tree = _merged(layers)
    method = tree["method"].get("name")
    try:
        config = _checked(tree, method)
        config.tasks, config.task_order = select_tasks(config.benchmark, config.tasks, config.task_order)
        config.method = _method_values(config.method)
    except Lacking:
        raise
    except UserError as error:  # told with the first layer that makes it so
        ends = range(1, len(layers) + 1)
        wrong = [layers[end - 1][0] for end in ends if str(error) in _against(_merged(layers[:end]), method)]
        raise UserError(_at(wrong[0] if wrong else "", str(error))) from None
    return config


def to_yaml(config: RunConfig) -> str:
    """The resolved configuration as YAML text."""
    return dump_yaml(config.model_dump())


def from_yaml(path: Path, overrides: list[str] | None = None) -> RunConfig:
    """Read back a resolved configuration (`config.yaml` of a run), with `key=value` changes.

    Raises:
        UserError: damaged file, or an override that does not fit.
    """
    stored_tree = read_yaml(path)
    for key in _unstated(stored_tree):
        section, name = key.split(".")
        stored_tree[section][name] = BEFORE[key]
    chosen, words = _parse_overrides(overrides or [])
    if chosen:
        raise UserError(f"{', '.join(f'{k}=' for k in chosen)} of an existing run cannot be changed.")
    changed: Layers = [("", stored_tree), ("command line", words)]
    if "file" in words.get("method", {}):  # where the method's file lies now; the stored place need not exist
        return _with_output(finish(changed))
    try:
        stored = finish(changed[:1])
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return _with_output(finish(changed) if words else stored)


def _with_output(config: RunConfig) -> RunConfig:
    config.output = config.output or str(Path("runs") / plain_name(config))
    return config


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
