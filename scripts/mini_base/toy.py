"""Sizes of the small base model `mini`: the real LLaVA-1.5 architecture, about 3.5 million parameters.

48×48 pictures in 12-pixel patches give 16 image tokens; as in LLaVA-1.5 they are taken from the vision tower's
second last layer without the class token. The CLIP text tower and both projections exist for routing only.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import (
    CLIPConfig,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

IMAGE_SIZE = 48
PATCH_SIZE = 12
IMAGE_TOKENS = (IMAGE_SIZE // PATCH_SIZE) ** 2
PROJECTION = 64


def llava_config(vocab_size: int, image_token: int, pad_token: int) -> LlavaConfig:
    """Configuration of the small LLaVA; `vocab_size` counts `<image>` and `<pad>`."""
    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        projection_dim=PROJECTION,
        hidden_act="quick_gelu",
    )
    text = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=160,
        intermediate_size=432,
        num_hidden_layers=8,
        num_attention_heads=5,
        num_key_value_heads=5,
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
        initializer_range=0.06,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=pad_token,
        tie_word_embeddings=False,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=image_token,
        projector_hidden_act="gelu",
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=IMAGE_TOKENS,
        tie_word_embeddings=False,
        pad_token_id=pad_token,
    )


def clip_text_config(vocab_size: int) -> CLIPTextConfig:
    """Configuration of the routing text tower; start and end tokens are the last two ids."""
    return CLIPTextConfig(
        vocab_size=vocab_size,
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=77,
        projection_dim=PROJECTION,
        bos_token_id=vocab_size - 2,
        eos_token_id=vocab_size - 1,
        pad_token_id=vocab_size - 1,
    )


def clip_config(text: CLIPTextConfig, vision: CLIPVisionConfig) -> CLIPConfig:
    """The pair as one CLIP configuration."""
    return CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=PROJECTION)


class ToyBase(nn.Module):
    """LLaVA together with the parts of CLIP that LLaVA leaves out: text tower, both projections, temperature."""

    def __init__(self, llava: LlavaConfig, text: CLIPTextConfig) -> None:
        super().__init__()
        self.llava = LlavaForConditionalGeneration(llava)
        self.text_model = CLIPTextModel(text)
        self.visual_projection = nn.Linear(llava.vision_config.hidden_size, PROJECTION, bias=False)
        self.text_projection = nn.Linear(text.hidden_size, PROJECTION, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(2.6592))

    def see(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels (B, 3, 48, 48) → patch features (B, 16, width) of layer −2 and image embedding (B, PROJECTION)."""
        out = self.llava.model.vision_tower(pixels, output_hidden_states=True)
        return out.hidden_states[-2][:, 1:], self.visual_projection(out.pooler_output)

    def contrastive_loss(self, image: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Symmetric CLIP loss between image embeddings (B, P) and token ids (B, L) of their captions."""
        text = self.text_projection(self.text_model(input_ids=ids, attention_mask=mask).pooler_output)
        image, text = nn.functional.normalize(image.float(), dim=-1), nn.functional.normalize(text.float(), dim=-1)
        logits = self.logit_scale.clamp(max=4.6).exp() * image @ text.T
        target = torch.arange(len(image))
        return (nn.functional.cross_entropy(logits, target) + nn.functional.cross_entropy(logits.T, target)) / 2
