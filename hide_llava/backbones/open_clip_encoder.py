"""Routing features from open_clip (optional): `router.encoder=open_clip:<model>:<weights>`.

Unlike the CLIP encoder this one runs its own vision tower, because LLaVA's is another model. Features are open_clip's
projected embeddings; anchors made with them are not comparable with CLIP's.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from hide_llava.backbones.base import Vision
from hide_llava.backbones.text_encoder import TextEncoder
from hide_llava.errors import UserError


class OpenClipRoutingEncoder(TextEncoder):
    """`name` is `<model>:<weights>`; weights may be a tag, a file, or empty for random (tests).

    Raises:
        UserError: open_clip cannot be imported, or does not know the model or weights.
    """

    def __init__(self, name: str):
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
            self.width = self.text([""]).shape[1]  # of an image feature

    @torch.no_grad()
    def image(self, vision: Vision | None, pixels: list[dict[str, Tensor]]) -> Tensor:
        """CLIP-normalised `pixel_values` [k, 3, H, W] of each row → [n, d] fp32."""
        shown = torch.cat([row["pixel_values"] for row in pixels])
        return self.model.encode_image(interpolate(shown.float(), self.size, mode="bicubic", antialias=True)).float()

    def encode(self, texts: list[str]) -> Tensor:
        tokens = self.tokenizer(texts).to(next(self.model.parameters()).device)
        return self.model.encode_text(tokens).float()
