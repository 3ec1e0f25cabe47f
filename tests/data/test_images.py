import resource

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageOps

from hide_llava.backbones.clip_pixels import ImageTransform, crop_and_resize, pad_and_resize, pad_to_square
from hide_llava.data.decoded import decode
from hide_llava.data.images import ORIENTATIONS, load_image, size_of, sizes_of
from hide_llava.errors import UserError

MEAN_COLOR = (122, 116, 104)


@pytest.mark.parametrize("size", [(40, 28), (28, 28), (31, 97), (300, 211)])
def test_a_square_resized_first_gives_the_processors_own_pixels(size: tuple[int, int]) -> None:
    """Bit for bit: the processor then finds a picture of the right size."""
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image, side = Image.fromarray(values), {"size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}}
    transform = ImageTransform(side)
    whole = pad_to_square(image, transform.color)
    plain = transform.processor(whole, return_tensors="pt", input_data_format="channels_last")["pixel_values"][0]
    assert torch.equal(transform(image), plain)


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


# ----------------------------------------------------------------------------------------------- orientation and modes


@pytest.mark.parametrize("form", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("tag", [1, 2, 3, 4, 5, 6, 7, 8, 9])
def test_exif_turns_a_picture_as_a_viewer_shows_it(tmp_path, form, tag):
    stored = np.zeros((16, 24, 3), np.uint8)
    stored[:8, :12], stored[:8, 12:], stored[8:, :12] = (220, 0, 0), (0, 0, 220), (0, 200, 0)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = tag
    file = tmp_path / f"phone.{form}"
    Image.fromarray(stored).save(file, exif=exif, **({"lossless": True} if form == "webp" else {}))
    with Image.open(file) as opened:
        viewer = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
    with Image.open(file) as opened:
        raw = np.asarray(opened.convert("RGB"))
    assert np.array_equal(load_image(file), viewer)
    assert np.array_equal(load_image(file, "ignore"), raw)
    for orientation in ORIENTATIONS:
        assert size_of(file, orientation) == load_image(file, orientation).size
    assert (size_of(file, "exif") == (16, 24)) == (5 <= tag <= 8)
    if form != "tif":  # Pillow itself turns a TIFF when it reads it, for the published code as well
        assert (not np.array_equal(raw, viewer)) == (2 <= tag <= 8)


@pytest.mark.parametrize("form", ["png", "tif"])
def test_16_bit_grey_is_scaled_and_not_clipped(tmp_path, form):
    ramp = np.linspace(0, 65535, 4096).reshape(64, 64).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / f"deep.{form}")
    got = np.asarray(load_image(tmp_path / f"deep.{form}")).astype(int)
    assert np.array_equal(got[..., 0], np.rint(ramp / 257).astype(int)) and (got[..., 0] == got[..., 2]).all()


def test_a_png_may_say_so_behind_its_pixels(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (24, 16)).save(tmp_path / "before.png", exif=exif)
    data = (tmp_path / "before.png").read_bytes()
    start = data.index(b"eXIf") - 4
    stop = start + 12 + int.from_bytes(data[start : start + 4], "big")
    (tmp_path / "behind.png").write_bytes(data[:start] + data[stop:-12] + data[start:stop] + data[-12:])
    for name in ("before.png", "behind.png"):
        assert size_of(tmp_path / name, "exif") == load_image(tmp_path / name).size == (16, 24)
        assert size_of(tmp_path / name, "ignore") == load_image(tmp_path / name, "ignore").size == (24, 16)


def test_sizes_come_in_order_and_name_what_is_no_picture(golden, tmp_path):
    for i in range(9):
        Image.new("L", (i + 1, 2 * i + 1)).save(tmp_path / f"{i}.png")
    files = [tmp_path / f"{i}.png" for i in (3, 1, 8, 0, 3)]
    for workers in (0, 1, 3):
        assert sizes_of(files, "exif", workers, "nine") == [(4, 7), (2, 3), (9, 17), (1, 1), (4, 7)]
    for path in (golden / "data/images").iterdir():
        assert size_of(path, "exif") == load_image(path).size
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(UserError, match=r"text\.png cannot be decoded"):
        sizes_of([files[0], tmp_path / "text.png"], "exif", 2, "two")
    with pytest.raises(UserError, match=r"gone\.png does not exist"):
        sizes_of([tmp_path / "gone.png"], "exif", 1, "one")


@pytest.mark.parametrize(("kind", "mode"), [(np.int32, "I"), (np.float32, "F")])
def test_pixels_without_a_range_are_refused_with_the_mode(tmp_path, kind, mode):
    Image.fromarray(np.arange(64, dtype=kind).reshape(8, 8)).save(tmp_path / "odd.tif")
    with pytest.raises(UserError, match=rf"odd\.tif has .* \(mode {mode}\)"):
        load_image(tmp_path / "odd.tif")
    assert "mode" in str(decode(str(tmp_path / "odd.tif")))


@pytest.mark.parametrize("error", [RuntimeError("Failed to decode image"), KeyError("x"), SyntaxError("broken PNG")])
def test_whatever_a_decoder_raises_names_the_file(tmp_path, monkeypatch, error):
    """A damaged AVIF raises RuntimeError; here every decoder does."""
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")

    def fail(self):
        raise error

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fail)
    with pytest.raises(UserError, match=r"a\.png cannot be decoded"):
        load_image(tmp_path / "a.png")
    assert "cannot be decoded" in str(decode(str(tmp_path / "a.png")))


# -------------------------------------------------------------------------------------------------------- large pictures

SHAPES = [(1000, 10), (10, 1000), (997, 31), (31, 997), (500, 499), (499, 500), (2000, 1), (1, 2000), (1500, 700),
          (700, 1500), (340, 339), (335, 3)]  # fmt: skip


@pytest.mark.parametrize("size", SHAPES)
def test_resizing_without_the_padded_square_gives_the_same(size):
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    image = Image.fromarray(noise)
    want = np.asarray(pad_to_square(image, MEAN_COLOR).resize((336, 336), Image.Resampling.BICUBIC)).astype(int)
    got = np.asarray(pad_and_resize(image, 336, MEAN_COLOR, Image.Resampling.BICUBIC)).astype(int)
    assert abs(got - want).max() <= 1 and (got != want).mean() < 1e-3


@pytest.mark.parametrize("size", [size for size in SHAPES if max(size) < 100 * min(size)])
def test_cropping_without_the_enlarged_picture_gives_the_same(size):
    soft = np.random.default_rng(0).integers(0, 256, (4, 4, 3)).astype(np.uint8)
    image = Image.fromarray(soft).resize(size, Image.Resampling.BICUBIC)
    long = int(336 * max(size) / min(size))
    enlarged = image.resize((long, 336) if size[0] > size[1] else (336, long), Image.Resampling.BICUBIC)
    left, top = (enlarged.width - 336) // 2, (enlarged.height - 336) // 2
    want = np.asarray(enlarged.crop((left, top, left + 336, top + 336))).astype(int)
    got = np.asarray(crop_and_resize(image, 336, Image.Resampling.BICUBIC)).astype(int)
    assert abs(got - want).max() <= 2


@pytest.mark.parametrize(("size", "mode"), [((20000, 900), "pad"), ((4, 40000), "pad"), ((30000, 10), "crop")])
def test_extreme_shapes_take_little_memory(golden, size, mode):
    """The padded square of the first is 1.2 GB, and the processor held four of them; now 60 MB suffice."""
    image = Image.new("RGB", size, (200, 0, 0))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pixels = ImageTransform(golden / "clip", mode)(image)
    assert pixels.shape == (3, 336, 336)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 << 10  # KiB
