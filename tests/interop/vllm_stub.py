"""A server that speaks the part of vLLM's OpenAI-compatible API that we use; transformers and peft answer, from exports.

It reads a request as vLLM does: chat template and picture processing of the served folder, the LoRA that `model` names.
"""

import base64
import io
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

Reply = tuple[int, Any]
VERSION = "0.33.0"


class Engine:
    """One export, answering. requests: all that were made, in order."""

    def __init__(self, export: Path):
        adapters = sorted((export / "adapters").iterdir()) if (export / "adapters").is_dir() else []
        self.base = export / "base" if adapters else export
        self.names = [folder.name for folder in adapters]
        self.processor = AutoProcessor.from_pretrained(self.base)
        self.model = AutoModelForImageTextToText.from_pretrained(self.base, dtype=torch.float32).eval()
        self.peft = None
        for folder in adapters:
            if self.peft is None:
                self.peft = PeftModel.from_pretrained(self.model, str(folder), adapter_name=folder.name).eval()
            else:
                self.peft.load_adapter(str(folder), folder.name)
        self.requests: list[dict] = []
        self.lock = threading.Lock()

    def __call__(self, path: str, request: dict | None) -> Reply:
        if path == "/version":
            return 200, {"version": VERSION}
        if path == "/v1/models":
            cards = [{"id": str(self.base), "object": "model", "root": str(self.base), "parent": None}]
            cards += [{"id": n, "root": str(self.base.parent / "adapters" / n), "parent": str(self.base)} for n in self.names]
            return 200, {"object": "list", "data": cards}
        if path != "/v1/chat/completions" or request is None:
            return 404, {"detail": "Not Found"}
        if request["model"] not in (str(self.base), *self.names):
            return 404, {"error": {"message": f"The model `{request['model']}` does not exist.", "type": "NotFoundError",
                                   "param": "model", "code": 404}}  # fmt: skip
        with self.lock:
            self.requests.append(request)
            return 200, self.answer(request)

    @torch.no_grad()
    def answer(self, request: dict) -> dict:
        images, chat = [], []
        for message in request["messages"]:
            content = []
            for part in message["content"]:
                if part["type"] == "image_url":
                    kind, _, data = part["image_url"]["url"].partition(";base64,")
                    assert kind == "data:image/png"
                    images.append(Image.open(io.BytesIO(base64.b64decode(data))))
                content.append({"type": "image"} if part["type"] == "image_url" else part)
            chat.append({"role": message["role"], "content": content})
        text = self.processor.apply_chat_template(chat, add_generation_prompt=True)
        inputs = self.processor(text=text, images=images or None, return_tensors="pt")
        assert request["temperature"] == 0
        alone = request["model"] not in self.names
        if self.peft is not None and not alone:
            self.peft.set_adapter(request["model"])
        model = self.model if self.peft is None or alone else self.peft
        ids = model.generate(**inputs, max_new_tokens=request["max_tokens"], do_sample=False)[0, inputs["input_ids"].shape[1] :]
        said = self.processor.tokenizer.decode(ids, skip_special_tokens=True)
        choice = {"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop",
                  "token_ids": ids.tolist()}  # fmt: skip
        return {"id": "chatcmpl-1", "object": "chat.completion", "model": request["model"], "choices": [choice]}


@contextmanager
def served(reply: Callable[[str, dict | None], Reply | bytes]) -> Iterator[str]:
    """The address of a server on this machine; reply: path and body → status and JSON, or raw bytes."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._do(None)

        def do_POST(self) -> None:
            self._do(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def _do(self, request: dict | None) -> None:
            made = reply(self.path, request)
            status, content = (200, made) if isinstance(made, bytes) else (made[0], json.dumps(made[1]).encode())
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            with suppress(BrokenPipeError):  # whoever asked does not wait any longer
                self.wfile.write(content)

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def stages(engines: dict[str, Callable[[str, dict | None], Reply]]) -> Callable[[str, dict | None], Reply]:
    """Several servers in one, by the first part of the path: `/2/v1/models` is asked of engine "2"."""

    def reply(path: str, request: dict | None) -> Reply:
        _, stage, rest = path.split("/", 2)
        return engines[stage](f"/{rest}", request)

    return reply
