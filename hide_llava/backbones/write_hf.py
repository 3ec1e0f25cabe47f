"""Write a LLaVA-1.5 as a transformers folder in the layout of the published conversions (llava-hf).

In memory this package keeps exactly the text vocabulary; upstream code wants an id for the image and one for padding
inside the embedding table. So they are added here, on the way to disk, and nowhere else.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer
from torch import Tensor
from transformers import (
    CLIPImageProcessorPil,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaImageProcessorPil,
    PreTrainedTokenizerFast,
)

from hide_llava.backbones.vicuna import SYSTEM
from hide_llava.errors import UserError
from hide_llava.storage import write_text

# `build_prompt` of vicuna.py as a chat template; a message is a string, or a list of pictures and text.
TEMPLATE = (
    "{{ '" + SYSTEM.replace("'", "\\'") + " ' }}{% for message in messages %}"
    "{{ {'user': 'USER: ', 'assistant': 'ASSISTANT: '}[message['role']] }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for piece in message['content'] if piece['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for piece in message['content'] if piece['type'] == 'text' %}{{ piece['text'] }}{% endfor %}{% endif %}"
    "{{ {'user': ' ', 'assistant': '</s>'}[message['role']] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
EXTRA_ROWS = 64  # what llava-hf adds to the vocabulary: 32,000 → 32,064


def write_hf(
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    preprocessor: Path | Mapping[str, Any] | None = None,
    weights: Mapping[str, Tensor] | None = None,
    transform: str = "crop",
) -> None:
    """Write `model` as a folder that plain `from_pretrained` loads, in the layout of llava-hf.

    The vocabulary V grows by 64 rows, each the mean of the others, for `<image>` = V and `<pad>` = V + 1.
    `preprocessor` is a folder with preprocessor_config.json or that file's content; by default CLIP's for the tower's
    image size. `weights` are written in place of the model's own, by the same names. `transform`: pictures are cropped, as
    llava-hf's folders say, or padded to a square, as LLaVA-1.5 was trained. The chat template is the prompt of vicuna.py.
    `folder` must not exist or be empty; it appears complete or not at all. `model` is not changed.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists already and is not empty; choose another folder or delete it.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    try:
        _widened(model, weights).save_pretrained(temporary)
        write_processor(model, tokenizer, temporary, preprocessor, transform)
        if folder.exists():
            folder.rmdir()
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _widened(
    model: LlavaForConditionalGeneration, weights: Mapping[str, Tensor] | None
) -> LlavaForConditionalGeneration:
    """The model with EXTRA_ROWS more vocabulary rows, sharing all other tensors with `weights` (None: with `model`)."""
    config = LlavaConfig.from_dict(model.config.to_dict())
    vocabulary = model.config.text_config.vocab_size
    config.text_config.vocab_size = vocabulary + EXTRA_ROWS
    config.image_token_index = vocabulary
    config.text_config.pad_token_id = vocabulary + 1
    weights = dict(model.state_dict() if weights is None else weights)
    for name in ("model.language_model.embed_tokens.weight", "lm_head.weight"):
        rows = weights[name][:vocabulary]
        mean = rows.float().mean(0, keepdim=True).to(rows.dtype)
        weights[name] = torch.cat([rows, mean.expand(EXTRA_ROWS, -1)])
    with torch.device("meta"):
        wide = LlavaForConditionalGeneration(config)
    wide.load_state_dict(weights, strict=True, assign=True)
    wide.generation_config.bos_token_id = model.generation_config.bos_token_id
    wide.generation_config.eos_token_id = model.generation_config.eos_token_id
    wide.generation_config.pad_token_id = vocabulary + 1
    return wide


def write_processor(
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    preprocessor: Path | Mapping[str, Any] | None,
    transform: str = "crop",
) -> None:
    """Of `write_hf`, what reads a prompt: tokenizer, picture settings, chat template.

    Raises:
        UserError: the tokenizer is not the model's.
    """
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.add_tokens([AddedToken(text, normalized=False, special=True) for text in ("<image>", "<pad>")])
    vocabulary = model.config.text_config.vocab_size
    if backend.token_to_id("<image>") != vocabulary:
        raise UserError(f"The tokenizer has {len(tokenizer)} tokens, the model {vocabulary} rows; they do not match.")
    converted = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=tokenizer.bos_token,
        eos_token=tokenizer.eos_token,
        unk_token=tokenizer.unk_token,
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    converted.save_pretrained(folder)
    _image_processor(model, preprocessor, transform).save_pretrained(folder)
    write_text(folder / "chat_template.jinja", TEMPLATE)
    settings = {
        "processor_class": "LlavaProcessor",
        "image_token": "<image>",
        "patch_size": model.config.vision_config.patch_size,
        "num_additional_image_tokens": 1,  # the CLS token, dropped again by the "default" strategy
        "vision_feature_select_strategy": model.config.vision_feature_select_strategy,
    }
    (folder / "processor_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _image_processor(
    model: LlavaForConditionalGeneration, preprocessor: Path | Mapping[str, Any] | None, transform: str
) -> CLIPImageProcessorPil | LlavaImageProcessorPil:
    if preprocessor is None:
        size = model.config.vision_config.image_size
        preprocessor = {"size": {"shortest_edge": size}, "crop_size": {"height": size, "width": size}}
    if not isinstance(preprocessor, Mapping):
        from hide_llava.backbones.clip_pixels import read_picture_settings  # needs Pillow, which shapes alone do not

        preprocessor = read_picture_settings(Path(preprocessor))
    settings = {key: value for key, value in preprocessor.items() if not key.endswith("_type")}
    if transform == "crop":
        return CLIPImageProcessorPil(**settings)
    return LlavaImageProcessorPil(**{**settings, "do_pad": True})
