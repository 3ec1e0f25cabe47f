"""What samples are routed by: an image feature and a text feature from CLIP, or from the model's own tower.

CLIP's image: visual_projection(post_layernorm(CLS of the last layer)), not normalised. Its text: pooled EOS state of the text
tower, *not* projected, not normalised. The two live in different spaces and are never compared with each other. LLaVA-1.5's
vision tower is CLIP's, so that it is not run twice; beside any other model stands a whole CLIP, with pixels of its own.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoTokenizer, CLIPTextModel, CLIPVisionModel, LlavaForConditionalGeneration

from hide_llava.backbones.base import Backbone, Vision
from hide_llava.backbones.clip_pixels import ImageTransform
from hide_llava.backbones.llava15 import Llava15Vision
from hide_llava.backbones.loading import tower_width
from hide_llava.backbones.text_encoder import TextEncoder
from hide_llava.data.reader import ROUTING_PIXELS
from hide_llava.errors import UserError


class ClipRoutingEncoder(TextEncoder):
    """The two routing heads, frozen, in fp32.

    Raises:
        UserError: the CLIP folder lacks the text tower or the visual projection, before any work starts.
    """

    def __init__(self, llava: LlavaForConditionalGeneration, folder: Path | str | None):
        self._load(folder, llava.model.vision_tower.post_layernorm, llava.config.vision_config.hidden_size)

    def _load(self, folder: Path | str | None, post_layernorm: nn.LayerNorm, width: int) -> None:
        super().__init__()
        folder = given(folder)
        self.post_layernorm = [post_layernorm]  # in a list: owned by the tower, not by us
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(folder)
            self.text_model, info = CLIPTextModel.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
        except Exception as error:
            raise UserError(f"{folder}: no usable CLIP text tower ({' '.join(str(error).split())[:200]}).") from None
        if info["missing_keys"]:
            raise UserError(f"{folder}: the CLIP text tower lacks weights, first: "
                            f"{sorted(info['missing_keys'])[0]}; set model.clip to a full CLIP folder.")  # fmt: skip
        self.register_buffer("visual_projection", _visual_projection(folder), persistent=False)
        if self.visual_projection.shape[1] != width:
            raise UserError(
                f"{folder}: visual_projection takes {self.visual_projection.shape[1]} features but LLaVA's vision "
                f"tower gives {width}; model.clip must be the CLIP that the tower comes from."
            )
        self.requires_grad_(False).eval()

    @property
    def width(self) -> int:
        """Of an image feature."""
        return self.visual_projection.shape[0]

    @torch.no_grad()
    def image(self, vision: Llava15Vision, pixels: list[dict[str, Tensor]]) -> Tensor:
        """One pass of LLaVA's tower over n pictures → [n, d] fp32 image embeddings, from the CLS states of the last layer.

        vision: of the backbone. pixels: of the rows with a picture, for encoders that look for themselves.

        Normalised in fp32 whatever the dtypes are: under CUDA's autocast the tower's layer norms give fp32 states, in
        generation bf16 ones, and CUDA's layer norm refuses weights of another dtype than its input.
        """
        return self._embedded(vision.cls)

    def _embedded(self, cls: Tensor) -> Tensor:
        norm = self.post_layernorm[0]
        weight, bias = norm.weight.float(), norm.bias.float()
        normed = nn.functional.layer_norm(cls.float(), norm.normalized_shape, weight, bias, norm.eps)
        return normed @ self.visual_projection.T

    def encode(self, texts: list[str]) -> Tensor:
        tokens = self.tokens(texts, self.text_model.config.max_position_embeddings)
        return self.text_model(tokens["input_ids"], tokens["attention_mask"]).pooler_output.float()


class ClipBeside(ClipRoutingEncoder):
    """A whole CLIP beside a model whose tower is another's; all in fp32.

    pixels: RGB picture → what it takes of it, padded to a square as LLaVA-1.5 does, so that features of both are alike.
    """

    def __init__(self, folder: Path | None):
        folder = given(folder)
        try:
            vision, info = CLIPVisionModel.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
        except Exception as error:
            raise UserError(f"{folder}: no usable CLIP vision tower ({' '.join(str(error).split())[:200]}).") from None
        if info["missing_keys"]:
            raise UserError(f"{folder}: the CLIP vision tower lacks weights, first: {sorted(info['missing_keys'])[0]}; "
                            "set model.clip to a full CLIP folder.")  # fmt: skip
        self._load(folder, vision.post_layernorm, vision.config.hidden_size)
        self.vision = vision.requires_grad_(False).eval()
        self.pixels = ImageTransform(folder)

    @torch.no_grad()
    def image(self, vision: Vision, pixels: list[dict[str, Tensor]]) -> Tensor:
        """[rows with a picture, d] fp32; of a row with several pictures their mean."""
        rows = [row[ROUTING_PIXELS] for row in pixels]
        states = self.vision(torch.cat(rows).float()).last_hidden_state
        return by_row(self._embedded(states[:, 0]), rows)


class OwnFeatures(TextEncoder):
    """The mean of the model's own tower states, and a sentence encoder's text: no second image model.

    Not one space for both, and the image feature depends on how the model's processor resizes pictures.
    """

    def __init__(self, backbone: Backbone, sentence: TextEncoder):
        super().__init__()
        self.width = tower_width(backbone.model.config.vision_config)
        self.sentence = sentence

    def image(self, vision: Vision, pixels: list[dict[str, Tensor]]) -> Tensor:
        """[rows with a picture, d_v] fp32."""
        return vision.pooled

    def text(self, texts: list[str]) -> Tensor:
        return self.sentence.text(texts)

    def encode(self, texts: list[str]) -> Tensor:
        return self.sentence.encode(texts)


def given(folder: Path | str | None) -> Path:
    """Raises UserError where there is no CLIP."""
    if folder is None:
        raise UserError(
            "this method routes by CLIP features, but no CLIP is given; set model.clip to the folder (or hub id) of a CLIP "
            "model: for LLaVA-1.5 the one that its vision tower comes from, openai/clip-vit-large-patch14-336."
        )
    return Path(folder)


def by_row(features: Tensor, rows: list[Tensor]) -> Tensor:
    """Features [pictures, d] → their means [rows, d]; rows: tensors whose first dimension are each row's pictures."""
    return torch.stack([part.mean(0) for part in features.split([len(row) for row in rows])])


def _visual_projection(folder: Path) -> Tensor:
    """`visual_projection.weight` [d, d_v] from a CLIP folder, reading that one tensor."""
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            if "visual_projection.weight" in tensors.keys():  # noqa: SIM118
                return tensors.get_tensor("visual_projection.weight").float()
    for file in sorted(folder.glob("pytorch_model*.bin")):
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        if "visual_projection.weight" in state:
            return state["visual_projection.weight"].float()
    raise UserError(f"{folder}: no visual_projection.weight; routing needs a full CLIP folder, not the vision half.")
