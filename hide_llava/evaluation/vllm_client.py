"""Questions to a server that speaks vLLM's OpenAI-compatible API, one request each, over HTTP.

As of vLLM 0.33, its modules `vllm.entrypoints.openai.chat_completion.protocol` and `vllm.entrypoints.serve.engine.protocol`.
"""

from __future__ import annotations

import base64
import io
import ipaddress
import json
import urllib.error
import urllib.request
from collections.abc import Sequence
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit

from PIL import Image

from hide_llava.data.turns import interleaved
from hide_llava.errors import UserError

SECONDS = 600.0  # that an answer may take; a busy server has hundreds of requests in its queue
SERVE = "start one with `vllm serve`, or set eval.vllm_url (docs/OTHER_HARNESSES.md)"


def messages(text: str, images: Sequence[Image.Image]) -> list[dict[str, Any]]:
    """A question as one chat message, its pictures where the model's own prompt has them: PNG, which loses nothing, in the
    request itself."""
    rest = iter(images)
    content = [
        {"type": "text", "text": piece} if piece is not None else {"type": "image_url", "image_url": {"url": _data(next(rest))}}
        for piece in interleaved(text, len(images))
    ]
    return [{"role": "user", "content": content}]


def _data(image: Image.Image) -> str:
    held = io.BytesIO()
    image.save(held, "PNG")
    return f"data:image/png;base64,{base64.b64encode(held.getvalue()).decode('ascii')}"


def body(model: str, text: str, images: Sequence[Image.Image], max_new_tokens: int) -> dict[str, Any]:
    """A greedy request, whatever the generation_config.json of the served folder says."""
    return {
        "model": model, "messages": messages(text, images), "max_tokens": max_new_tokens, "n": 1, "temperature": 0.0,
        "top_p": 1.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0,
        "skip_special_tokens": True, "return_token_ids": True,
    }  # fmt: skip


class Client:
    """A server. url: with `/v1`, as OpenAI's clients have it.

    Raises:
        UserError: at every call, if no server is there, it is none of that API, or it refuses.
    """

    def __init__(self, url: str, seconds: float = SECONDS):
        if urlsplit(url).scheme not in ("http", "https"):
            raise UserError(f"eval.vllm_url={url}: is no address; give one like http://127.0.0.1:8000/v1.")
        self.url, self.seconds = url.rstrip("/"), seconds
        proxies = [urllib.request.ProxyHandler({})] if _is_here(self.url) else []
        self._open = urllib.request.build_opener(*proxies).open

    def version(self) -> str:
        """Of vLLM; "unknown" where the server does not say."""
        try:
            return str(self._json(self.url.removesuffix("/v1") + "/version")["version"])
        except (UserError, KeyError, TypeError):
            return "unknown"

    def models(self) -> list[dict[str, Any]]:
        """What is served: {id, root (its folder), parent (of an adapter: the base model's id)}, the base first."""
        found = self._json(f"{self.url}/models")
        cards = found.get("data") if isinstance(found, dict) else None
        named = [card for card in cards or [] if isinstance(card, dict) and isinstance(card.get("id"), str)]
        if not named:
            raise UserError(f"{self.url}: {self.url}/models lists no models, so this is no server of vLLM; {SERVE}.")
        return named

    def answer(self, request: dict[str, Any]) -> tuple[str, list[int]]:
        """The text of an answer, and its token ids where the server tells them.

        Raises:
            UserError: also what the server says of a request that it refuses.
        """
        found = self._json(f"{self.url}/chat/completions", request)
        try:
            choice = found["choices"][0]
            text, ids = choice["message"]["content"], choice.get("token_ids")
        except (KeyError, IndexError, TypeError):
            raise UserError(f"{self.url}: answered without choices[0].message.content, so this is no server of vLLM.") from None
        return (text or "").strip(), list(ids or [])

    def _json(self, url: str, request: dict[str, Any] | None = None) -> Any:
        data = None if request is None else json.dumps(request).encode()
        asked = urllib.request.Request(url, data, {"Content-Type": "application/json", "Accept": "application/json"})
        try:
            with self._open(asked, timeout=self.seconds) as reply:
                content = reply.read()
        except urllib.error.HTTPError as error:
            raise UserError(f"{self.url}: refused with {error.code}: {_said(error.read())}") from None
        except TimeoutError:
            raise self._late() from None
        except (urllib.error.URLError, OSError, HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            if isinstance(reason, TimeoutError):
                raise self._late() from None
            raise UserError(f"{self.url}: no server answers ({reason}); {SERVE}. What was answered is kept: run again.") from None
        try:
            return json.loads(content)
        except ValueError:
            raise UserError(f"{self.url}: answers something else than JSON, so this is no server of vLLM; {SERVE}.") from None

    def _late(self) -> UserError:
        return UserError(f"{self.url}: gave no answer within {self.seconds:g} s; see what the server logs. What was answered is "
                         "kept: run again.")  # fmt: skip


def _said(content: bytes) -> str:
    """The message of an error, as vLLM or any other server gives it, on one line."""
    text = content.decode("utf-8", "replace")
    try:
        found = json.loads(text)
    except ValueError:
        found = text
    for key in ("error", "message"):
        found = found.get(key, found) if isinstance(found, dict) else found
    return " ".join((found if isinstance(found, str) else text).split())[:300]


def _is_here(url: str) -> bool:
    """Whether it is this machine, which no proxy leads to."""
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
