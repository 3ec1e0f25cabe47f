"""From `model.path` to its backbone: which family a folder holds, and who loads it."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import transformers
from transformers import PreTrainedModel

from hide_llava.backbones.base import Backbone
from hide_llava.backbones.loading import cached, local, resolve
from hide_llava.data.reader import Reader
from hide_llava.errors import UserError, nearest
from hide_llava.plugins import announced, loaded
from hide_llava.precision import allow_tf32
from hide_llava.schema import ModelConfig
from hide_llava.storage import read_json

OLDEST = (5, 18)  # transformers with which all models but LLaVA-1.5 take what `get_image_features` returned
GROUP = "hide_llava.backbones"  # entry points of installed packages: model_type → Backbone
# model_type of a config.json → its file in this folder and its class. `llava` without that key is the original format.
FAMILIES = {
    "llava": "llava15:Llava15",
    "llava_next": "llava_next:LlavaNext",
    "llava_onevision": "llava_next:LlavaOneVision",
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl"), "qwen_vl:QwenVL"),
    "qwen3_vl_moe": "qwen_vl:QwenVLMoe",
    "internvl": "internvl:InternVL",
    **dict.fromkeys(("smolvlm", "idefics3"), "idefics:Idefics3"),
    "gemma3": "gemma3:Gemma3",
    "paligemma": "paligemma:PaliGemma",
    "mistral3": "mistral3:Mistral3",
}


def families() -> list[str]:
    """Every model_type that there is a backbone for, those of installed packages included."""
    return sorted({*FAMILIES, *(entry.name for entry in announced(GROUP))})


def class_of(kind: str) -> type[Backbone] | None:
    """The backbone of a model_type; None where there is none.

    Raises:
        UserError: a package offers one and cannot be imported; transformers is too old for it.
    """
    if kind != "llava" and kind in families():
        check_transformers(kind)
    own = [entry for entry in announced(GROUP) if entry.name == kind]
    if own:
        return loaded(f"backbone '{kind}'", own)
    if kind not in FAMILIES:
        return None
    file, _, name = FAMILIES[kind].partition(":")
    return getattr(importlib.import_module(f"hide_llava.backbones.{file}"), name)


def new_enough() -> bool:
    """Whether the installed transformers is for all models, and not for LLaVA-1.5 alone."""
    return tuple(map(int, re.findall(r"\d+", transformers.__version__)[:2])) >= OLDEST


def check_transformers(kind: str) -> None:
    """Raises UserError where the installed transformers is too old for a model of that type."""
    if not new_enough():
        raise UserError(
            f"a model of type '{kind}' needs transformers {'.'.join(map(str, OLDEST))} or newer, and {transformers.__version__} "
            "is installed: pip install -U transformers. (LLaVA-1.5 works with 5.0 and newer.)"
        )


def family_in(folder: Path) -> type[Backbone]:
    """The backbone of the model in a folder.

    Raises:
        UserError: it is no model folder, or holds a model that no backbone is for.
    """
    file = folder / "config.json"
    if not file.is_file():
        raise UserError(f"{folder}: no config.json, so it is not a model folder; set model.path to one of a known family.")
    settings = read_json(file)
    kind = settings.get("model_type") or ""
    found = class_of("llava" if kind.startswith("llava_") and "mm_projector_type" in settings else kind)
    if found is None:
        raise UserError(
            f"{folder}: holds a model of type '{kind}', which no backbone is for. {nearest(kind, families())} "
            "docs/ADD_A_BACKBONE.md shows how one is added."
        )
    return found


def family_of(config: ModelConfig, root: Path) -> type[Backbone] | None:
    """The backbone of `model.path`: by its config.json, if that lies on this machine, or else by `model.family`; None if
    neither says it. Nothing is downloaded. root: the folder of models.

    Raises:
        UserError: as of `family_in`, or no backbone is for `model.family`.
    """
    folder = local(config.path, root) or cached(config.path)
    if folder is not None:
        return family_in(folder)
    if config.family is None:
        return None
    found = class_of(config.family)
    if found is None:
        raise UserError(f"model.family={config.family}: no backbone is for it. {nearest(config.family, families())}")
    return found


def load(config: ModelConfig, root: Path) -> Backbone:
    """Load model, tokenizer and picture settings; the model is frozen, on its device, in eval mode.

    root: the folder that models lie under.

    Raises:
        UserError: folder missing, no model of a family that is known, weights missing, tokenizer not exact.
    """
    allow_tf32(config.tf32)
    folder, clip = resolve(config.path, root), resolve(config.clip, root)
    return family_in(folder).load(config, folder, clip)


def reader_of(folder: Path, clip: Path | None, masks: str = "exact", config: ModelConfig | None = None) -> Reader:
    """How the model in a folder reads, without its weights. clip: of an original-format folder. config: its image budget.

    Raises:
        UserError: no tokenizer there, or nothing says how a picture is read.
    """
    return family_in(folder).reader_of(folder, config, clip, masks)


def bare(model: PreTrainedModel) -> Backbone:
    """A backbone over a model without a tokenizer, as for counting on the meta device.

    Raises:
        UserError: no backbone is for such a model.
    """
    kind = model.config.model_type
    found = class_of(kind)
    if found is None:
        raise UserError(f"a model of type '{kind}': no backbone is for it. {nearest(kind, families())}")
    return found(model)
