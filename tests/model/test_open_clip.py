"""The optional open_clip encoder, with random weights; without open_clip, the sentence that says so."""

import sys
import types
from pathlib import Path

import pytest
import torch

from hide_llava.backbones.open_clip_encoder import OpenClipRoutingEncoder
from hide_llava.errors import UserError
from tests.tiny import configuration, write_world

MODEL = "RN50:"  # no weights are named: random ones


@pytest.fixture(scope="module")
def encoder() -> OpenClipRoutingEncoder:
    try:
        import open_clip  # noqa: F401
    except Exception as error:
        pytest.skip(f"open_clip cannot be imported here: {error}")
    torch.manual_seed(0)
    return OpenClipRoutingEncoder(MODEL)


def test_features(encoder: OpenClipRoutingEncoder) -> None:
    """[B, d] fp32 from pictures of any size, per sample; strings of the same width."""
    pixels = torch.randn(3, 3, 56, 56)
    rows = [{"pixel_values": one} for one in pixels.split(1)]
    image, text = encoder.image(None, rows), encoder.text(["a red circle", "two", "a red circle"])
    assert image.shape == text.shape == (3, encoder.width) and image.dtype == text.dtype == torch.float32
    torch.testing.assert_close(encoder.image(None, rows[1:2])[0], image[1], atol=1e-4, rtol=1e-4)
    assert torch.equal(text[0], text[2]) and not torch.equal(text[0], text[1])
    assert not any(p.requires_grad for p in encoder.parameters()) and not image.requires_grad


class Stub(torch.nn.Module):
    """An open_clip model: the mean of each colour, and the length of a text, through a linear each."""

    def __init__(self) -> None:
        super().__init__()
        self.visual = torch.nn.Module()
        self.visual.image_size = 8
        self.colours, self.words = torch.nn.Linear(3, 5), torch.nn.Linear(1, 5)

    def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
        assert pixels.shape[1:] == (3, 8, 8)
        return self.colours(pixels.mean((2, 3)))

    def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.words(tokens.float())


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> OpenClipRoutingEncoder:
    """The encoder over a stand-in for open_clip, so that its place in a run is tried everywhere."""
    torch.manual_seed(0)
    made = types.SimpleNamespace(
        create_model_and_transforms=lambda *_, **__: (Stub(), None, None),
        get_tokenizer=lambda name: lambda texts: torch.tensor([[len(text)] for text in texts]),
    )
    monkeypatch.setitem(sys.modules, "open_clip", made)
    return OpenClipRoutingEncoder(MODEL)


def test_features_of_rows(stub: OpenClipRoutingEncoder) -> None:
    pixels = torch.randn(3, 3, 56, 56)
    image = stub.image(None, [{"pixel_values": one} for one in pixels.split(1)])
    assert image.shape == (3, stub.width) == (3, 5) and image.dtype == torch.float32
    torch.testing.assert_close(stub.image(None, [{"pixel_values": pixels[1:2]}])[0], image[1], rtol=1e-6, atol=1e-6)
    assert not any(p.requires_grad for p in stub.parameters()) and not image.requires_grad


def test_a_run_routes_by_a_stand_in(stub: OpenClipRoutingEncoder, tmp_path: Path) -> None:
    test_a_run_routes_by_it(stub, tmp_path)


def test_unknown_model(encoder: OpenClipRoutingEncoder) -> None:
    with pytest.raises(UserError, match="open_clip:NoSuchModel"):
        OpenClipRoutingEncoder("NoSuchModel:")


def test_a_run_routes_by_it(encoder: OpenClipRoutingEncoder, tmp_path: Path) -> None:
    from hide_llava.pipeline import run

    world = write_world(tmp_path)
    config = configuration(world, "hide", tmp_path / "run", f"router.encoder='open_clip:{MODEL}'", "train.max_steps=1")
    run(config, report=False)
    assert (tmp_path / "run" / "stages" / "03-task2" / "method.safetensors").is_file()


def test_without_open_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(UserError, match=r"'\.\[open-clip\]'.*router\.encoder=clip"):
        OpenClipRoutingEncoder(MODEL)
