"""YAML as configurations are written in it: that of version 1.2, read and written so that both agree what is a number."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from hide_llava.errors import UserError


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """YAML 1.2's plain values: 010 is no octal 8, 1:30 no 90, on and no are words; a key may not occur twice."""

    yaml_implicit_resolvers: dict = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        written = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = next((key for key in written if written.count(key) > 1 and key != "<<"), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"the key '{twice}' occurs twice", node.start_mark)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes a text that the loader above, or one of YAML 1.1, would read as something else."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=None if data.isprintable() else '"')


_Dumper.add_representer(str, _Dumper.represent_str)

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
    for _one in (_Loader, _Dumper):
        _one.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_form})$"), list(_first))


def parse_yaml(text: str) -> Any:
    """A YAML text, or the value of `key=value`, with the plain values of YAML 1.2. Raises yaml.YAMLError, ValueError."""
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


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


def dump_yaml(tree: dict) -> str:
    """A plain dictionary as YAML text, its keys in their order."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
