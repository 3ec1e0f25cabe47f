"""What the shell offers for a `key=value` word: the four keys that name a preset, and the presets that are known."""

from __future__ import annotations

import os

import typer

from hide_llava.plugins import announced
from hide_llava.presets import GROUPS, names

KEYS = tuple(f"{group}=" for group in ("benchmark", "method", "model", "train"))


def complete(ctx: typer.Context, incomplete: str) -> list[str]:
    """Words that may stand where `incomplete` stands; none where it begins something else, so that files are offered."""
    key = _split_off(list(ctx.params.get("overrides") or []))
    if key in GROUPS:
        return [name for name in known(key) if name.startswith(incomplete)]
    key, equals, value = incomplete.partition("=")
    if equals:
        return [f"{key}={name}" for name in known(key) if name.startswith(value)] if key in GROUPS else []
    fitting = [word for word in KEYS if word.startswith(incomplete)]
    # bash puts a space behind the only word that fits, so that one key is offered together with its values
    return [f"{fitting[0]}{name}" for name in known(fitting[0][:-1])] if len(fitting) == 1 else fitting


def known(group: str) -> list[str]:
    """The presets of a group; of methods also those that installed packages announce."""
    if group != "method":
        return names(group)
    return sorted({*names(group), *(plugin.name for plugin in announced("hide_llava.methods"))})


def _split_off(before: list[str]) -> str | None:
    """`benchmark`, where bash has cut the word `benchmark=ucit` at the equals sign."""
    line = os.environ.get("COMP_WORDS", "").split()[: int(os.environ.get("COMP_CWORD") or 0) + 1]
    if before and before[-1] == "=":
        return before[-2] if len(before) > 1 else None
    return before[-1] if before and line[-2:] == [before[-1], "="] else None
