"""PaliGemma: a prefix that is read both ways, the picture first, and an answer behind it. It has no chat template:

    <image>… <bos> question \\n | answer <eos>

Without token types a token of the answer would see those behind it. All that follows the first answer is read forwards, a
second question too, as the first is asked without it.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from hide_llava.backbones.chat import ChatBackbone
from hide_llava.backbones.chat_reader import ChatReader
from hide_llava.data.turns import IGNORE


class PaliGemmaReader(ChatReader):
    several = False

    def render(self, messages: list[dict[str, Any]], generate: bool) -> str:
        text, bos = "", self.tokenizer.bos_token
        for message in messages:
            for part in message["content"]:
                if message["role"] != "user":
                    text += part["text"] + self.tokenizer.eos_token
                elif part["type"] == "image":
                    text = self.processor.image_token + text
                else:
                    text += (bos if bos not in text else "") + part["text"] + "\n"
        return text

    def token_types(self, ids: list[int], labels: list[int] | None) -> dict[str, list[int]]:
        first = next((at for at, label in enumerate(labels or ()) if label != IGNORE), len(ids))
        return {"token_type_ids": [int(at >= first) for at in range(len(ids))]}


class PaliGemma(ChatBackbone):
    title = "PaliGemma"
    several = False
    reads = PaliGemmaReader

    def prompt_start(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Behind BOS, which follows the picture."""
        return (ids == self.model.generation_config.bos_token_id).long().argmax(1) + 1
