"""From token ids and pixels to the decoder's input: LLaVA's splice, with one forward of the vision tower.

transformers' LLaVA does the same inside its forward, but routing and prompts need the image *before* the decoder, and
the tower must not run twice, so the three upstream pieces (embedding, tower, projector) are called here. Image
positions hold IMAGE_TOKEN (−200), which is outside every vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from hide_llava.data.conversation import IMAGE_TOKEN


@dataclass
class Vision:
    """One pass of the vision tower. patches: [n, P, d_v] of the selected layer. cls: [n, d_v] of the last layer."""

    patches: Tensor
    cls: Tensor


def see(llava: LlavaForConditionalGeneration, pixel_values: Tensor) -> Vision:
    """Run the frozen vision tower once on [n, 3, H, W]."""
    tower, config = llava.model.vision_tower, llava.config
    with torch.no_grad():
        out = tower(pixel_values.to(tower.dtype), output_hidden_states=True)
    chosen = out.hidden_states[config.vision_feature_layer]
    return Vision(chosen[:, 1:] if config.vision_feature_select_strategy == "default" else chosen,
                  out.last_hidden_state[:, 0])  # fmt: skip


def splice(
    llava: LlavaForConditionalGeneration, input_ids: Tensor, vision: Vision | None, project: Callable[[Tensor], Tensor]
) -> Tensor:
    """Token embeddings [B, N, d] with the projected patches at the image positions, in row order."""
    places = input_ids == IMAGE_TOKEN
    embeds = llava.get_input_embeddings()(input_ids.masked_fill(places, 0))
    if vision is None:
        return embeds
    patches = project(vision.patches).to(embeds.dtype)
    if int(places.sum()) != patches.shape[0] * patches.shape[1]:
        raise ValueError(f"{int(places.sum())} image positions for {patches.shape[0]}×{patches.shape[1]} patches")
    return embeds.masked_scatter(places.unsqueeze(-1), patches)


def insert_prompts(
    prompts: Tensor, embeds: Tensor, attention_mask: Tensor, labels: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Insert [B, P, d] vectors after each row's BOS, wherever left padding has put it; labels there are −100."""
    batch, count = prompts.shape[:2]
    length = embeds.shape[1]
    start = attention_mask.long().argmax(1, keepdim=True) + 1  # position after BOS
    position = torch.arange(length + count, device=embeds.device).expand(batch, -1)
    source = torch.where(position < start, position, position - count)
    inserted = (position >= start) & (position < start + count)
    source = torch.where(inserted, length + position - start, source)
    take = source.unsqueeze(-1)
    both = torch.cat([embeds, prompts.to(embeds.dtype)], 1)
    mask = torch.cat([attention_mask, attention_mask.new_ones(batch, count)], 1).gather(1, source)
    if labels is not None:
        labels = torch.cat([labels, labels.new_full((batch, count), -100)], 1).gather(1, source)
    return both.gather(1, take.expand(-1, -1, both.shape[-1])), mask, labels
