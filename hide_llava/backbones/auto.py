"""From `model.path` to its backbone. LLaVA-1.5 is the one family there is."""

from __future__ import annotations

from pathlib import Path

from transformers import LlavaForConditionalGeneration, PreTrainedModel

from hide_llava.backbones.base import Backbone
from hide_llava.backbones.llama_tokenizer import load_tokenizer
from hide_llava.backbones.llava15 import Llava15
from hide_llava.backbones.llava15_loading import load_llava15
from hide_llava.data.reader import Reader
from hide_llava.errors import UserError
from hide_llava.schema import ModelConfig


def load(config: ModelConfig, root: Path) -> Backbone:
    """Load model, tokenizer and picture settings; the model is frozen, on its device, in eval mode.

    root: the folder that models lie under.

    Raises:
        UserError: folder missing, no model of a family that is known, weights missing, tokenizer not exact.
    """
    return load_llava15(config, root)


def bare(model: PreTrainedModel) -> Backbone:
    """The backbone of a model without a tokenizer, for what can be told from its modules; its weights are not looked at.

    Raises:
        UserError: a model of no family that is known.
    """
    if isinstance(model, LlavaForConditionalGeneration):
        return Llava15(model)
    raise UserError(
        f"{type(model).__name__}: no model of a family that is known; set model.path to a LLaVA-1.5 folder."
    )


def reader_of(folder: Path, clip: Path | None, masks: str = "exact") -> Reader:
    """How the model in a folder reads, without its weights and without pixels. clip: of an original-format folder.

    Raises:
        UserError: no tokenizer there, or nothing says how many positions an image takes.
    """
    # here: what counts a model's modules reads nothing, and needs no image library
    from hide_llava.backbones.llava15_reader import Llava15Reader, stated_image_tokens

    return Llava15Reader(load_tokenizer(folder), stated_image_tokens(folder, clip), masks=masks)
