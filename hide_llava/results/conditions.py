"""What a run was made under besides its method: model, number format, recipe, rules of the metrics, software.

Runs that differ in it may share a table, because a study may vary it. The reader must then be told of every row, for a number
that a 7B in 4 bits gave says nothing about one that a 13B in bf16 gave.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from hide_llava.errors import UserError
from hide_llava.results.run_reader import StoredRun
from hide_llava.schema import FREE, SECTIONS, flatten
from hide_llava.settings import Settings

# labels that decide nothing, places on one machine, and what the order of tasks says already
SILENT = ("seed", "tasks", "task_order", "train.name", *FREE)
TEXTS = ("title", "source", "aliases", "n_train", "n_test")  # of a task: about it, not how it is trained or asked
PLACES = ("model.path", "model.clip", "model.sentence")
STORED = ("batch_size", "tf32", "versions")  # of score.json, where it has them
LONGEST = 24  # letters of a value in the name of a row
WORDS = {"batch_size": "answers per batch", "tf32": "TF32", "global_batch": "global batch", "quantization": "base model in"}


def configuration(run: StoredRun) -> dict[str, str]:
    """{key: value} of all that makes a run what it is but for seed, order, machine, and how it is asked.

    Tasks go by their id. A key that a run's file lacks because it was made before the key existed has its default.
    """
    tree = dict(run.config)
    if isinstance(benchmark := tree.pop("benchmark", None), dict):  # tasks by id: their order is not a difference
        tasks = [t for t in benchmark.get("tasks") or [] if isinstance(t, dict) and "id" in t]
        tree["tasks_of"] = {t["id"]: {k: v for k, v in t.items() if k not in TEXTS} for t in tasks}
    for section, schema in SECTIONS.items():
        if isinstance(own := tree.get(section), dict) and section != "benchmark":
            tree[section] = {**_defaults(schema), **own}
    if isinstance(method := tree.get("method"), dict):
        tree["method"] = {**_method_defaults(method.get("name")), **method}
    asked = ("eval.", "caption.", "benchmark.general")
    return {k: str(v) for k, v in flatten(tree).items() if k not in SILENT and not k.startswith(asked)}


def _defaults(section: type[Settings]) -> dict[str, Any]:
    return {name: field.default for name, field in section.model_fields.items() if not field.is_required()}


def _method_defaults(name: Any) -> dict[str, Any]:
    from hide_llava.methods.registry import method_class

    try:
        return method_class(str(name)).Config().model_dump()
    except (UserError, TypeError, ValueError):  # a method of somebody's own, or one without defaults
        return {}


def dtypes(run: StoredRun) -> set[str]:
    """The formats in which the base model answered, as the scores say; a run of an earlier version does not."""
    cells = [*run.cells.values(), *run.general.values()]
    return {str(cell.data["dtype"]) for cell in cells if cell.data.get("dtype")}


def conditions(run: StoredRun) -> dict[str, set[str]]:
    """{what: values} of one run; more than one value where its cells were made differently."""
    found = {"model": {str(run.manifest.get("model"))}}
    own = configuration(run)
    said = own.pop("model.dtype", None)
    device = f"auto on {run.manifest.get('device', 'an unknown device')}" if said == "auto" else said
    if used := dtypes(run) or ({device} if device else set()):
        found["dtype"] = {value.removeprefix("torch.") for value in used}
    trained = any(stage.get("train_tasks") for stage in run.manifest["stages"])
    found |= {k: {v} for k, v in own.items() if k not in ("model.name", "limit", "output") and (trained or not _trains(k))}
    if trained and "train.global_batch_size" not in found and run.manifest.get("global_batch") is not None:
        found["global_batch"] = {str(run.manifest["global_batch"])}
    for cell in [*run.cells.values(), *run.general.values()]:
        stored = {k: cell.data[k] for k in STORED if cell.data.get(k) is not None}
        for key, value in flatten(stored).items():
            found.setdefault(key, set()).add(str(value))
    return found


def _trains(key: str) -> bool:
    return key.startswith("train.") or key.endswith((".epochs", ".global_batch_size"))


def differing(rows: list[list[StoredRun]], names: list[str]) -> list[dict[str, str]]:
    """For each row (its runs, its name) what is not the same in all rows: {what: value}; keys in one order for all.

    Options of the method count among rows of one preset only, and only where a name does not say them.
    """
    known = [_union(map(conditions, runs)) for runs in rows]
    keys = dict.fromkeys(key for found in known for key in found)
    models = [" ".join(sorted(found["model"])) for found in known]
    titles = [runs[0].title for runs in rows]
    shown: list[dict[str, str]] = [{} for _ in rows]
    for key in keys:
        values = [", ".join(sorted(found[key])) if key in found else None for found in known]
        for k, value in enumerate(values):
            method = key.startswith("method.")
            peers = {i: v for i, v in enumerate(values) if v is not None and (not method or titles[i] == titles[k])}
            if value is None or (len(set(peers.values())) < 2 and len(known[k][key]) < 2):
                continue
            if method and (key in ("method.name", "method.preset") or all(said(key, v, names[i]) for i, v in peers.items())):
                continue
            if key in PLACES and len(set(models)) > 1 and len({v for v, m in zip(values, models) if m == models[k]}) < 2:
                continue  # another model lies in another place
            shown[k][key] = value
    return shown


def option(key: str, value: str) -> str:
    """`rank=4`, as the name of a row says it, in few words: `expanded_layers=0–5`."""
    layers = [int(part) for part in value[1:-1].split(", ")] if re.fullmatch(r"\[\d+(, \d+){2,}\]", value) else []
    if layers and layers == list(range(layers[0], layers[-1] + 1)):
        value = f"{layers[0]}–{layers[-1]}"
    return f"{key.rpartition('.')[2]}={value if len(value) <= LONGEST else value[: LONGEST - 1] + '…'}"


def said(key: str, value: str, name: str) -> bool:
    """Whether the name of a row says that, and says it whole."""
    return f", {option(key, value)}," in f"{name}," and len(value) <= LONGEST


def _union(each: Iterable[dict[str, set[str]]]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for one in each:
        for key, values in one.items():
            found[key] = found.get(key, set()) | values
    return found


def words(own: dict[str, str]) -> str:
    """`model llava-1.5-7b, learning rate 0.0002, arxivqa: epochs 2`"""
    return ", ".join(f"{condition_title(key)} {value}" for key, value in own.items())


def condition_title(key: str) -> str:
    """What a key is called beside a number: `train.learning_rate` → `learning rate`."""
    section, _, rest = key.partition(".")
    if section == "tasks_of":
        task, _, option = rest.partition(".")
        return f"{task}: {option.replace('_', ' ')}"
    if section == "versions":
        return rest
    name = rest if section in ("train", "model", "router") and rest else key
    return WORDS.get(name, name.replace("_", " "))
