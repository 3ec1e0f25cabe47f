"""Finding a method by its name: built in, installed as a plug-in, or a Python file of the user's; and making its options."""

from __future__ import annotations

from dataclasses import is_dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

from hide_llava.errors import UserError, nearest
from hide_llava.methods import base
from hide_llava.methods.base import Method
from hide_llava.plugins import announced, loaded, origin
from hide_llava.schema import merge
from hide_llava.settings import MethodConfig, validated


def method_class(name: str) -> type[Method]:
    """Find a method by name, here or through the entry-point group `hide_llava.methods`.

    Raises:
        UserError: unknown name, with the nearest known one; a plug-in that cannot be imported or is no method;
            a Config that is no MethodConfig.
    """
    import hide_llava.methods.all  # noqa: F401  (registers the built-in methods)

    found = [entry for entry in plugins() if entry.name == name]
    if found:
        base.register(_load(name, found))
    if name not in base.REGISTRY:
        raise UserError(
            f"unknown method '{name}'. {nearest(name, [*base.REGISTRY, *(e.name for e in plugins())])} (A method of your own "
            "is named by its file, method=./my_method.py, or by its package, which announces it as an entry point.)"
        )
    cls = base.REGISTRY[name]
    if not issubclass(cls.Config, MethodConfig) or is_dataclass(cls.Config):
        raise UserError(
            f"method '{name}': {base.place(cls)}.Config is no MethodConfig. Write `class Config(MethodConfig):` "
            "(hide_llava.methods.base), or the Config of another method in the brackets, and no @dataclass above it."
        )
    return cls


def plugins() -> list[EntryPoint]:
    """Methods that installed packages announce, whether or not they can be loaded."""
    return announced("hide_llava.methods")


def _load(name: str, entries: list[EntryPoint]) -> type[Method]:
    cls, where = loaded(f"method '{name}'", entries), f"method '{name}': its plug-in {origin(entries[0])}"
    if not isinstance(cls, type) or not issubclass(cls, Method):
        raise UserError(f"{where} is not a subclass of Method.")
    if cls.name != name:
        raise UserError(f"{where} has name = '{cls.name}'; the two must be the same.")
    return cls


def method_config(tree: dict[str, Any]) -> Any:
    """Build the method's Config from the `method:` section. A mapping among its options completes the default one.

    Raises:
        UserError: unknown key, wrong type, or a value the method refuses.
    """
    name = tree.get("name")
    if not name:
        raise UserError("the method section has no 'name'.")
    if not isinstance(name, str):
        raise UserError(f"'method.name' takes the name of one method, e.g. lora, got {name!r}.")
    if tree.get("file"):
        from hide_llava.methods.own_file import load_file

        load_file(Path(str(tree["file"])), name, tree.get("file_sha256"))
    options = method_class(name).Config
    values = {k: v for k, v in tree.items() if k not in ("name", "preset", "file", "file_sha256")}
    for key, option in options.model_fields.items():
        usual = option.get_default(call_default_factory=True)
        if isinstance(usual, dict) and isinstance(values.get(key), dict):
            values[key] = merge(usual, values[key])

    def unknown(prefix: str, key: str, known: list[str]) -> str:
        return f"unknown key '{prefix}{key}' for method '{name}'. {nearest(key, known, prefix)}"

    return validated(options, values, unknown, "method")
