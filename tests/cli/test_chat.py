"""`hide-llava chat`: the page of the finished run, served by the command and asked as a browser asks it.

All but the refusals need gradio (extra `chat`), whose Pillow is older than the one that the other tests are run with, so
that it is not installed with them.
"""

import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hide_llava.training import session
from tests.cli.call import refused

ROOT = Path(__file__).parent.parent.parent
with_gradio = pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="needs the extra chat")


# ---------------------------------------------------------------------------------------------------------------- refusals


def test_without_gradio_it_says_what_to_install(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(session.Session, "__init__", lambda *_: pytest.fail("a model is loaded"))
    refused("chat", finished, says=("needs gradio", "pip install -e '.[chat]'"))


def test_an_address_that_cannot_be_had(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said before a model is loaded; and what is no run, or no stage of it."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(session.Session, "__init__", lambda *_: pytest.fail("a model is loaded"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused("chat", finished, "--port", str(port), says=(f"--port {port}", "in use", "--port 0"))
    refused("chat", finished, "--host", "192.0.2.1", "--port", "0", says=("--host 192.0.2.1",))
    refused("chat", tmp_path, says=("not a run folder",))
    refused("chat", finished, "--stage", "7", says=("stages 1 to 3",))


# ---------------------------------------------------------------------------------------------------------------- the page


@pytest.fixture(scope="module")
def url(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the command serves the page; at the end it is told to stop, and nothing of it is left."""
    temporary = tmp_path_factory.mktemp("uploads")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(temporary), "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-m", "hide_llava.cli", "chat", str(finished), "--port", "0"],
        stdout=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    line = process.stdout.readline()
    assert line.startswith("http://127.0.0.1:") and line.endswith("  (Ctrl-C ends it)\n")
    yield line.split()[0]
    assert list(temporary.glob("hide-llava-chat-*"))
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0 and process.stdout.read() == ""
    assert not list(temporary.glob("hide-llava-chat-*"))


@pytest.fixture
def client(url: str) -> Any:
    """A browser's conversation with the page, without a browser."""
    from gradio_client import Client

    return Client(url, verbose=False, analytics_enabled=False)


@pytest.fixture
def stored(finished: Path, world: Path) -> tuple[Path, str, dict[int, dict]]:
    """A picture of the first task, its question, and the stored answer of every stage."""
    question = json.loads((world / "data" / "task0" / "test.json").read_text())[0]
    cells = sorted(finished.glob("eval/*/task0/predictions.jsonl"))
    rows = {stage: json.loads(cell.read_text().splitlines()[0]) for stage, cell in enumerate(cells, 1)}
    return world / "data" / question["image"], question["text"], rows


def said(shown: list[dict]) -> list[str]:
    return [message["content"][0]["text"] for message in shown]


@with_gradio
def test_a_conversation(client: Any, stored: tuple[Path, str, dict[int, dict]]) -> None:
    """Answers in pieces; the stored one; a second question after the first; the last one once more at another stage."""
    from gradio_client import handle_file

    picture, text, rows = stored
    job = client.submit(text, handle_file(picture), 3, "", 6, True, api_name="/ask")
    left, shown, routing, *experts = job.result()
    assert left == "" and said(shown) == [text, rows[3]["text"]] and len(experts) == 3 and all(experts)
    pieces = [said(output[1])[1] for output in job.outputs()]
    assert len(set(pieces)) > 2 and all(rows[3]["text"].startswith(piece) for piece in pieces)
    weights = {one["label"]: one["confidence"] for one in routing["confidences"]}
    known = {f"Task {i - 1} (expert-0{i})": rows[3]["routing"][f"expert-0{i}"] for i in (1, 2, 3)}
    assert weights == pytest.approx(known, abs=1e-5)
    shown = client.predict("And now?", handle_file(picture), 3, "", 6, False, api_name="/ask")[1]
    assert said(shown)[:3] == [text, rows[3]["text"], "And now?"] and len(shown) == 4
    _, again, routing, *experts = client.predict("", handle_file(picture), 1, "", 6, True, api_name="/again")
    assert said(again)[:3] == said(shown)[:3] and len(again) == 4
    assert [one["label"] for one in routing["confidences"]] == ["Task 0 (expert-01)"]
    assert experts[0] == said(again)[3] and experts[1:] == ["", ""]  # at this stage there is one expert


@with_gradio
def test_conversations_do_not_mix(url: str, stored: tuple[Path, str, dict[int, dict]]) -> None:
    """Two people, each at a stage of their own, at the same time."""
    from gradio_client import Client, handle_file

    picture, text, rows = stored
    people = {stage: Client(url, verbose=False, analytics_enabled=False) for stage in (1, 2)}
    jobs = [(stage, one.submit(text, handle_file(picture), stage, "", 6, False, api_name="/ask"))
            for _ in range(2) for stage, one in people.items()]  # fmt: skip
    for number, (stage, job) in enumerate(jobs):
        assert said(job.result()[1])[:2] == [text, rows[stage]["text"]], number


def asked(url: str, text: Any, picture: Any) -> str:
    """What the page answers to a request as a program may write it, or why it does not."""
    import httpx

    begun = httpx.post(f"{url}/gradio_api/call/ask", json={"data": [text, picture, 3, "", 6, False]}, timeout=60)
    with httpx.stream("GET", f"{url}/gradio_api/call/ask/{begun.json()['event_id']}", timeout=60) as events:
        return "".join(events.iter_text())


def sent(url: str, file: Path) -> dict[str, Any]:
    """An uploaded file, as a request names it."""
    import httpx

    (path,) = httpx.post(f"{url}/gradio_api/upload", files={"files": (file.name, file.read_bytes())}, timeout=60).json()
    return named(path)


def named(path: Path | str) -> dict[str, Any]:
    return {"path": str(path), "meta": {"_type": "gradio.FileData"}}


@with_gradio
def test_what_is_refused(url: str, finished: Path, stored: tuple[Path, str, dict[int, dict]], tmp_path: Path) -> None:
    """Files of this machine that were not uploaded, addresses, what is no picture, too large or empty."""
    import httpx

    def refusal(text: Any, picture: Any) -> str:
        said = asked(url, text, picture)
        assert "event: error" in said and "event: complete" not in said
        return said

    picture, text, rows = stored
    assert json.dumps(rows[3]["text"]) in asked(url, text, sent(url, picture))
    for path in (finished / "config.yaml", picture, f"{finished}/../{finished.name}/config.yaml", "/etc/hostname", "config.yaml"):
        for request in (named(path), {**named(path), "is_stream": True}):
            assert "was not uploaded by a user" in refusal(text, request)
            assert "was not uploaded by a user" in refusal(request, None)  # nor in the place of the question
        assert httpx.get(f"{url}/gradio_api/file={path}").status_code in (403, 404)
    for address in (f"{url}/theme.css", "https://example.org/a.png"):
        assert "uploaded, not named or linked to" in refusal(text, named(address))
    assert "was not uploaded by a user" in refusal(text, named("HTTP://example.org/a.png"))
    Image.new("1", (8000, 7000)).save(tmp_path / "wide.png")
    assert "7000 pixels, more than the 50,000,000" in refusal(text, sent(url, tmp_path / "wide.png"))
    (tmp_path / "no.png").write_bytes(b"not a picture")
    assert "cannot identify image" in refusal(text, sent(url, tmp_path / "no.png"))
    upload = httpx.post(f"{url}/gradio_api/upload", files={"files": ("large.png", b"0" * (21 * 2**20))}, timeout=60)
    assert upload.status_code == 413
    assert "the question is empty" in refusal("  ", None)
    assert "more than 8,000 characters" in refusal("x" * 8001, None)


@with_gradio
def test_nothing_comes_from_elsewhere(url: str) -> None:
    """The policy of the page, its fonts, and who may ask for it."""
    import httpx

    page = httpx.get(url)
    policy = dict(part.strip().split(" ", 1) for part in page.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'self'" and not re.search(r"https?:|\*", page.headers["content-security-policy"])
    assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//(?!127\.0\.0\.1)""", page.text)
    style = httpx.get(f"{url}/theme.css").text
    assert "@font-face" in style and not re.search(r"url\(\W*(?:https?:)?//|@import", style)
    config = httpx.get(f"{url}/config").json()
    assert config["analytics_enabled"] is False and config["footer_links"] == []
    assert {"image", "chatbot", "slider", "label"} <= {part["type"] for part in config["components"]}
    assert httpx.get(url, headers={"host": "elsewhere.example"}).status_code == 400


@with_gradio
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium")
def test_a_browser_asks_nobody_else(url: str, tmp_path: Path) -> None:
    """The page is drawn, and every request of its own goes to the address that serves it."""
    log = tmp_path / "net.json"
    done = subprocess.run(
        ["chromium", "--headless", "--no-sandbox", f"--user-data-dir={tmp_path}/profile", f"--log-net-log={log}",
         "--disable-background-networking", "--disable-component-update", "--virtual-time-budget=20000",
         "--dump-dom", url],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert "New conversation" in done.stdout and "Task 0 (expert-01) alone" in done.stdout, done.stderr[-500:]
    events = json.loads(log.read_text())["events"]
    asked = {e["params"]["url"] for e in events if "url" in e.get("params", {}) and e["params"].get("initiator") == url}
    assert len(asked) > 20 and {one for one in asked if not one.startswith(f"{url}/")} == set()
