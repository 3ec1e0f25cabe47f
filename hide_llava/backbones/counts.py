"""What a model multiplies and keeps, counted from its modules on the meta device: the same for every family."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from hide_llava.backbones import auto
from hide_llava.backbones.loading import tower_width
from hide_llava.errors import UserError

MATRICES = (nn.Linear, nn.Conv2d, nn.Conv3d)
_FOUND: dict[str, Counts] = {}  # configuration as JSON → its counts: a skeleton of 7 B takes a third of a second


@dataclass(frozen=True)
class Counts:
    """Numbers of one model without adapters; those of the decoder are of all its `layers` together, where they have layers.

    parameters: of the whole model. linears: weights in the decoder's linears. read, written: numbers that these read and
    write for one position. normed: that norms read. width: of a hidden state; heads: of all heads of a layer together;
    inner: of the MLP. vocabulary: rows of lm_head. dense: no weight of a decoder layer is multiplied but by its linears.
    tower: weights of the vision tower's linears, convolution: of its convolution, tower_heads: of all heads of its layers.
    projector: (weights, those of them that read the frozen tower's states as they are) of each of its parts.
    """

    parameters: int
    layers: int
    linears: int
    read: int
    written: int
    normed: int
    width: int
    heads: int
    inner: int
    vocabulary: int
    dense: bool
    tower: int
    convolution: int
    tower_heads: int
    projector: tuple[tuple[int, int], ...]


def skeleton(config: PretrainedConfig) -> PreTrainedModel:
    """The model's modules without weights.

    Raises:
        UserError: no image-and-text model of transformers has such a configuration.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING as known

    if type(config) not in known:
        raise UserError(
            f"model type '{config.model_type}': transformers has no model of it that reads images and text."
        )
    with torch.device("meta"):
        return known[type(config)](copy.deepcopy(config))  # a model writes into its configuration


def thinned(config: PretrainedConfig) -> PretrainedConfig:
    """The same with a vision tower of one layer: no method adapts the tower, and it takes time to make."""
    thin = copy.deepcopy(config)
    setattr(thin.vision_config, "depth" if hasattr(thin.vision_config, "depth") else "num_hidden_layers", 1)
    return thin


def cut(config: PretrainedConfig, layers: int) -> PretrainedConfig:
    """The same with a decoder of as many layers."""
    short = copy.deepcopy(config)
    text = short.get_text_config()
    text.num_hidden_layers = layers
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]
    return short


def counted(config: PretrainedConfig) -> Counts:
    """Of a model of that configuration.

    Raises:
        UserError: of no family that is known.
    """
    key = config.to_json_string()
    if key not in _FOUND:
        _FOUND[key] = _counted(config)
    return _FOUND[key]


def _counted(config: PretrainedConfig) -> Counts:
    model = skeleton(config)
    backbone = auto.bare(model)
    text, vision, layers = config.get_text_config(), config.vision_config, backbone.layers
    heads = text.num_attention_heads * (getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)
    linears = [m for m in layers.modules() if isinstance(m, nn.Linear)]
    multiplied = {id(m.weight) for m in linears}
    projector = backbone.projector
    parts = list(projector) if isinstance(projector, nn.ModuleList) else [projector]
    inside = {id(m) for m in projector.modules()}
    tower = [
        m for m in model.get_encoder(modality="image").modules() if isinstance(m, MATRICES) and id(m) not in inside
    ]
    linear = sum(m.weight.numel() for m in tower if isinstance(m, nn.Linear))
    return Counts(
        parameters=sum(p.numel() for p in model.parameters()),
        layers=len(layers),
        linears=sum(m.weight.numel() for m in linears),
        read=sum(m.in_features for m in linears),
        written=sum(m.out_features for m in linears),
        normed=sum(_normed(name, m, text.num_attention_heads, getattr(text, "num_key_value_heads", None))
                   for name, m in layers.named_modules()),
        width=text.hidden_size,
        heads=heads,
        inner=text.intermediate_size,
        vocabulary=model.get_output_embeddings().weight.shape[0],
        dense=all(p.dim() < 2 or id(p) in multiplied for p in layers.parameters()),
        tower=linear,
        convolution=sum(m.weight.numel() for m in tower) - linear,
        tower_heads=tower_width(vision),
        projector=tuple(_part(part) for part in parts),
    )  # fmt: skip


def _normed(name: str, module: nn.Module, heads: int, key_heads: int | None) -> int:
    """Numbers that a norm of a decoder layer reads for one position, 0 of another module. Those of queries and keys have the
    width of a head, or of all heads."""
    kind = name.rpartition(".")[2]
    weight = getattr(module, "weight", None)
    if not kind.endswith("norm") or weight is None:
        return 0
    return weight.numel() * {"q_norm": heads, "k_norm": key_heads or heads}.get(kind, 1)


def _part(part: nn.Module) -> tuple[int, int]:
    """Matrices of one part of the projector, held by a module or by itself. The first module needs no gradient for what it
    reads if that comes from the frozen tower, so not if a trained norm stands before it."""
    first = next((m for m in part.modules() if next(m.parameters(recurse=False), None) is not None), None)
    return sum(p.numel() for p in part.parameters() if p.dim() > 1), first.weight.numel() if isinstance(
        first, nn.Linear
    ) else 0
