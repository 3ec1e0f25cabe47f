"""Multitask (joint) training: sequential LoRA's model on all tasks at once, shuffled; the upper reference."""

from __future__ import annotations

from hide_llava.methods.base import Stage, register
from hide_llava.methods.lora import SequentialLora


@register
class Multitask(SequentialLora):
    name = "multitask"

    @classmethod
    def stages(cls, tasks: list[tuple[str, str]]) -> list[Stage]:
        every = tuple(range(len(tasks)))
        return [Stage(0, "joint", "All tasks jointly", every, every)]
