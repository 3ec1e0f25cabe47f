"""Serving the page: on one address, uploads in a folder of its own that goes with the server, nothing from elsewhere.

gradio's own `launch` is not used: it can open a tunnel, looks for a port by itself, and asks for its own address through
whatever proxy is set.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any

from hide_llava.errors import UserError

if TYPE_CHECKING:
    import uvicorn

    from hide_llava.evaluation.model import Model

MOST_BYTES = 20 * 2**20  # of an uploaded file
MOST_PIXELS = 50_000_000  # of a picture: 150 MB when it is decoded
# What a page may load: itself. gradio's has inline scripts and styles, and makes code of strings.
POLICY = ("default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
          "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; "
          "worker-src 'self' blob:; frame-src 'none'; object-src 'none'; base-uri 'self'; form-action 'self'; "
          "frame-ancestors 'none'")  # fmt: skip
HEADERS = {"content-security-policy": POLICY, "referrer-policy": "no-referrer", "x-content-type-options": "nosniff"}


@contextlib.contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that listens there; port 0: any that is free.

    Raises:
        UserError: the address is not this machine's, or the port is taken or not allowed.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        made = socket.socket(family, kind, protocol)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            made.bind(address)
        except OSError:
            made.close()
            raise
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"--host {host} --port {port}: {reason}; choose others (--port 0: any that is free).") from None
    with made:
        yield made


def address_of(listener: socket.socket) -> str:
    """Where a browser finds it."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


class Headers:
    """Every answer says what its page may load."""

    def __init__(self, app: Callable[..., Any]):
        self.app = app

    async def __call__(self, scope: dict[str, Any], receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        async def with_headers(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                ours = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*(h for h in message.get("headers", []) if h[0].decode().lower() not in HEADERS), *ours]
            await send(message)

        await self.app(scope, receive, with_headers)


def server(model: Model, stages: list[int], first: int, listener: socket.socket) -> uvicorn.Server:
    """The server of a model's page, not started. The other arguments: of `page`.

    On an address of this machine alone it answers only to the names of that, so that no page of another site can be made to
    reach it under a name of its own.
    """
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_RUN_HISTORY": "False"}  # read when gradio is imported
    import gradio
    import uvicorn
    from fastapi import FastAPI
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    from hide_llava.studies.chat.page import page

    model.most_pixels = MOST_PIXELS
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    host, port = listener.getsockname()[:2]
    if ipaddress.ip_address(host).is_loopback:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=[host, f"[{host}]", "localhost"])
    app.add_middleware(Headers)
    app = gradio.mount_gradio_app(
        app, page(model, stages, first), path="/", server_name=host, server_port=port, footer_links=[], max_file_size=MOST_BYTES,
        show_error=True, ssr_mode=False, pwa=False, mcp_server=False, enable_monitoring=False,
        theme=gradio.themes.Default(),  # its fonts come with gradio
    )  # fmt: skip
    return uvicorn.Server(uvicorn.Config(app, log_level="warning"))


def serve(model: Model, stages: list[int], first: int, listener: socket.socket) -> None:
    """Serve the page until the process is told to stop."""
    with tempfile.TemporaryDirectory(prefix="hide-llava-chat-") as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads
        served = server(model, stages, first, listener)
        print(f"{address_of(listener)}  (Ctrl-C ends it)", flush=True)
        if not ipaddress.ip_address(listener.getsockname()[0]).is_loopback:
            print("Whoever reaches this address can ask the model; there is no password.", flush=True)

        def stop(number: int, frame: FrameType | None) -> None:
            served.should_exit = served.force_exit = True  # an open page holds a connection that never ends
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # nor is it told that this was cut

        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        served.capture_signals = contextlib.nullcontext  # else uvicorn raises the signal anew when it has ended
        try:
            served.run(sockets=[listener])
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
