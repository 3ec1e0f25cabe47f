"""`fetch` against a stand-in of the hub: what huggingface_hub asks for is answered by a small server of this test."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest

from hide_llava.config import compose_data, names
from tests.cli.call import call

ROOT = Path(__file__).parent.parent.parent
COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = bytes(range(256)) * 800
FILES = {"train/a.json": b"[1]", "train/b c.json": b"[2]", "images.zip": LARGE, "README.md": b"# about"}
IN_LFS = "images.zip"  # which the hub knows by its SHA-256; the others by git's SHA-1
CALLS = """
import json, sys
from huggingface_hub import constants
from tests.cli.call import call
constants.DOWNLOAD_CHUNK_SIZE = 4096  # so that of a small file a part is kept, too
print(json.dumps([call("fetch", *words) for words in json.loads(sys.argv[1])]))
"""


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Hub(BaseHTTPRequestHandler):
    """Data sets good/data and bad/data (whose archive is another than it states); nothing else is there."""

    # What the server remembers: its handlers are made anew for every request.
    cut = True  # the archive's first answer breaks off in its middle
    asked: list[str] = []

    def log_message(self, *_: object) -> None: ...

    def _send(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = unquote(urlparse(self.path).path).strip("/").split("/")
        owner = parts[2] if parts[0] == "api" else parts[1]
        if owner not in ("good", "bad"):
            return self._send(404, b"{}", X_Error_Code="RepoNotFound")
        if parts[0] == "api":
            return self._send(200, json.dumps(self.about(f"{owner}/data")).encode(), Content_Type="application/json")
        name = "/".join(parts[5:])
        content = FILES[name]
        if owner == "bad" and name == IN_LFS:
            content = content[:-1] + b"x"
        etag = hashlib.sha256(LARGE).hexdigest() if name == IN_LFS else git_sha1(content)
        common = {"ETag": f'"{etag}"', "X_Repo_Commit": COMMIT, "Accept_Ranges": "bytes"}
        wanted = self.headers.get("Range")
        Hub.asked.append(f"{self.command} {owner} {name} {wanted or ''}".strip())
        start = int(wanted.removeprefix("bytes=").split("-")[0]) if wanted and self.command == "GET" else 0
        if self.command == "GET" and name == IN_LFS and owner == "good" and Hub.cut:
            Hub.cut = False
            self.send_response(200)
            for key, value in {"Content-Length": str(len(content)), **common}.items():
                self.send_header(key.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
            return None
        ranged = {"Content_Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if start else {}
        return self._send(206 if start else 200, content[start:], **common, **ranged)

    def about(self, repo: str) -> dict:
        files = [
            {"rfilename": name, "size": len(content), "blobId": git_sha1(content),
             **({"lfs": {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 1}}
                if name == IN_LFS else {})}
            for name, content in FILES.items()
        ]  # fmt: skip
        return {"id": repo, "sha": COMMIT, "siblings": files, "cardData": {"license": "cc-by-4.0"}, "private": False,
                "downloads": 0, "likes": 0, "tags": []}  # fmt: skip


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def benchmark(folder: Path, owner: str, name: str | None = None, **source: object) -> str:
    """The word that names a benchmark whose files are those of `owner`."""
    tasks = [{"id": "a", "title": "A", "train": "train/a.json", "test": "train/b c.json", "metric": "exact_upper"}]
    sources = [
        {"what": "instructions", "hub": f"{owner}/data", "folder": "own", "files": ["train/*", "*.zip"], **source},
        {"what": "other pictures", "folder": "own/images", "page": "example.org", "licence": "own terms", "then": "unpack it"},
    ]
    file = folder / f"{name or owner}.yaml"
    file.write_text(json.dumps({"benchmark": {"name": name or owner, "tasks": tasks, "sources": sources}}))
    return f"benchmark={file}"


@pytest.fixture(scope="module")
def called(hub: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list]]:
    """The folder of the data, and what each of some calls said; one process for all, because its imports take seconds."""
    home = tmp_path_factory.mktemp("fetch")
    good = benchmark(home, "good")
    words = [[good, f"data_root={home}/listed", "--list"], [good, f"data_root={home}/data"], [good, f"data_root={home}/data"],
             [benchmark(home, "bad"), f"data_root={home}/bad"], [benchmark(home, "gone"), f"data_root={home}/data"],
             [benchmark(home, "good", "none", files=["*.tar"]), f"data_root={home}/none"]]  # fmt: skip
    environment = {**os.environ, "HF_ENDPOINT": hub, "HF_HUB_OFFLINE": "0", "HF_HOME": f"{home}/hf", "PYTHONPATH": str(ROOT),
                   "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "no_proxy": "127.0.0.1"}  # fmt: skip
    done = subprocess.run([sys.executable, "-c", CALLS, json.dumps(words)], capture_output=True, text=True, env=environment,
                          timeout=300)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return home, json.loads(done.stdout.splitlines()[-1])


def test_a_list_downloads_nothing(called: tuple[Path, list[list]]) -> None:
    home, (listed, *_) = called
    code, out, _ = listed
    assert code == 0 and not (home / "listed").exists()
    assert f"instructions: hub data set good/data → {home}/listed/own (licence: cc-by-4.0)" in out
    assert f"3 files, 0.2 MiB, at commit {COMMIT[:12]}" in out and "train/b c.json" in out and "README.md" not in out
    assert f"other pictures: example.org → {home}/listed/own/images (licence: own terms)\n  by hand: unpack it" in out


def test_files_are_downloaded_and_compared(called: tuple[Path, list[list]]) -> None:
    home, (_, (code, out, err), again, *_) = called
    assert code == 0, err
    assert "3 downloaded, 0 there already; all 3 are as the hub states them" in out
    assert f"then: hide-llava check benchmark={home}/good.yaml data_root={home}/data" in out
    for name in ("train/a.json", "train/b c.json", "images.zip"):
        assert (home / "data" / "own" / name).read_bytes() == FILES[name]
    assert not (home / "data" / "own" / "README.md").exists()
    assert again[0] == 0 and "0 downloaded, 3 there already" in again[1]


def test_a_download_that_breaks_off_goes_on(called: tuple[Path, list[list]]) -> None:
    """From its middle: the server has sent half of the archive and closed the connection."""
    gets = [line for line in Hub.asked if line.startswith("GET good images.zip")]
    assert len(gets) == 2 and 0 < int(gets[1].split("bytes=")[1].split("-")[0]) <= len(LARGE) // 2


def test_a_file_that_is_not_what_is_stated_does_not_stay(called: tuple[Path, list[list]]) -> None:
    home, (*_, (code, _, err), _, _) = called
    assert code == 2 and "images.zip: is not what the hub states it to be, and was removed" in err
    assert not (home / "bad" / "own" / "images.zip").exists()


def test_what_the_hub_does_not_have(called: tuple[Path, list[list]]) -> None:
    _, (*_, gone, none) = called
    assert gone[0] == 2 and "the hub has no public data set gone/data now" in gone[2]
    assert none[0] == 2 and "has no file *.tar now" in none[2]


def test_offline_it_says_what_would_be_fetched(tmp_path: Path) -> None:
    """As in these tests, whose environment says HF_HUB_OFFLINE."""
    code, out, err = call("fetch", benchmark(tmp_path, "good", licence="CC BY 4.0"), f"data_root={tmp_path}")
    assert code == 1 and err == ""
    assert f"instructions: hub data set good/data → {tmp_path}/own (licence: CC BY 4.0)" in out
    assert "\n  would be fetched: train/*, *.zip; " in out
    assert "the hub was not reached (OfflineModeIsEnabled" in out and "other pictures: example.org" in out


def test_calls_that_are_refused(tmp_path: Path) -> None:
    task = {"id": "a", "title": "A", "test": "a.json", "metric": "exact_upper"}
    (tmp_path / "bare.yaml").write_text(json.dumps({"benchmark": {"name": "bare", "tasks": [task]}}))
    for words, says in ([], "fetch needs benchmark="), ([f"benchmark={tmp_path}/bare.yaml"], "'bare' names no sources"):
        code, _, err = call("fetch", *words)
        assert code == 2 and says in err
    assert "made from a seed" in call("fetch", "benchmark=mini-ucit").out


@pytest.mark.parametrize("name", names("benchmark"))
def test_every_benchmark_says_where_its_data_are_from(name: str) -> None:
    config = compose_data([f"benchmark={name}"]).benchmark
    assert config.generated or config.sources
    for source in config.sources:
        assert source.what and source.folder and not Path(source.folder).is_absolute()
        assert source.hub is not None or source.then
    assert "sources" not in config.model_dump()  # no part of a run
