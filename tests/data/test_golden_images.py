"""Pixels recorded from the reference: pad to square, then CLIP's preprocessing."""

import hashlib

import numpy as np
import pytest
import torch

from hide_llava.data.images import load_image


@pytest.fixture(scope="module")
def pixels(golden):
    with np.load(golden / "misc/pixel_values.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def test_pixel_values(golden, recorded, pixels, transform):
    processor = transform.processor
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (processor.image_mean, processor.image_std))
    recordings = recorded("misc/pixel_values.json")
    assert len(recordings) == 17
    for name, recording in recordings.items():
        got = transform(load_image(golden / "data/images" / name))
        assert got.dtype == torch.float32 and list(got.shape) == recording["shape"]
        want = (pixels[f"{name}.u8"].float() / 255 - mean) / std
        torch.testing.assert_close(got, want, atol=1e-4, rtol=0)
        assert transform.color == tuple(recording["pad_color"])


def test_bit_exact_with_this_pillow(golden, recorded, transform):
    """Held separately: another Pillow may round a resized pixel differently, and the tolerance above is what counts."""
    for name, recording in recorded("misc/pixel_values.json").items():
        got = transform(load_image(golden / "data/images" / name)).numpy().tobytes()
        if hashlib.sha256(got).hexdigest() != recording["sha256_f32"]:
            pytest.skip("this Pillow resizes differently in the last bit")


def test_float_tensor(golden, pixels, transform):
    torch.testing.assert_close(transform(load_image(golden / "data/images/t0_1.png")), pixels["t0_1.png.f32"])
