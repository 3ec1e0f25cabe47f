"""LLaVA-1.5 from a folder: in transformers' format or in the authors', its model, tokenizer and picture settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import GenerationConfig, LlavaForConditionalGeneration

from hide_llava.backbones.llama_tokenizer import load_tokenizer
from hide_llava.backbones.loading import device_of, dtype_of, load_weights, resolve_file, set_attention
from hide_llava.backbones.original import is_original, load_original
from hide_llava.backbones.quantized import quantize
from hide_llava.errors import UserError
from hide_llava.schema import ModelConfig

if TYPE_CHECKING:
    from hide_llava.backbones.llava15 import Llava15


def load_llava15(cls: type[Llava15], config: ModelConfig, folder: Path, clip: Path | None) -> Llava15:
    """A LLaVA-1.5 from a folder in Hugging Face's format or in the original one, with all that goes with it.

    Raises:
        UserError: not a LLaVA-1.5, weights missing, tokenizer not exact.
    """
    dtype = dtype_of(config)
    if not is_original(folder):
        _check_architecture(folder)
    tokenizer = load_tokenizer(folder)
    if is_original(folder):
        if clip is None:
            raise UserError(f"{folder}: an original-format LLaVA needs model.clip (its CLIP folder).")
        projector = resolve_file(config.projector, folder)
        llava = load_original(folder, clip, dtype, projector)
        preprocessor = clip
    else:
        llava, preprocessor = load_weights(LlavaForConditionalGeneration, folder, dtype, "LLaVA-1.5"), folder
    vocabulary = len(tokenizer)
    if llava.get_input_embeddings().num_embeddings > vocabulary:
        llava.resize_token_embeddings(vocabulary)  # drop <image>/<pad> rows: no answer or loss can contain them
        text = llava.config.text_config
        if text.pad_token_id is not None and text.pad_token_id >= vocabulary:
            text.pad_token_id = None  # a model that is made of this configuration would have no such row
    set_attention(llava, config)
    if config.quantization != "none":
        quantize(llava, llava.model.language_model.layers, config.quantization, dtype)
    llava.to(device_of(config)).eval().requires_grad_(False)
    # Greedy means greedy: upstream fills in whatever the folder's generation_config.json says (repetition penalties,
    # suppressed words, a time limit), so that file is not used.
    llava.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=0
    )
    return cls(llava, tokenizer, preprocessor, clip)


def _check_architecture(folder: Path) -> None:
    kind = json.loads((folder / "config.json").read_text()).get("architectures") or ["a model of unknown kind"]
    if "LlavaForConditionalGeneration" not in kind:
        raise UserError(
            f"{folder}: holds {kind[0]}, expected LlavaForConditionalGeneration; set model.path to a LLaVA-1.5 folder."
        )
