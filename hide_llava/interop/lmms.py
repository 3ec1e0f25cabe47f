"""What the entry point `lmms_eval.models` of this package names: `lmms-eval --model hide_llava` finds the model by it.

lmms-eval is not needed to import anything else of this package, and this module is only imported by it (its
module `lmms_eval.models.registry_v2`, 0.7).
"""

from __future__ import annotations

from typing import Any

NAME = "hide_llava"


def manifest() -> Any:
    """The `ModelManifest` that lmms-eval registers: a model of chat messages."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id=NAME, chat_class_path="hide_llava.interop.lmms_model.HideLlava")
