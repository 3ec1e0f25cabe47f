"""Continual instruction tuning of multimodal LLMs: HiDe-LLaVA and the methods of its field on upstream libraries."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hide_llava.evaluation.finished import FinishedRun as Run

__version__ = "0.1.0"
__all__ = ["Run", "__version__"]


def __getattr__(name: str) -> Any:
    """`hide_llava.Run`, imported when it is asked for: the command line starts without torch."""
    if name == "Run":
        return importlib.import_module("hide_llava.evaluation.finished").FinishedRun
    raise AttributeError(f"module 'hide_llava' has no attribute '{name}'")
