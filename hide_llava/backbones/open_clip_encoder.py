"""Routing features from open_clip (optional): `router.encoder=open_clip:<model>:<weights>`.

Unlike the CLIP encoder this one runs its own vision tower, because LLaVA's is another model. Features are open_clip's
projected embeddings; anchors made with them are not comparable with CLIP's.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import interpolate
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from hide_llava.backbones.base import Vision
from hide_llava.backbones.clip_pixels import ImageTransform
from hide_llava.backbones.routing_encoder import by_row
from hide_llava.backbones.text_encoder import TextEncoder
from hide_llava.data.reader import ROUTING_PIXELS
from hide_llava.errors import UserError


class OpenClipRoutingEncoder(TextEncoder):
    """`name` is `<model>:<weights>`; weights may be a tag, a file, or empty for random (tests). beside: it gets pixels of its
    own (`pixels`); else it resizes LLaVA-1.5's, which are normalised for CLIP.

    Raises:
        UserError: open_clip cannot be imported, or does not know the model or weights.
    """

    def __init__(self, name: str, beside: bool = False):
        super().__init__()
        try:
            import open_clip
        except Exception as error:
            raise UserError(
                f"router.encoder=open_clip needs open_clip_torch and a torchvision that fits torch ({error}); "
                "pip install -e '.[open-clip]', or use router.encoder=clip."
            ) from None
        model, _, weights = name.partition(":")
        try:
            self.model, _, _ = open_clip.create_model_and_transforms(model, pretrained=weights or None)
            self.tokenizer = open_clip.get_tokenizer(model)
        except Exception as error:
            raise UserError(f"router.encoder=open_clip:{name}: {' '.join(str(error).split())[:200]}") from None
        size = self.model.visual.image_size
        self.size = (size, size) if isinstance(size, int) else tuple(size)
        self.model.requires_grad_(False).eval().float()
        with torch.no_grad():
            width = self.text([""]).shape[1]
        self.width = width
        if beside:
            height, width = self.size
            mean, std = (getattr(self.model.visual, f"image_{name}", None) for name in ("mean", "std"))
            size = {"size": {"shortest_edge": min(self.size)}, "crop_size": {"height": height, "width": width}}
            self.pixels = ImageTransform(
                {**size, "image_mean": list(mean or OPENAI_CLIP_MEAN), "image_std": list(std or OPENAI_CLIP_STD)}
            )

    @torch.no_grad()
    def image(self, vision: Vision, pixels: list[dict[str, Tensor]]) -> Tensor:
        """[rows with a picture, d] fp32; of a row with several pictures their mean."""
        rows = [row[ROUTING_PIXELS if hasattr(self, "pixels") else "pixel_values"].float() for row in pixels]
        seen = torch.cat(rows)
        if not hasattr(self, "pixels"):
            seen = interpolate(seen, self.size, mode="bicubic", antialias=True)
        return by_row(self.model.encode_image(seen).float(), rows)

    def encode(self, texts: list[str]) -> Tensor:
        tokens = self.tokenizer(texts).to(next(self.model.parameters()).device)
        return self.model.encode_text(tokens).float()
