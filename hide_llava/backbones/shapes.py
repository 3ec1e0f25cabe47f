"""Shapes without weights: of a model folder, or the published one of a LLaVA-1.5 whose folder is not there.

Published numbers: the config.json of llava-hf/llava-1.5-{7b,13b}-hf, openai/clip-vit-large-patch14-336 and
sentence-transformers/all-MiniLM-L6-v2. Nothing is downloaded but, for another model on the hub, its config.json.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PretrainedConfig,
)

from hide_llava.backbones.loading import local
from hide_llava.backbones.original import is_original, original_config
from hide_llava.errors import UserError
from hide_llava.schema import ModelConfig

LLAMA = {"7b": (4096, 11008, 32, 32), "13b": (5120, 13824, 40, 40)}  # width, MLP width, layers, heads


@dataclass(frozen=True)
class Tower:
    """A text encoder for routing. width: of the feature that it gives."""

    name: str
    width: int
    layers: int
    mlp: int
    vocabulary: int

    @property
    def linears(self) -> int:
        """Weights that every token is multiplied with."""
        return self.layers * (4 * self.width**2 + 2 * self.width * self.mlp)

    @property
    def parameters(self) -> int:
        """Those and the word embeddings."""
        return self.linears + self.vocabulary * self.width


CLIP_TEXT = Tower("CLIP's text tower", 768, 12, 3072, 49408)
MINILM = Tower("the sentence encoder", 384, 6, 1536, 30522)


@dataclass(frozen=True)
class ModelShape:
    """llava: the shape. source: where it is from, for the reader. clip: width of the CLIP image embedding; towers: the
    text encoders by the feature they give."""

    llava: LlavaConfig
    source: str
    clip: int = 768
    clip_text: Tower = CLIP_TEXT
    sentence: Tower = MINILM

    @property
    def widths(self) -> dict[str, int]:
        """Feature → width, as `Context.widths`."""
        return {"clip_image": self.clip, "clip_text": self.clip_text.width, "sentence": self.sentence.width}


def published(size: str) -> LlavaConfig:
    """LLaVA-1.5's `7b` or `13b`, as llava-hf publishes it."""
    width, mlp, layers, heads = LLAMA[size]
    text = LlamaConfig(vocab_size=32064, hidden_size=width, intermediate_size=mlp, num_hidden_layers=layers,
                       num_attention_heads=heads, num_key_value_heads=heads, max_position_embeddings=4096)  # fmt: skip
    vision = CLIPVisionConfig(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16,
                              image_size=336, patch_size=14, projection_dim=768)  # fmt: skip
    return LlavaConfig(text_config=text, vision_config=vision, image_token_id=32000, vision_feature_layer=-2)


def model_shape(config: ModelConfig, root: Path) -> ModelShape:
    """The shape of `model.path`, from its folder under `root` or published.

    Raises:
        UserError: no such folder, and not a model whose shape is known or can be asked of the hub.
    """
    name = config.path
    if (folder := local(name, root)) is not None:
        if is_original(folder):
            clip = local(config.clip, root)
            if clip is None:
                raise UserError(f"{folder}: the shape of an original-format LLaVA needs model.clip as a folder.")
            return ModelShape(original_config(folder, clip), f"of {folder}", **_encoders(config, root))
        return ModelShape(AutoConfig.from_pretrained(folder), f"of {folder}", **_encoders(config, root))
    known = re.search(r"llava-v?1\.5-(7b|13b)", name)
    if known:
        size = known.group(1)
        source = f"published LLaVA-1.5-{size.upper()} (there is no folder '{name}' under {root})"
        return ModelShape(published(size), source, **_encoders(config, root))
    try:
        return ModelShape(AutoConfig.from_pretrained(name), f"of {name} on the hub", **_encoders(config, root))
    except Exception:
        raise UserError(f"model '{name}': no such folder under {root}, and no model of that name on the hub.") from None


def _encoders(config: ModelConfig, root: Path) -> dict[str, int | Tower]:
    """Routing encoders of local folders; what is not there has the published shape."""
    found: dict[str, int | Tower] = {}
    clip = local(config.clip, root)
    if clip is not None and hasattr(both := AutoConfig.from_pretrained(clip), "text_config"):
        found["clip"] = both.projection_dim
        found["clip_text"] = _tower(CLIP_TEXT.name, both.text_config)
    if config.sentence == "clip":
        found["sentence"] = found.get("clip_text", CLIP_TEXT)
    elif (folder := local(config.sentence, root)) is not None:
        found["sentence"] = _tower(MINILM.name, AutoConfig.from_pretrained(folder))
    return found


def _tower(name: str, config: PretrainedConfig) -> Tower:
    return Tower(name, config.hidden_size, config.num_hidden_layers, config.intermediate_size, config.vocab_size)


def skeleton(shape: LlavaConfig) -> LlavaForConditionalGeneration:
    """The model's modules without weights."""
    with torch.device("meta"):
        return LlavaForConditionalGeneration(shape)
