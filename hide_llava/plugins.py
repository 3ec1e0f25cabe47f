"""Installed packages: their versions, and what they add to this one, announced as entry points (methods, backbones, studies)."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

from hide_llava.errors import UserError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint


def versions(packages: Iterable[str]) -> dict[str, str]:
    """{package: version} of those that are installed."""
    return {package: version for package in packages if (version := version_of(package)) is not None}


@cache
def version_of(package: str) -> str | None:
    """None where it is not installed. Kept, because reading it takes milliseconds and a run asks for each cell."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None


def announced(group: str) -> list[EntryPoint]:
    """All of a group, whether or not they can be loaded."""
    return list(_announced_on(group, tuple(sys.path)))


@lru_cache(maxsize=8)
def _announced_on(group: str, _: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    """Kept, because reading what all installed packages announce takes 40 ms and a run asks dozens of times."""
    from importlib.metadata import entry_points  # 20 ms at the start of verbs that ask for none

    return tuple(entry_points(group=group))


def origin(entry: EntryPoint) -> str:
    """Where it comes from, for people."""
    return f"{entry.value}" + (f" (package {entry.dist.name} {entry.dist.version})" if entry.dist else "")


def loaded(what: str, entries: list[EntryPoint]) -> Any:
    """The one thing that these entry points of one name stand for. what: for errors, `method 'mine'`.

    Raises:
        UserError: they stand for several things, or it cannot be imported.
    """
    if len({entry.value for entry in entries}) > 1:
        raise UserError(f"{what} is offered by {' and '.join(map(origin, entries))}; uninstall one of them.")
    try:
        return entries[0].load()
    except Exception as error:  # whatever the package does when it is imported
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{what}: its plug-in {origin(entries[0])} cannot be imported: {reason}") from None
