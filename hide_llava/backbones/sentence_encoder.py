"""Sentence embeddings of a sentence-transformers folder through transformers: mean over the real tokens, then unit norm.

Reads the folder's own settings (`modules.json`, `1_Pooling/config.json`, `sentence_bert_config.json`), e.g. of
sentence-transformers/all-MiniLM-L6-v2 [384 features], so the sentence-transformers package is not needed.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

from hide_llava.backbones.text_encoder import TextEncoder
from hide_llava.errors import UserError
from hide_llava.storage import read_json


class SentenceEncoder(TextEncoder):
    """Frozen, fp32.

    Raises:
        UserError: not a readable folder of this kind, or one that pools in another way than by the mean.
    """

    def __init__(self, folder: Path):
        super().__init__()
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(folder)
            self.encoder, info = AutoModel.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
        except Exception as error:
            raise UserError(f"{folder}: no usable sentence encoder ({' '.join(str(error).split())[:200]}).") from None
        lacking = sorted(k for k in info["missing_keys"] if not k.startswith("pooler."))  # BERT's pooler is not used
        if lacking:
            raise UserError(f"{folder}: the sentence encoder lacks weights, first: {lacking[0]}.")
        if not read_json(folder / "1_Pooling" / "config.json").get("pooling_mode_mean_tokens"):
            raise UserError(f"{folder}: 1_Pooling/config.json does not say pooling_mode_mean_tokens; choose a sentence "
                            "encoder that averages its tokens, e.g. all-MiniLM-L6-v2.")  # fmt: skip
        self.normalize = any(m["type"].endswith("Normalize") for m in read_json(folder / "modules.json"))
        positions = self.encoder.config.max_position_embeddings
        self.max_length = read_json(folder / "sentence_bert_config.json").get("max_seq_length") or positions
        self.requires_grad_(False).eval()

    def encode(self, texts: list[str]) -> Tensor:
        tokens = self.tokens(texts, self.max_length)
        states = self.encoder(**tokens).last_hidden_state.float()
        mask = tokens["attention_mask"].unsqueeze(-1)
        mean = (states * mask).sum(1) / mask.sum(1)
        return nn.functional.normalize(mean, dim=1) if self.normalize else mean
