"""Checks of configuration values, for a dataclass's `__post_init__`: the message names field, value and allowed range."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

_seen: list[tuple[str, str]] | None = None  # what `rules` listens to


def rule(config: Any, name: str, holds: bool, words: str) -> None:
    """Raises ValueError with the field's name, its value and what `words` say of the allowed ones, unless it holds."""
    if _seen is not None:
        _seen.append((name.partition(".")[0], words))
    if not holds:
        raise ValueError(f"{name}={_value(config, name)}: {words}")


def _value(config: Any, name: str) -> Any:
    """Of a field, or of `momentum.old` in a field that is a dictionary."""
    field, _, key = name.partition(".")
    return getattr(config, field)[key] if key else getattr(config, field)


def one_of(config: Any, **allowed: Sequence[str]) -> None:
    """Raises ValueError if a field is not one of its allowed values."""
    for name, values in allowed.items():
        rule(config, name, getattr(config, name) in values, f"expected one of {', '.join(values)}")


def at_least(config: Any, **lowest: float) -> None:
    """Raises ValueError if a field that is not None is below its lowest allowed value, not a number, or infinite."""
    for name, low in lowest.items():
        value = getattr(config, name)
        finite = " and finite" if isinstance(value, float) else ""
        rule(config, name, value is None or low <= value < float("inf"), f"must be at least {low}{finite}")


def above_zero(config: Any, *names: str, most: float = float("inf")) -> None:
    """Raises ValueError if a field that is not None is outside (0, most], or infinite."""
    for name in names:
        value = getattr(config, name)
        holds = value is None or (0 < value <= most and value < float("inf"))
        rule(config, name, holds, f"must be in (0, {most:g}{']' if most < float('inf') else ')'}")


def between(config: Any, low: float, high: float, *names: str, open_end: bool = False) -> None:
    """Raises ValueError if a field (or `field.key` of a dictionary) is outside [low, high], open_end: [low, high)."""
    for name in names:
        value = _value(config, name)
        holds = low <= value <= high and not (open_end and value == high)
        rule(config, name, holds, f"must be in [{low:g}, {high:g}{')' if open_end else ']'}")


def rules(make: Callable[[], Any]) -> list[tuple[str, str]]:
    """(field, what is allowed) of every check that `make()` passes while it makes a configuration, for the pages on methods."""
    global _seen
    _seen = []
    try:
        make()
        return list(dict.fromkeys(_seen))
    finally:
        _seen = None
