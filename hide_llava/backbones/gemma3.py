"""Gemma 3: 256 positions a picture, whose tokens look both ways, so that the model is told which tokens are a picture's."""

from __future__ import annotations

from hide_llava.backbones.chat import ChatBackbone
from hide_llava.backbones.chat_reader import ChatReader


class Gemma3Reader(ChatReader):
    def token_types(self, ids: list[int], labels: list[int] | None) -> dict[str, list[int]]:
        return {"token_type_ids": list(self.processor.create_mm_token_type_ids([ids])[0])}


class Gemma3(ChatBackbone):
    title = "Gemma 3"
    reads = Gemma3Reader
