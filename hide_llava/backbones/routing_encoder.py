"""CLIP routing features: image embedding from LLaVA's own tower, text embedding from the text tower.

image: visual_projection(post_layernorm(CLS of the last layer)), not normalised. text: pooled EOS state of the text
tower, *not* projected, not normalised. The two live in different spaces and are never compared with each other.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoTokenizer, CLIPTextModel, LlavaForConditionalGeneration

from hide_llava.backbones.llava15 import Llava15Vision
from hide_llava.backbones.text_encoder import TextEncoder
from hide_llava.errors import UserError


class ClipRoutingEncoder(TextEncoder):
    """The two routing heads, frozen, in fp32.

    Raises:
        UserError: the CLIP folder lacks the text tower or the visual projection, before any work starts.
    """

    def __init__(self, llava: LlavaForConditionalGeneration, folder: Path | str | None):
        super().__init__()
        if folder is None:
            raise UserError(
                "this method routes by CLIP text features, but no CLIP text tower is given; set model.clip to the "
                "folder (or hub id) of the CLIP model that LLaVA's vision tower comes from."
            )
        folder = Path(folder)
        self.post_layernorm = [llava.model.vision_tower.post_layernorm]  # in a list: owned by LLaVA, not by us
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(folder)
            self.text_model, info = CLIPTextModel.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
        except Exception as error:
            raise UserError(f"{folder}: no usable CLIP text tower ({' '.join(str(error).split())[:200]}).") from None
        if info["missing_keys"]:
            raise UserError(f"{folder}: the CLIP text tower lacks weights, first: "
                            f"{sorted(info['missing_keys'])[0]}; set model.clip to a full CLIP folder.")  # fmt: skip
        self.register_buffer("visual_projection", _visual_projection(folder), persistent=False)
        width = llava.config.vision_config.hidden_size
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

        Normalised in fp32 whatever the dtypes are: under CUDA's autocast the tower's layer norms give fp32 states, in
        generation bf16 ones, and CUDA's layer norm refuses weights of another dtype than its input.
        """
        norm = self.post_layernorm[0]
        weight, bias = norm.weight.float(), norm.bias.float()
        normed = nn.functional.layer_norm(vision.cls.float(), norm.normalized_shape, weight, bias, norm.eps)
        return normed @ self.visual_projection.T

    def encode(self, texts: list[str]) -> Tensor:
        tokens = self.tokens(texts, self.text_model.config.max_position_embeddings)
        return self.text_model(tokens["input_ids"], tokens["attention_mask"]).pooler_output.float()


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
