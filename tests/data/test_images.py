import numpy as np
import pytest
import torch
from PIL import Image

from hide_llava.data.images import ImageTransform, load_image, pad_to_square
from hide_llava.errors import UserError

MEAN_COLOR = (122, 116, 104)


def test_pad_to_square():
    padded = np.asarray(pad_to_square(Image.new("RGB", (100, 50), "red"), MEAN_COLOR))
    assert padded.shape == (100, 100, 3)
    assert (padded[:25] == MEAN_COLOR).all() and (padded[75:] == MEAN_COLOR).all()
    assert (padded[25:75] == (255, 0, 0)).all()


def test_pad_puts_the_odd_pixel_last():
    padded = np.asarray(pad_to_square(Image.new("RGB", (3, 4), "red"), MEAN_COLOR))
    assert (padded[:, :3] == (255, 0, 0)).all() and (padded[:, 3] == MEAN_COLOR).all()


def test_modes_differ_on_oblong_images_only(golden, transform):
    crop = ImageTransform(golden / "clip", mode="crop")
    square, oblong = Image.new("RGB", (40, 40), "blue"), Image.new("RGB", (80, 40), "blue")
    assert torch.equal(crop(square), transform(square))
    assert not torch.equal(crop(oblong), transform(oblong))
    assert crop(oblong).shape == (3, 336, 336) == (3, *crop.size)


def test_config_may_be_given_as_content():
    small = ImageTransform({"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}})
    assert small(Image.new("RGB", (3, 9))).shape == (3, 28, 28)


def test_grey_palette_and_alpha_become_rgb(golden):
    for name in ("odd_gray", "odd_palette", "odd_rgba"):
        assert load_image(golden / f"data/images/{name}.png").mode == "RGB"


def test_bad_images_name_the_file(golden, tmp_path):
    whole = (golden / "data/images/odd_big.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("hello")
    for name in ("cut.png", "text.png"):
        with pytest.raises(UserError, match=f"{name} cannot be decoded"):
            load_image(tmp_path / name)
    with pytest.raises(UserError, match=r"gone\.png does not exist"):
        load_image(tmp_path / "gone.png")


def test_bad_settings(golden, tmp_path):
    with pytest.raises(UserError, match="pad, crop"):
        ImageTransform(golden / "clip", mode="stretch")
    with pytest.raises(UserError, match=r"no preprocessor_config\.json"):
        ImageTransform(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        ImageTransform(tmp_path)
