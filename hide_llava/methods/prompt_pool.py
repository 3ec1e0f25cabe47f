"""Prompts (vectors among a sequence's word embeddings) and the matching of samples with their keys."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from hide_llava.adapters.core import Core
from hide_llava.methods.base import Features


def word_prompts(core: Core, *shape: int) -> Tensor:
    """[*shape, d] fp32: embeddings of words drawn at random, as the decoder gets them (some models scale theirs)."""
    words = core.llava.get_input_embeddings()
    drawn = torch.randint(core.backbone.vocabulary, shape)
    return words(drawn.to(words.weight.device)).detach().float()


def query_of(features: Features, parts: str) -> Tensor:
    """[B, D] fp32: the CLIP image embedding at length 1, `image_text`: followed by that of the text (D = d_i + d_t).

    The two live in different spaces, so they are not averaged. Without an image its part is zero.
    """
    image = normalize(features.image.float(), dim=1)
    return image if parts == "image" else torch.cat([image, normalize(features.text.float(), dim=1)], 1)


def best(scores: Tensor, count: int) -> Tensor:
    """[B, M] → [B, count] places of the largest scores, best first; among equals the first, whatever the batch."""
    return scores.argsort(dim=1, descending=True, stable=True)[:, :count]


def chosen_weights(chosen: Tensor, names: list[str]) -> dict[str, Tensor]:
    """Places [B, k] → what a route reports: name → [B], 1 where it was chosen."""
    return {name: (chosen == i).any(1).float() for i, name in enumerate(names)}


def resize(parameters: nn.ParameterDict, names: list[str], make: Callable[[], Tensor]) -> None:
    """Let `parameters` hold exactly `names`: others go, those that are there stay the same objects, new ones are made."""
    for name in [n for n in parameters if n not in names]:
        parameters.pop(name)
    for name in names:
        if name not in parameters:
            parameters[name] = nn.Parameter(make(), requires_grad=False)
