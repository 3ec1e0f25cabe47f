"""The optional open_clip encoder, with random weights; without open_clip, the sentence that says so."""

import sys
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
    image, text = encoder.image(None, pixels), encoder.text(["a red circle", "two", "a red circle"])
    width = encoder.visual_projection.shape[0]
    assert image.shape == text.shape == (3, width) and image.dtype == text.dtype == torch.float32
    torch.testing.assert_close(encoder.image(None, pixels[1:2])[0], image[1], atol=1e-4, rtol=1e-4)
    assert torch.equal(text[0], text[2]) and not torch.equal(text[0], text[1])
    assert not any(p.requires_grad for p in encoder.parameters()) and not image.requires_grad


def test_unknown_model(encoder: OpenClipRoutingEncoder) -> None:
    with pytest.raises(UserError, match="open_clip:NoSuchModel"):
        OpenClipRoutingEncoder("NoSuchModel:")


def test_a_run_routes_by_it(encoder: OpenClipRoutingEncoder, tmp_path: Path) -> None:
    from hide_llava.pipeline import run

    world = write_world(tmp_path)
    config = configuration(world, "hide", tmp_path / "run", f"router.encoder=open_clip:{MODEL}", "train.max_steps=1")
    run(config, report=False)
    assert (tmp_path / "run" / "stages" / "03-task2" / "method.safetensors").is_file()


def test_without_open_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(UserError, match=r"'\.\[open-clip\]'.*router\.encoder=clip"):
        OpenClipRoutingEncoder(MODEL)
