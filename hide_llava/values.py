"""Checks of configuration values, for a dataclass's `__post_init__`: the message names field, value and allowed range."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def one_of(config: Any, **allowed: Sequence[str]) -> None:
    """Raises ValueError if a field is not one of its allowed values."""
    for name, values in allowed.items():
        if getattr(config, name) not in values:
            raise ValueError(f"{name}={getattr(config, name)}: expected one of {', '.join(values)}")


def at_least(config: Any, **lowest: float) -> None:
    """Raises ValueError if a field that is not None is below its lowest allowed value (or not a number)."""
    for name, low in lowest.items():
        value = getattr(config, name)
        if value is not None and not value >= low:
            raise ValueError(f"{name}={value}: must be at least {low}")


def above_zero(config: Any, *names: str, most: float = float("inf")) -> None:
    """Raises ValueError if a field that is not None is outside (0, most]."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not 0 < value <= most:
            raise ValueError(f"{name}={value}: must be in (0, {most:g}]")
