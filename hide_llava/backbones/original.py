"""LLaVA-1.5 in its original format (liuhaotian/llava-v1.5-7b and checkpoints made from it) → transformers' Llava.

The original folder holds LLaMA and the projector under the names of its own code; the vision tower is usually left in
the CLIP folder. In memory the vocabulary stays exactly the text vocabulary: no rows for `<image>` and `<pad>`, so loss
and logits are those of the original. `write_hf` adds them, as the published converted checkpoints do.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from hide_llava.backbones.write_hf import write_hf
from hide_llava.errors import UserError

__all__ = ["is_original", "load_original", "original_config", "write_hf"]

# Name in an original checkpoint → name in memory; the first pattern that matches counts. None: not a weight we need.
NAMES: tuple[tuple[str, str | None], ...] = (
    (r".*rotary_emb\.inv_freq$", None),  # computed
    (r".*embeddings\.position_ids$", None),  # computed
    (r"^model\.vision_tower\.vision_tower\.vision_model\.(.*)$", r"model.vision_tower.\1"),
    (r"^model\.mm_projector\.0\.(weight|bias)$", r"model.multi_modal_projector.linear_1.\1"),
    (r"^model\.mm_projector\.2\.(weight|bias)$", r"model.multi_modal_projector.linear_2.\1"),
    (r"^model\.(embed_tokens|layers|norm)\.(.*)$", r"model.language_model.\1.\2"),
    (r"^lm_head\.weight$", "lm_head.weight"),
)
CLIP_NAMES: tuple[tuple[str, str | None], ...] = (
    (r".*embeddings\.position_ids$", None),
    (r"^(text_model\.|text_projection\.|visual_projection\.|logit_scale$)", None),  # only used for routing
    (r"^vision_model\.(.*)$", r"model.vision_tower.\1"),
)
# mm_projector.bin holds the names of whatever wrapped the model when it was saved.
PROJECTOR_NAMES: tuple[tuple[str, str | None], ...] = (
    (r"^(?:.*\.)?mm_projector\.0\.(weight|bias)$", r"model.multi_modal_projector.linear_1.\1"),
    (r"^(?:.*\.)?mm_projector\.2\.(weight|bias)$", r"model.multi_modal_projector.linear_2.\1"),
)
LLAMA_KEYS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "hidden_act", "max_position_embeddings", "initializer_range", "rms_norm_eps", "rope_theta", "rope_scaling",
    "attention_bias", "bos_token_id", "eos_token_id", "pad_token_id",
)  # fmt: skip
STRATEGIES = {"patch": "default", "cls_patch": "full"}


def is_original(folder: Path) -> bool:
    """Whether `folder` is a LLaVA model in the original format (as opposed to a converted one)."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        return False
    config = _read_json(path)
    return "vision_config" not in config and "mm_vision_tower" in config


def load_original(
    folder: Path, clip_folder: Path, dtype: torch.dtype, projector_file: Path | None = None
) -> LlavaForConditionalGeneration:
    """The model of an original-format `folder`, on the CPU, in eval mode.

    `clip_folder` gives the vision tower's config, and its weights where `folder` does not hold them.
    `projector_file` (an mm_projector.bin) overrides the projector in `folder`. Raises UserError listing every weight
    that is missing, unexpected or of the wrong shape, and for model variants other than LLaVA-1.5.
    """
    folder, clip_folder = Path(folder), Path(clip_folder)
    config = original_config(folder, clip_folder)
    weights, unexpected = _rename(_read_weights(folder), NAMES)
    if not any(name.startswith("model.vision_tower.") for name in weights):
        tower, unknown = _rename(_read_weights(clip_folder), CLIP_NAMES)
        weights |= tower
        unexpected += unknown
    if projector_file is not None:
        projector, unknown = _rename(_read_file(Path(projector_file)), PROJECTOR_NAMES)
        if unknown or not projector:
            raise UserError(f"{projector_file} is not a LLaVA-1.5 projector; it holds {_list(unknown) or 'nothing'}.")
        weights |= projector
    _account(weights, unexpected, config, folder)
    model = LlavaForConditionalGeneration.from_pretrained(None, config=config, state_dict=weights, dtype=dtype)
    model.generation_config.bos_token_id = config.text_config.bos_token_id
    model.generation_config.eos_token_id = config.text_config.eos_token_id
    model.generation_config.pad_token_id = config.text_config.pad_token_id
    return model.eval()


def original_config(folder: Path, clip_folder: Path) -> LlavaConfig:
    """The transformers config of an original-format folder; `image_token_index` is the first id after the text's."""
    original = _read_json(folder / "config.json")
    _check_variant(original, folder)
    clip = _read_json(clip_folder / "config.json")
    if clip.get("model_type") == "clip":
        vision = dict(clip["vision_config"], projection_dim=clip.get("projection_dim", 512))
    elif clip.get("model_type") == "clip_vision_model":
        vision = clip
    else:
        raise UserError(f"{clip_folder}: holds {clip.get('model_type')!r}, expected a CLIP model.")
    text = {key: original[key] for key in LLAMA_KEYS if original.get(key) is not None}
    vision_config = CLIPVisionConfig.from_dict(vision)
    if original.get("mm_hidden_size") not in (None, vision_config.hidden_size):
        raise UserError(
            f"{folder}: the projector expects a vision tower of width {original['mm_hidden_size']}, "
            f"{clip_folder} has {vision_config.hidden_size}; use the CLIP that this model was trained with."
        )
    return LlavaConfig(
        vision_config=vision_config,
        text_config=LlamaConfig(**text),
        image_token_index=original["vocab_size"],
        image_seq_length=(vision_config.image_size // vision_config.patch_size) ** 2,
        projector_hidden_act="gelu",
        multimodal_projector_bias=True,
        vision_feature_layer=original.get("mm_vision_select_layer", -2),
        vision_feature_select_strategy=STRATEGIES[original.get("mm_vision_select_feature", "patch")],
    )


# ------------------------------------------------------------------------------------------------------ reading weights


def _read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a model folder: safetensors if there are any, else pickled files read without code execution."""
    for pattern in ("model*.safetensors", "pytorch_model*.bin"):
        files = sorted(folder.glob(pattern))
        if files:
            break
    else:
        raise UserError(f"{folder} holds no weights (model*.safetensors or pytorch_model*.bin).")
    for index in folder.glob(f"{pattern.split('*')[0]}*.index.json"):
        named = set(_read_json(index).get("weight_map", {}).values())
        absent = sorted(named - {file.name for file in files})
        if absent:
            raise UserError(f"{folder}: {index.name} names {', '.join(absent)}, which is not there; download it again.")
        files = [file for file in files if file.name in named]
    weights: dict[str, Tensor] = {}
    for file in files:
        weights |= _read_file(file)
    return weights


def _read_file(file: Path) -> dict[str, Tensor]:
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        weights = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError:
        raise UserError(f"{file} does not exist.") from None
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, OSError, ValueError, EOFError) as error:
        raise UserError(f"{file} cannot be read as plain tensors: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise UserError(f"{file} does not hold a dictionary of tensors.")
    return weights


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist.") from None
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}") from error


def _rename(
    weights: Mapping[str, Tensor], names: tuple[tuple[str, str | None], ...]
) -> tuple[dict[str, Tensor], list[str]]:
    """Weights under their names in memory, and the original names that no pattern covers."""
    renamed: dict[str, Tensor] = {}
    unknown: list[str] = []
    for name, tensor in weights.items():
        for pattern, target in names:
            match = re.match(pattern, name)
            if match:
                if target is not None:
                    renamed[match.expand(target)] = tensor
                break
        else:
            unknown.append(name)
    return renamed, unknown


def _account(weights: dict[str, Tensor], unexpected: list[str], config: LlavaConfig, folder: Path) -> None:
    """Every weight of the model exactly once and nothing else, or UserError with the names."""
    with torch.device("meta"):
        wanted = {name: tensor.shape for name, tensor in LlavaForConditionalGeneration(config).state_dict().items()}
    missing = sorted(set(wanted) - set(weights))
    unexpected = sorted(unexpected) + sorted(set(weights) - set(wanted))
    shapes = [
        f"{name} {tuple(weights[name].shape)} instead of {tuple(shape)}"
        for name, shape in wanted.items()
        if name in weights and weights[name].shape != shape
    ]
    faults = [f"{kind}: {_list(names)}" for kind, names in
              (("missing", missing), ("unexpected", unexpected), ("wrong shape", shapes)) if names]  # fmt: skip
    if faults:
        raise UserError(f"{folder}: the weights do not make a LLaVA-1.5 model; {'; '.join(faults)}.")


def _list(names: list[str], limit: int = 8) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def _check_variant(config: Mapping[str, Any], folder: Path) -> None:
    """Only what LLaVA-1.5 is; other variants would load and answer wrongly."""
    allowed = {
        "mm_projector_type": ("mlp2x_gelu",),
        "mm_vision_select_feature": tuple(STRATEGIES),
        "mm_use_im_start_end": (False, None),
        "mm_use_im_patch_token": (False, None),
        "tie_word_embeddings": (False, None),
    }
    for key, values in allowed.items():
        if config.get(key, values[0]) not in values:
            raise UserError(f"{folder}/config.json: {key} is {config[key]!r}; only LLaVA-1.5 ({values[0]!r}) is read.")
    if "vocab_size" not in config:
        raise UserError(f"{folder}/config.json has no vocab_size; it is not the config of a LLaVA model.")
