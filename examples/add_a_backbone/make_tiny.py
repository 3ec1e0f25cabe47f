"""Write a random Aya Vision of three layers, which loads like a published one.

    python examples/add_a_backbone/make_tiny.py models/tiny-aya

A tiny model of a family shows in seconds what its backbone does wrong. It needs all that a published folder has: config.json
and weights, a tokenizer with the family's special tokens and chat template, and the settings of its image processor.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AyaVisionConfig,
    AyaVisionForConditionalGeneration,
    AyaVisionProcessor,
    GotOcr2ImageProcessorPil,
    PreTrainedTokenizerFast,
)

BOS, END, PAD, PATCH = "<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>", "<PAD>", "<|IMG_PATCH|>"
SPECIAL = [PAD, BOS, END, PATCH, "<image>", "<|START_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>", "TILE_GLOBAL",
           "<|START_OF_IMG|>", "<|END_OF_IMG|>", *(f"TILE_{i}" for i in range(1, 5))]  # fmt: skip
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|START_OF_TURN_TOKEN|>"
    "{{ '<|CHATBOT_TOKEN|>' if message['role'] == 'assistant' else '<|USER_TOKEN|>' }}"
    "{% for piece in message['content'] %}{{ '<image>' if piece['type'] == 'image' else piece['text'] }}{% endfor %}"
    "<|END_OF_TURN_TOKEN|>{% endfor %}{% if add_generation_prompt %}<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>{% endif %}"
)
TEXT = ["What is the object in the image? How many are there? Answer with a single word or the option's letter."]


def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level one of 400 tokens."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        TEXT,
        trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False),
    )
    made = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=BOS, eos_token=END, pad_token=PAD)
    made.chat_template = TEMPLATE
    return made


def write(folder: Path) -> None:
    """The model, the same every time. Weights are not small, so that what a test compares does differ."""
    torch.manual_seed(0)
    made = tokenizer()
    bos, end, pad, patch = made.convert_tokens_to_ids([BOS, END, PAD, PATCH])
    text = {"model_type": "cohere2", "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3,
            "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": len(made), "initializer_range": 0.2,
            "bos_token_id": bos, "eos_token_id": end, "pad_token_id": pad, "tie_word_embeddings": False}  # fmt: skip
    vision = {"model_type": "siglip_vision_model", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
              "num_attention_heads": 2, "image_size": 28, "patch_size": 7, "vision_use_head": False}  # fmt: skip
    config = AyaVisionConfig(
        text_config=text, vision_config=vision, downsample_factor=2, image_token_index=patch, tie_word_embeddings=False
    )
    model = AyaVisionForConditionalGeneration(config).float()
    for weight in (p for p in model.parameters() if p.dim() > 1):
        torch.nn.init.normal_(weight, std=0.2)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = end, pad
    model.save_pretrained(folder)
    square = {"height": 28, "width": 28}
    image = GotOcr2ImageProcessorPil(size=square, crop_to_patches=True, min_patches=1, max_patches=4)
    processor = AyaVisionProcessor(image, made, patch_size=7, img_size=28, downsample_factor=2, chat_template=TEMPLATE)
    processor.save_pretrained(folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write a tiny random Aya Vision.")
    parser.add_argument("folder", type=Path)
    write(parser.parse_args().folder)
