"""Sentence embeddings of a sentence-transformers folder through transformers: mean over the real tokens, then unit norm.

Reads the folder's own settings (`modules.json`, `1_Pooling/config.json`, `sentence_bert_config.json`), e.g. of
sentence-transformers/all-MiniLM-L6-v2 [384 features], so the sentence-transformers package is not needed.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

from hide_llava.errors import UserError
from hide_llava.storage import read_json

KEPT = 8192  # texts whose embedding is kept; UCIT's instructions repeat


class SentenceEncoder(nn.Module):
    """Frozen, fp32. Every distinct text is encoded by itself, so its embedding does not depend on the batch it is in.

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
        self._kept = lru_cache(KEPT)(self._encode)

    def train(self, mode: bool = True) -> SentenceEncoder:
        """Stays in eval mode when the model around it trains: BERT has dropout."""
        return super().train(False)

    def text(self, texts: list[str]) -> Tensor:
        """Raw strings → [B, d] fp32."""
        return torch.stack([self._kept(text) for text in texts])

    @torch.no_grad()
    def _encode(self, text: str) -> Tensor:
        tokens = self.tokenizer(text, truncation=True, max_length=self.max_length, return_tensors="pt")
        tokens = tokens.to(self.encoder.device)
        states = self.encoder(**tokens).last_hidden_state[0].float()
        mask = tokens["attention_mask"][0].unsqueeze(-1)
        mean = (states * mask).sum(0) / mask.sum(0)
        return nn.functional.normalize(mean, dim=0) if self.normalize else mean
