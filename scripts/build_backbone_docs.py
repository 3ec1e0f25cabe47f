"""Write the two tables of docs/BACKBONES.md from the source: the families, and which method goes with which.

    python scripts/build_backbone_docs.py

What is between `<!-- NAME: … -->` and `<!-- end -->` is written by this script: families from the classes of
hide_llava/backbones and the presets of configs/model, methods from what a run is refused for (`Method.unfit`, and the options
that a preset sets). tests/test_backbone_docs.py compares.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from hide_llava.backbones.auto import FAMILIES, class_of
from hide_llava.backbones.base import Backbone
from hide_llava.backbones.image_budget import LIMITS
from hide_llava.config import compose, configs_folder, names, read_yaml
from hide_llava.methods.registry import method_class, method_config
from hide_llava.storage import write_text
from hide_llava.training.run import unfit

PAGE = Path(__file__).parent.parent / "docs" / "BACKBONES.md"


def families() -> dict[type[Backbone], list[str]]:
    """The class of each family, in the order of their list, and its model types."""
    found: dict[type[Backbone], list[str]] = {}
    for kind in FAMILIES:
        found.setdefault(class_of(kind), []).append(kind)
    return found


def presets(kinds: list[str]) -> list[str]:
    """Presets whose model is of one of these types; those of LLaVA-1.5 name none."""
    trees = {name: read_yaml(configs_folder() / "model" / f"{name}.yaml")["model"] for name in names("model")}
    return [name for name, tree in trees.items() if tree.get("family", "llava") in kinds]


def family_table() -> str:
    rows = [
        "| family | `model_type` | presets | pictures of a record | image budget | file |",
        "|---|---|---|---|---|---|",
    ]
    for cls, kinds in families().items():
        file, budget = cls.__module__.rpartition(".")[2], None if cls.transforms else LIMITS[kinds[0]][0]
        cells = [cls.title, ", ".join(f"`{kind}`" for kind in kinds), ", ".join(f"`{name}`" for name in presets(kinds)) or "none",
                 "several" if cls.several else "one", f"`{budget}`" if budget else "none",
                 f"[{file}.py](../hide_llava/backbones/{file}.py)"]  # fmt: skip
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def verdicts() -> dict[tuple[str, tuple[str | None, ...]], list[str]]:
    """(method, for each family why not) → the presets of which that holds."""
    found: dict[tuple[str, tuple[str | None, ...]], list[str]] = {}
    for name in names("method"):
        config = compose(["benchmark=ucit", "model=llava-1.5-7b", f"method={name}"])
        cls, options = method_class(config.method["name"]), method_config(config.method)
        row = tuple(unfit(cls, options, config.train, config.eval, config.model, family) for family in families())
        found.setdefault((cls.name, row), []).append(name)
    return found


def method_table() -> str:
    titles = [cls.title for cls in families()]
    rows = [f"| method | presets | {' | '.join(titles)} |", "|---" * (len(titles) + 2) + "|"]
    numbers: dict[str, int] = {}
    for (method, row), own in sorted(verdicts().items(), key=lambda entry: entry[0][0]):
        cells = ["✓" if why is None else f"no ({numbers.setdefault(why, len(numbers) + 1)})" for why in row]
        rows.append(f"| {method} | {', '.join(f'`{name}`' for name in own)} | {' | '.join(cells)} |")
    reasons = [f"{number}. {why}." for why, number in numbers.items()]
    return "\n".join([*rows, "", "Why not:", "", *reasons])


def written(page: str) -> str:
    """The page with both tables as the source has them now."""
    for name, table in (("families", family_table()), ("methods", method_table())):
        place = re.compile(rf"(<!-- {name}: [^\n]*-->\n).*?(\n<!-- end -->)", re.DOTALL)
        page, count = place.subn(lambda found, table=table: found[1] + table + found[2], page)
        assert count == 1, f"{PAGE} has no place for the table of {name}"
    return page


def main() -> None:
    argparse.ArgumentParser(description="Write the tables of docs/BACKBONES.md from the source.").parse_args()
    write_text(PAGE, written(PAGE.read_text(encoding="utf-8")))
    print(f"tables in {PAGE}")


if __name__ == "__main__":
    main()
