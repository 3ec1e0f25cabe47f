"""`hide-llava ls`: what is known, one line each."""

from __future__ import annotations

import re
from pathlib import Path

from hide_llava.config import configs_folder, names, read_group, read_yaml
from hide_llava.errors import UserError
from hide_llava.metrics import METRICS
from hide_llava.metrics.rows import read_json


def listing(what: str) -> str:
    """Text for `methods`, `benchmarks`, `models`, `metrics` or `runs`."""
    tables = {"methods": _methods, "benchmarks": _benchmarks, "models": _models, "metrics": _metrics, "runs": _runs}
    rows = tables[what]()
    if not rows:
        return f"no {what} here"
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)


def comment(path: Path) -> str:
    """What stands in a preset's file below the command that runs it."""
    lines = [line[1:].strip() for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    return " ".join(lines[1:])


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=\.) (?=[A-Z0-9])", text, maxsplit=1)[0]


# What a method does against forgetting, in the order in which `ls methods` shows the kinds.
KINDS = {
    "reference": ("zero_shot", "lora", "multitask", "individual"),
    "replay": ("replay", "dgg"),
    "regularisation": ("ewc", "lwf", "olora", "sefe", "octopus"),
    "subspace": ("keeplora", "eblora"),
    "mixture of experts": ("moelora", "clmoe", "smolora", "same", "branchlora", "passmoe"),
    "task experts": ("hide", "disco", "mrlora"),
    "prompts": ("l2p", "dualprompt", "modalprompt"),
    "merging": ("merge", "llavac", "wise-ft", "many"),
}
PLUGIN = "plug-in"


def kind_of(method: str) -> str:
    """The kind of a method of ours, by its name; of any other: that it is a plug-in."""
    return next((kind for kind, methods in KINDS.items() if method in methods), PLUGIN)


def year_of(doc: str) -> str:
    """Of the first paper that a docstring cites by its arXiv number; nothing where it cites none."""
    found = re.search(r"arXiv[:\s]+(\d{2})\d{2}\.\d{4,5}", doc)
    return f"20{found[1]}" if found else ""


def _methods() -> list[tuple[str, ...]]:
    """By kind, and within a kind by the year of the paper."""
    from hide_llava.methods.registry import method_class, plugins  # torch and peft: seconds that no other list needs

    rows = []
    for name in names("method"):
        path = configs_folder() / "method" / f"{name}.yaml"
        cls = method_class(read_yaml(path)["method"]["name"])
        module = __import__(cls.__module__, fromlist=["x"]).__doc__ or ""
        what = _first_sentence(comment(path)) or module.strip().splitlines()[0]
        what = "".join(f"[{label}] " for label in cls.labels) + what
        rows.append((name, cls.name, kind_of(cls.name), year_of(module), what))
    order = [*KINDS, PLUGIN]
    rows.sort(key=lambda row: (order.index(row[2]), row[3], row[1] != row[0], row[0]))
    for plugin in plugins():
        try:
            what = (method_class(plugin.name).__doc__ or "").strip().partition("\n")[0]
        except UserError as error:
            what = f"[unusable: {error}]"
        rows.append((plugin.name, plugin.name, PLUGIN, "", f"{what} (from {plugin.value})".strip()))
    return [("PRESET", "METHOD", "KIND", "YEAR", "WHAT"), *rows]


def _benchmarks() -> list[tuple[str, ...]]:
    rows = []
    for name in names("benchmark"):
        tree = read_group("benchmark", configs_folder() / "benchmark" / f"{name}.yaml")["benchmark"]
        tasks = ", ".join(t["title"] for t in tree["tasks"])
        rows.append((name, str(len(tree["tasks"])), tasks))
    return [("BENCHMARK", "TASKS", "ORDER"), *rows]


def _models() -> list[tuple[str, ...]]:
    trees = {n: read_yaml(configs_folder() / "model" / f"{n}.yaml")["model"] for n in names("model")}
    return [("MODEL", "PATH", "CLIP"), *((n, t["path"], t.get("clip") or "") for n, t in trees.items())]


def _metrics() -> list[tuple[str, ...]]:
    metrics = [METRICS[name] for name in sorted(METRICS)]
    return [("METRIC", "RULE", "SOURCE"), *((m.name, m.summary, m.source) for m in metrics)]


def _runs() -> list[tuple[str, ...]]:
    rows = []
    for path in sorted(Path("runs").glob("**/manifest.json")):
        manifest = read_json(path)
        if not isinstance(manifest, dict) or not {"stages", "preset", "benchmark"} <= manifest.keys():
            continue  # somebody else's
        done = sum(s["status"] == "complete" for s in manifest["stages"])
        rows.append(
            (str(path.parent), manifest["preset"], manifest["benchmark"], f"{done}/{len(manifest['stages'])} stages")
        )
    return [("RUN", "PRESET", "BENCHMARK", "STATUS"), *rows] if rows else []
