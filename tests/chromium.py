"""Chromium without a window, for tests of pages: opened, clicked, typed into, and asked what it loaded and complained about.

It is spoken to through a pipe (--remote-debugging-pipe): messages of the Chrome DevTools Protocol, each ended by a zero byte.
So nothing but the browser itself has to be installed.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-extensions",
         "--disable-background-networking", "--disable-component-update", "--hide-scrollbars",
         "--remote-debugging-pipe")  # fmt: skip
KEYS = {"Enter": 13, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Tab": 9}


def installed() -> str | None:
    """The browser on PATH."""
    return next(filter(None, map(shutil.which, PROGRAMS)), None)


def program() -> str:
    """The browser on PATH; skips the test where there is none."""
    found = installed()
    if found is None:
        pytest.skip(f"no Chromium on PATH ({', '.join(PROGRAMS)})")
    return found


class Chromium:
    """One page of a browser with a profile of its own; use it as a context manager.

    requests: addresses of all that pages loaded. complaints: errors and warnings of the console, exceptions, failed requests.
    """

    def __init__(self, profile: Path, timeout: float = 60.0):
        command = [program(), *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        self.timeout, self.number, self.rest = timeout, 0, b""
        self.answers: dict[int, dict[str, Any]] = {}
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.session: str | None = None
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in self._pipes()]  # above 3 and 4, which the browser takes
        heard, self.speak, self.hear, spoken = ends
        self.process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{heard} 4>&{spoken}', "chromium", *command],
            pass_fds=(heard, spoken), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(heard)
        os.close(spoken)
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def _pipes(self) -> list[int]:
        self.opened = [*os.pipe(), *os.pipe()]
        return self.opened

    def __enter__(self) -> Chromium:
        for end in self.opened:
            os.close(end)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(20)
        os.close(self.speak)
        os.close(self.hear)

    # ---- the protocol ------------------------------------------------------------------------------------------------
    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of a command; AssertionError with the browser's words if it fails or takes longer than `timeout`."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        message |= {"sessionId": self.session} if self.session else {}
        os.write(self.speak, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + self.timeout
        while self.number not in self.answers:
            assert time.monotonic() < end, f"{method}: no answer in {self.timeout:.0f} s"
            self._read(1.0)
        answer = self.answers.pop(self.number)
        assert "error" not in answer, f"{method}: {answer['error']}"
        return answer["result"]

    def _read(self, seconds: float) -> None:
        if not select.select([self.hear], [], [], seconds)[0]:
            return
        content = os.read(self.hear, 1 << 20)
        assert content, "the browser ended"
        *messages, self.rest = (self.rest + content).split(b"\0")
        for message in map(json.loads, messages):
            if "id" in message:
                self.answers[message["id"]] = message
            else:
                self._event(message["method"], message["params"])

    def _event(self, method: str, params: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Network.loadingFailed" and not params.get("canceled"):
            self.complaints.append(f"not loaded: {params.get('errorText')} {params.get('blockedReason', '')}")
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(params["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.complaints.append(json.dumps(params["args"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.complaints.append(params["entry"]["text"])

    # ---- a user ------------------------------------------------------------------------------------------------------
    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        self.until("document.readyState === 'complete'")

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression on the page."""
        done = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def until(self, expression: str) -> Any:
        """Wait until the expression is true; AssertionError after `timeout`."""
        end = time.monotonic() + self.timeout
        while not (value := self.run(expression)):
            assert time.monotonic() < end, f"never true: {expression}; {self.complaints}"
            self._read(0.02)
        return value

    def press(self, key: str) -> None:
        """A key of the keyboard: a letter, or a name of KEYS."""
        text = {} if key in KEYS else {"text": key}
        code = KEYS.get(key) or ord(key.upper())
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, windowsVirtualKeyCode=code, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def look(self, width: int, height: int = 900, dark: bool = False) -> None:
        """The size of the window in CSS pixels, and the colour scheme."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def screenshot(self, file: Path, whole: bool = False) -> None:
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        file.write_bytes(base64.b64decode(shot["data"]))
