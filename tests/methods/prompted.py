"""Methods of prompts on word embeddings alone, features of four records, and cosines in loops."""

from __future__ import annotations

import math
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from hide_llava.adapters.core import Core
from hide_llava.backbones.llava15 import Llava15
from hide_llava.methods.base import Context, Features, Method
from tests.methods.host import tasks

CONTEXT = Context(widths={"clip_image": 6, "clip_text": 6})


def on_words(kind: type[Method], **options: object) -> Method:
    """A method without adapters, set up on a decoder of which only the word embeddings [20, 8] are there."""
    words = nn.Embedding(20, 8)
    llava = SimpleNamespace(
        get_input_embeddings=lambda: words,
        config=SimpleNamespace(text_config=SimpleNamespace(hidden_size=8)),
        device=torch.device("cpu"),
        model=SimpleNamespace(multi_modal_projector=nn.Linear(1, 1)),
        requires_grad_=lambda flag: llava,
    )
    method = kind(kind.Config(**options), Core(Llava15(llava)), tasks())
    method.setup()
    return method


def some_features(seed: int = 0) -> Features:
    """Four records; the second has no image."""
    generator = torch.Generator().manual_seed(seed)
    has_image = torch.tensor([True, False, True, True])
    image = torch.randn(4, 6, generator=generator) * has_image[:, None]
    return Features(image, torch.randn(4, 6, generator=generator), has_image)


def alone(features: Features, row: int) -> Features:
    return Features(*(t[row : row + 1] for t in (features.image, features.text, features.has_image)))


def naive_cosine(a: list[Tensor], b: list[Tensor]) -> Tensor:
    """fp64 scalar; 0 for a zero vector."""
    dot = sum(x * y for x, y in zip(a, b))
    lengths = [sum(x * x for x in v) for v in (a, b)]
    return dot * 0 if 0 in [float(n.detach()) for n in lengths] else dot / (lengths[0].sqrt() * lengths[1].sqrt())


def naive_query(features: Features, row: int) -> list[Tensor]:
    """Unit image feature, then unit text feature, of one record."""
    parts = []
    for part in (features.image[row].double(), features.text[row].double()):
        length = math.sqrt(sum(float(x) ** 2 for x in part))
        parts += [x / length if length else x for x in part]
    return parts
