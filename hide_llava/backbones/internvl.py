"""InternVL 3 and 3.5 in transformers' format (the `-HF` folders): a picture is cut into tiles, which the text counts."""

from __future__ import annotations

from hide_llava.backbones.chat import ChatBackbone


class InternVL(ChatBackbone):
    title = "InternVL 3"
