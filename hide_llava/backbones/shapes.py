"""Shapes without weights: of a model folder, or the published one of a LLaVA-1.5 whose folder is not there.

Published numbers: the config.json of llava-hf/llava-1.5-{7b,13b}-hf, openai/clip-vit-large-patch14-336 and
sentence-transformers/all-MiniLM-L6-v2. Nothing is downloaded but, of another model on the hub, config.json and picture settings.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from transformers import AutoConfig, CLIPVisionConfig, LlamaConfig, LlavaConfig, PretrainedConfig

from hide_llava.backbones.auto import class_of
from hide_llava.backbones.counts import Counts, counted
from hide_llava.backbones.image_budget import LIMITS, keep_to
from hide_llava.backbones.loading import local, tower_width
from hide_llava.backbones.original import is_original, original_config
from hide_llava.backbones.pictures import Picture, image_processor, picture_of
from hide_llava.backbones.processors import match_grids
from hide_llava.errors import UserError
from hide_llava.schema import ModelConfig

LLAMA = {"7b": (4096, 11008, 32, 32), "13b": (5120, 13824, 40, 40)}  # width, MLP width, layers, heads


@dataclass(frozen=True)
class _Layers:
    """What every encoder for routing has: its layers, of a width and an inner one."""

    name: str
    width: int
    layers: int
    mlp: int

    @property
    def linears(self) -> int:
        """Weights that every token or patch is multiplied with."""
        return self.layers * (4 * self.width**2 + 2 * self.width * self.mlp)


@dataclass(frozen=True)
class Tower(_Layers):
    """A text encoder. width: of the feature that it gives."""

    vocabulary: int

    @property
    def parameters(self) -> int:
        """Those and the word embeddings."""
        return self.linears + self.vocabulary * self.width


@dataclass(frozen=True)
class ImageTower(_Layers):
    """A CLIP vision tower beside a model whose own tower is another. Sizes of image and patch in pixels."""

    image: int
    patch: int

    @property
    def parameters(self) -> int:
        """Those and the convolution's."""
        return self.linears + 3 * self.patch**2 * self.width

    @property
    def flops(self) -> int:
        """Of one image."""
        patches = (self.image // self.patch) ** 2
        attention = 4 * self.layers * (patches + 1) ** 2 * self.width
        return 2 * (patches + 1) * self.linears + attention + 2 * patches * 3 * self.patch**2 * self.width


CLIP_TEXT = Tower("CLIP's text tower", 768, 12, 3072, 49408)
CLIP_VISION = ImageTower("CLIP's vision tower", 1024, 24, 4096, 336, 14)
MINILM = Tower("the sentence encoder", 384, 6, 1536, 30522)


@dataclass(frozen=True)
class ModelShape:
    """config: the shape. source: where it is from, for the reader. clip: width of the CLIP image embedding; towers: the
    text encoders by the feature they give. clip_vision: the CLIP tower that gives the image embedding, None: the model's own.
    processor: the picture settings, where they are known."""

    config: PretrainedConfig
    source: str
    clip: int = 768
    clip_text: Tower = CLIP_TEXT
    sentence: Tower = MINILM
    clip_vision: ImageTower | None = None
    processor: Any | None = None

    @property
    def text(self) -> PretrainedConfig:
        """The decoder's configuration."""
        return self.config.get_text_config()

    @property
    def widths(self) -> dict[str, int]:
        """Feature → width, as `Context.widths`."""
        return {"clip_image": self.clip, "clip_text": self.clip_text.width, "sentence": self.sentence.width}

    @cached_property
    def counts(self) -> Counts:
        """Raises UserError for a model of no family that is known."""
        return counted(self.config)

    @cached_property
    def picture(self) -> Picture | None:
        """Of a picture of assumed size; None where nothing says how many positions it takes."""
        return picture_of(self.config, self.processor)

    @property
    def unknown(self) -> str | None:
        """Why operations and memory cannot be told, in words; None where they can."""
        if not self.counts.dense:
            return f"the decoder of {type(self.config).__name__} has experts or layers without attention, which are not counted"
        if self.picture is None:
            return "how many positions an image takes is said by the image processor, which is neither in a folder nor on the hub"
        return None


def published(size: str) -> LlavaConfig:
    """LLaVA-1.5's `7b` or `13b`, as llava-hf publishes it."""
    width, mlp, layers, heads = LLAMA[size]
    text = LlamaConfig(vocab_size=32064, hidden_size=width, intermediate_size=mlp, num_hidden_layers=layers,
                       num_attention_heads=heads, num_key_value_heads=heads, max_position_embeddings=4096)  # fmt: skip
    vision = CLIPVisionConfig(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16,
                              image_size=336, patch_size=14, projection_dim=768)  # fmt: skip
    return LlavaConfig(text_config=text, vision_config=vision, image_token_id=32000, vision_feature_layer=-2)


def model_shape(config: ModelConfig, root: Path, encoder: str = "clip") -> ModelShape:
    """The shape of `model.path`, from its folder under `root` or published. encoder: `router.encoder`; with `own` no CLIP
    stands beside the model.

    Raises:
        UserError: no such folder, and not a model whose shape is known or can be asked of the hub.
    """
    if encoder == "own":
        found = model_shape(config, root)
        width = tower_width(found.config.vision_config)
        return replace(found, clip=width, clip_text=found.sentence, clip_vision=None)
    name = config.path
    if (folder := local(name, root)) is not None:
        if is_original(folder):
            clip = local(config.clip, root)
            if clip is None:
                raise UserError(f"{folder}: the shape of an original-format LLaVA needs model.clip as a folder.")
            return ModelShape(original_config(folder, clip), f"of {folder}", **_encoders(config, root))
        return _read(folder, f"of {folder}", config, root)
    known = re.search(r"llava-v?1\.5-(7b|13b)", name)
    if known:
        size = known.group(1)
        source = f"published LLaVA-1.5-{size.upper()} (there is no folder '{name}' under {root})"
        return ModelShape(published(size), source, **_encoders(config, root))
    try:
        return _read(name, f"of {name} on the hub", config, root)
    except UserError:
        raise
    except Exception:
        raise UserError(f"model '{name}': no such folder under {root}, and no model of that name on the hub.") from None


def _read(name: str | Path, source: str, config: ModelConfig, root: Path) -> ModelShape:
    """Of a folder or a model on the hub. LLaVA-1.5's own tower is CLIP's; beside another model stands CLIP."""
    shape, encoders = AutoConfig.from_pretrained(name), _encoders(config, root)
    if shape.model_type == "llava":
        return ModelShape(shape, source, **encoders)
    vision, image = _clip_vision(local(config.clip, root)), image_processor(name)
    if image is not None:
        unit = getattr(shape, "spatial_merge_size", 1) * getattr(shape.vision_config, "patch_size", 1)
        stand_in = SimpleNamespace(image_processor=image, images_kwargs={}, unit=unit)
        rule = getattr(class_of(shape.model_type), "limit", None) or LIMITS.get(shape.model_type)
        keep_to(config.image, rule, shape.model_type, stand_in, name)
        match_grids(shape, stand_in)
    return ModelShape(shape, source, **encoders, clip_vision=vision, processor=image)


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


def _clip_vision(clip: Path | None) -> ImageTower:
    """Of a local CLIP folder, else the published one."""
    v = None if clip is None else getattr(AutoConfig.from_pretrained(clip), "vision_config", None)
    return CLIP_VISION if v is None else ImageTower(
        CLIP_VISION.name, v.hidden_size, v.num_hidden_layers, v.intermediate_size, v.image_size, v.patch_size)  # fmt: skip
