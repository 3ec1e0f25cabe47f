"""Requests to vLLM's API, and what is said when there is none."""

import base64
import io
import socket
import time

import pytest
from PIL import Image

from hide_llava.data.turns import interleaved
from hide_llava.errors import UserError
from hide_llava.evaluation.vllm_client import Client, body, messages
from tests.interop.vllm_stub import served


def noise(seed: int) -> Image.Image:
    return Image.effect_noise((23 + seed, 17), 80).convert("RGB")


def test_a_request_is_greedy_and_holds_the_very_pixels() -> None:
    picture = noise(0)
    made = body("expert-02", "What is it?", [picture], 7)
    assert (made["model"], made["max_tokens"], made["temperature"], made["top_p"]) == ("expert-02", 7, 0.0, 1.0)
    image, text = made["messages"][0]["content"]
    assert text == {"type": "text", "text": "What is it?"}
    kind, data = image["image_url"]["url"].split(";base64,")
    assert kind == "data:image/png"
    assert Image.open(io.BytesIO(base64.b64decode(data))).tobytes() == picture.tobytes()


def test_pictures_stand_where_the_prompt_has_them() -> None:
    kinds = [part["type"] for part in messages("Is <image>\nlike\n<image>?", [noise(0), noise(1)])[0]["content"]]
    assert kinds == ["text", "image_url", "text", "image_url", "text"]
    assert [part["type"] for part in messages("Hello?", [])[0]["content"]] == ["text"]


@pytest.mark.parametrize(("text", "images", "pieces"), [
    ("What?", 0, ["What?"]),
    ("What?", 1, [None, "What?"]),
    ("<image>\nWhat?", 1, [None, "What?"]),
    ("See <image> here", 1, [None, "See  here"]),
    ("Same?", 2, [None, None, "Same?"]),
    ("<image>\nand <image>\nSame?", 2, [None, "and ", None, "Same?"]),
])  # fmt: skip
def test_pieces(text: str, images: int, pieces: list) -> None:
    assert interleaved(text, images) == pieces


def free() -> str:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{one.getsockname()[1]}/v1"


def test_no_server() -> None:
    with pytest.raises(UserError, match=r"no server answers .*start one with `vllm serve`.*run again"):
        Client(free()).models()
    with pytest.raises(UserError, match="is no address"):
        Client("127.0.0.1:8000")


def test_a_server_that_is_late() -> None:
    with served(lambda path, request: time.sleep(0.6) or (200, {})) as url:
        with pytest.raises(UserError, match=r"gave no answer within 0.1 s.*run again"):
            Client(f"{url}/v1", 0.1).answer(body("m", "?", [], 1))


@pytest.mark.parametrize(("reply", "says"), [
    (b"<html>hello</html>", "something else than JSON"),
    ((200, {"choices": []}), r"without choices\[0\]"),
    ((404, {"error": {"message": "The model `m`\ndoes not exist."}}), "refused with 404: The model `m` does not exist"),
    ((400, {"object": "error", "message": "too long"}), "refused with 400: too long"),
    ((502, "bad gateway"), "refused with 502: bad gateway"),
])  # fmt: skip
def test_other_replies(reply: object, says: str) -> None:
    with served(lambda path, request: reply) as url:
        with pytest.raises(UserError, match=says):
            Client(f"{url}/v1").answer(body("m", "?", [], 1))


def test_no_models_and_no_version() -> None:
    with served(lambda path, request: (200, {"data": []}) if path == "/v1/models" else (404, {})) as url:
        assert Client(f"{url}/v1").version() == "unknown"
        with pytest.raises(UserError, match="lists no models"):
            Client(f"{url}/v1").models()
