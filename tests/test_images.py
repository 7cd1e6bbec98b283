"""Images of every mode and format, and what becomes of them."""

import io
import struct
import warnings
from concurrent import futures

import jax.numpy as jnp
import numpy as np
import pytest
from pictures import (
    animation,
    encode,
    grey,
    noise,
    palette,
    photograph,
    rgb16_png,
    solid,
)
from PIL import Image

from fdftnet_jax.data import images, preprocess
from fdftnet_jax.errors import UserError

WEBP = solid("RGBA", (9, 8, 7, 99), "WEBP", lossless=True)


CMYK = solid("CMYK", (51, 102, 0, 51), "TIFF")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(solid("RGB", (200, 100, 50)), (200, 100, 50), id="rgb"),
        pytest.param(solid("L", 100), (100, 100, 100), id="grey"),
        pytest.param(solid("LA", (100, 0)), (100, 100, 100), id="grey-alpha"),
        pytest.param(solid("RGBA", (10, 20, 30, 0)), (10, 20, 30), id="rgba"),
        pytest.param(WEBP, (9, 8, 7), id="rgba-webp"),
        pytest.param(solid("1", 1), (255, 255, 255), id="1-bit"),
        pytest.param(palette(), (200, 100, 50), id="palette"),
        pytest.param(palette(transparency=b"\0\1"), (200, 100, 50), id="palette-alpha"),
        pytest.param(palette(transparency=1), (200, 100, 50), id="palette-key"),
        # (255 - 51)(255 - 51) / 255 = 163.2, (255 - 102)(255 - 51) / 255 = 122.4.
        pytest.param(CMYK, (163, 122, 204), id="cmyk"),
        # 1000 / 257 = 3.9; the high byte is 3, and clipping gives 255.
        pytest.param(grey(np.uint16, 1000), (4, 4, 4), id="16-bit"),
        pytest.param(grey(np.uint16, 65535), (255, 255, 255), id="16-bit-white"),
        pytest.param(grey(np.dtype(">u2"), 1000, "TIFF"), (4, 4, 4), id="16-bit-tiff"),
        pytest.param(grey(np.int32, 1000, "TIFF"), (4, 4, 4), id="32-bit"),
        pytest.param(grey(np.float32, 0.2, "TIFF"), (51, 51, 51), id="float"),
        # 200 = 51400 / 257.
        pytest.param(rgb16_png((51400, 25700, 12850)), (200, 100, 50), id="rgb-16-bit"),
    ],
)
def test_every_mode_decodes_to_its_colour(data, expected):
    image = images.decode(data)
    assert image.dtype == np.uint8
    assert image.shape in ((3, 4, 3), (1, 1, 3))
    np.testing.assert_array_equal(image, np.broadcast_to(expected, image.shape))


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("RGB", (200, 100, 50), (200, 100, 50)),
        # JPEG files of print colours are stored inverted.
        ("CMYK", (51, 102, 0, 51), (163, 122, 204)),
    ],
)
def test_jpeg(mode, colour, expected):
    image = images.decode(solid(mode, colour, "JPEG", quality=100))
    np.testing.assert_allclose(image[1, 1], expected, atol=2)


@pytest.mark.parametrize(
    ("orientation", "shown"),
    [
        (1, [[1, 2, 3], [4, 5, 6]]),
        (2, [[3, 2, 1], [6, 5, 4]]),
        (3, [[6, 5, 4], [3, 2, 1]]),
        (4, [[4, 5, 6], [1, 2, 3]]),
        (5, [[1, 4], [2, 5], [3, 6]]),
        (6, [[4, 1], [5, 2], [6, 3]]),
        (7, [[6, 3], [5, 2], [4, 1]]),
        (8, [[3, 6], [2, 5], [1, 4]]),
    ],
)
@pytest.mark.parametrize("scale", [1, 257])
def test_exif_orientation_is_applied(orientation, shown, scale):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.array([[1, 2, 3], [4, 5, 6]]) * scale
    stored = stored.astype(np.uint8 if scale == 1 else np.uint16)
    image = images.decode(encode(Image.fromarray(stored), exif=exif))
    np.testing.assert_array_equal(image[..., 0], shown)


def test_decodes_a_path(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(solid("RGB", (1, 2, 3)))
    for source in (path, str(path)):
        np.testing.assert_array_equal(images.decode(source)[0, 0], (1, 2, 3))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"no image", "not in an image format"),
        # Pillow would run another program on it.
        (
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
            "not in an image format",
        ),
        (encode(Image.fromarray(noise(64, 64)), "JPEG")[:2000], "Premature end"),
        (encode(Image.fromarray(noise(64, 64)))[:2000], "truncated"),
        (rgb16_png((1, 2, 3))[:30], ""),
        (animation("GIF"), "several frames"),
        (animation("PNG"), "several frames"),
        (animation("WEBP"), "several frames"),
        (animation("TIFF"), "several frames"),
        (grey(np.float32, 2.0, "TIFF"), "instead of [0, 1]"),
        (grey(np.float32, np.nan, "TIFF"), "instead of [0, 1]"),
        (grey(np.int32, 65536, "TIFF"), "instead of [0, 65535]"),
    ],
)
def test_unreadable_data_is_a_user_error(data, reason):
    with pytest.raises(images.ImageError) as error:
        images.decode(data)
    message = str(error.value)
    assert isinstance(error.value, UserError)
    assert f"{len(data)} bytes" in message and reason in message
    assert "\n" not in message


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(images.ImageError, match=r"gone\.png: No such file"):
        images.decode(tmp_path / "gone.png")


def test_png_round_trip():
    image = noise(17, 31)
    data = images.encode_png(image)
    np.testing.assert_array_equal(images.decode(data), image)
    np.testing.assert_array_equal(images.decode_png(data), image)


@pytest.mark.parametrize("quality", [1, 20, 49, 50, 75, 90, 95, 100])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_jpeg_quality(quality, mode):
    data = encode(photograph().convert(mode), "JPEG", quality=quality)
    assert images.read(data).quality == quality


@pytest.mark.parametrize("fmt", sorted(set(images.SUFFIXES.values())))
def test_format(fmt, tmp_path):
    data = encode(photograph(), fmt)
    picture = images.read(data)
    assert picture.format == fmt
    assert (picture.quality is not None) == (fmt == "JPEG")
    path = tmp_path / "without_suffix"
    path.write_bytes(data)
    assert images.format_of(path) == (None if fmt == "TGA" else fmt)


def test_suffixes_are_pillow_s():
    registered = Image.registered_extensions()
    assert {suffix: registered[suffix] for suffix in images.SUFFIXES} == images.SUFFIXES


def test_a_warning_of_pillow_is_neither_shown_nor_an_error():
    """Whatever the filters are: of metadata, which says nothing of the pixels."""
    exif = Image.Exif()
    exif[0x010E] = "a description"
    data = encode(photograph(), "JPEG", exif=exif)
    # The description's length, beyond the end.
    size = data.index(struct.pack(">HH", 0x010E, 2)) + 4
    broken = data[:size] + struct.pack(">I", 999) + data[size + 4 :]
    with pytest.warns(UserWarning), Image.open(io.BytesIO(broken)) as image:
        image.getexif()
    before = list(warnings.filters)
    for action in ("error", "always"):
        with warnings.catch_warnings(record=True) as shown:
            warnings.simplefilter(action)
            assert images.decode(broken).shape == (64, 48, 3)
        assert not shown
    assert warnings.filters == before


def test_readers_in_parallel_leave_the_filters_of_warnings_as_they_were():
    before = list(warnings.filters)
    data = encode(photograph(), "JPEG")
    with futures.ThreadPoolExecutor(8) as pool:
        assert len(list(pool.map(images.decode, [data] * 200))) == 200
    assert warnings.filters == before


def triangle_weights(size, new_size):
    """[new_size, size] float64: the triangle filter, widened when it reduces."""
    step = size / new_size
    support = max(step, 1)
    centre = (np.arange(new_size)[:, None] + 0.5) * step
    distance = np.abs(np.arange(size)[None] + 0.5 - centre)
    weights = np.maximum(0, 1 - distance / support)
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("shape", [(256, 256), (109, 89), (40, 300), (64, 64), (1, 1)])
@pytest.mark.parametrize("size", [64, 33])
def test_resize_is_an_antialiased_stretch(shape, size):
    image = noise(*shape)
    resized = preprocess.Preprocessing(size=size)(image)
    rows, columns = (triangle_weights(n, size) for n in shape)
    expected = np.einsum("ih,hwc,jw->ijc", rows, image, columns, optimize=True)
    assert resized.dtype == np.uint8 and resized.shape == (size, size, 3)
    np.testing.assert_allclose(resized, expected, atol=1)


def test_preprocessing_round_trips_through_a_dict():
    preprocessing = preprocess.Preprocessing(size=32)
    values = preprocessing.to_dict()
    assert values == {
        "view": "resize",
        "size": 32,
        "filter": "bilinear",
        "scaling": "minus_one_one",
        "grid": 1,
    }
    assert preprocess.Preprocessing.from_dict(values) == preprocessing


@pytest.mark.parametrize(
    "values",
    [
        {"view": "crop"},
        {"size": 0},
        {"size": 6.5},
        {"filter": "magic"},
        {"scaling": "none"},
        {"crop_margin": 2},
    ],
)
def test_unknown_preprocessing_is_a_user_error(values):
    with pytest.raises(UserError, match="expected preprocessing"):
        preprocess.Preprocessing.from_dict(values)


@pytest.mark.parametrize("library", [np, jnp])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_scale(library, dtype):
    pixels = library.asarray([[0, 51, 255]], dtype)
    scaled = preprocess.scale(pixels)
    assert type(scaled) is type(pixels) and scaled.dtype == np.float32
    np.testing.assert_allclose(scaled, [[-1, -0.6, 1]], atol=1e-6)


@pytest.mark.parametrize(
    ("scaling", "black", "white"),
    [
        ("zero_one", [0, 0, 0], [1, 1, 1]),
        # (0 - mean) / std and (1 - mean) / std of ImageNet, by hand.
        ("imagenet", [-2.1179, -2.0357, -1.8044], [2.2489, 2.4286, 2.6400]),
    ],
)
def test_other_scalings(scaling, black, white):
    pixels = np.array([[[0, 0, 0], [255, 255, 255]]], np.uint8)
    for given in (pixels, jnp.asarray(pixels, jnp.float32)):
        scaled = preprocess.scale(given, scaling)
        assert scaled.dtype == np.float32
        np.testing.assert_allclose(scaled[0], [black, white], atol=5e-5)
