"""Zero-shot: the base model, no training. The lower reference of every table."""

from __future__ import annotations

from hide_llava.methods.base import Method, Stage, register


@register
class ZeroShot(Method):
    name = "zero_shot"
    trains = False

    @classmethod
    def stages(cls, tasks: list[tuple[str, str]]) -> list[Stage]:
        return [Stage(0, "zero-shot", "Zero-shot", (), tuple(range(len(tasks))))]
