"""What a terminal shows of an answer: text that cannot move its cursor, bars of the routing, the experts side by side."""

from __future__ import annotations

from collections.abc import Mapping

from hide_llava.evaluation.model import Answer

BAR = 20  # characters of a weight of 1


def printable(text: str) -> str:
    """Text without control characters (a model can write any), which a terminal would obey."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)


def bars(routing: Mapping[str, float], titles: Mapping[str, str]) -> list[str]:
    """A line for each weight: name, title of the task, bar, number; weights beyond 1 (softmax over more) fill the bar."""
    named = [(name, titles.get(name, ""), weight) for name, weight in routing.items()]
    left, middle = (max((len(row[i]) for row in named), default=0) for i in (0, 1))
    return [f"  {name:<{left}}  {title:<{middle}}  {bar(weight)}  {weight:.2f}" for name, title, weight in named]


def bar(weight: float) -> str:
    full = round(BAR * min(max(weight, 0.0), 1.0))
    return "█" * full + "░" * (BAR - full)


def side_by_side(experts: Mapping[str, Answer], titles: Mapping[str, str]) -> list[str]:
    """A line or more for each expert: name, title of the task, what it says."""
    named = [(name, titles.get(name, ""), printable(answer.text).split("\n")) for name, answer in experts.items()]
    left, middle = (max((len(row[i]) for row in named), default=0) for i in (0, 1))
    indent = " " * (2 + left + 2 + middle + 2)
    return [f"  {name:<{left}}  {title:<{middle}}  " + f"\n{indent}".join(lines) for name, title, lines in named]
