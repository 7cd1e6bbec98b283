"""Images of every mode and format, and what becomes of them."""

import base64
import io
import struct
import subprocess
import sys
import time
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

WEBP = solid("RGBA", (9, 8, 7, 153), "WEBP", lossless=True)
# A gradient, 64 x 48, that libheif 1.23 with x265 wrote (quality 60).
HEIC = base64.b85decode(
    "0000SW^{RQXk}?*00000ZE0pPXk}?*ZE0a<0004fZDn*}000000000XXk=`10000000000aA{+700000"
    "000000000000000B57=IV*mgE07O6l0RRC200001p#T8@00000005l;001LtX>Mi!000000RR916=`l}"
    "WdZ;I000310BCk&F#rGn01j|zbZr0t000010002}X>f9I0002pX>en20001XXm(>m0RwOV0058x00000"
    "9`FGC{rLC*01pFT0096PKmiN^|NjGU00093kN^M!000939=ZZRVE_RDDnbDP18@KU0|1Z!00RI30{|YN"
    "Ab|yz>g1-mxCm%4AOHXZ10VnZ0{|gn00967L;=Bbz=;3=025<xY;ta6Y<K_x01W^JfB*mh6lrsCWdHyG"
    "00000KmY&$KmY&$C}V74Z~y=RKmY&$0RR91FaQ7m0RR91000000{{R2@Bjb+0ssI25O8UDX#fBK00RgJ"
    "2mk;87-?{AVE_OC000000RRC7fdT^sga7~lrEO$kbN~PVnJ59T3E(~so1RV(bg;%PKEZyB7cr2(EmgmI"
    "i-QL~=0<Rx_LX652yHt{WmAdlRKBs-r}m$rQE*i@viaaGhZ7>0YQW7^{(XYWZb~t*XvO+}(9n6)75cfX"
    "j4d=q>TT?^hvEOUIIh=Ux+Unfd1-x46LEIK+B8ce$>Pf-jLCCkaj2;1Cjjp~JA`z5F_A53)=aiPAN&"
)
CMYK = solid("CMYK", (51, 102, 0, 51), "TIFF")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(solid("RGB", (200, 100, 50)), (200, 100, 50), id="rgb"),
        pytest.param(solid("L", 100), (100, 100, 100), id="grey"),
        pytest.param(solid("1", 1), (255, 255, 255), id="1-bit"),
        pytest.param(palette(), (200, 100, 50), id="palette"),
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


# Values of colour and opacity, by which white shines through: c a + 255 (1 - a).
@pytest.mark.parametrize(
    ("data", "stored", "opacity"),
    [
        pytest.param(solid("LA", (100, 153)), (100, 100, 100), 0.6, id="grey"),
        pytest.param(solid("RGBA", (10, 20, 30, 204)), (10, 20, 30), 0.8, id="rgba"),
        pytest.param(WEBP, (9, 8, 7), 153 / 255, id="webp"),
        pytest.param(
            palette(transparency=b"\0\xcc"), (200, 100, 50), 0.8, id="palette"
        ),
    ],
)
def test_transparency_is_over_white_or_dropped(data, stored, opacity):
    white = np.array(stored) * opacity + 255 * (1 - opacity)
    np.testing.assert_allclose(images.decode(data)[1, 1], white, atol=1)
    np.testing.assert_array_equal(images.decode(data, "stored")[1, 1], stored)


@pytest.mark.parametrize(
    "data", [solid("RGBA", (9, 9, 9, 20)), palette(transparency=1)]
)
def test_an_invisible_picture_is_not_read(data):
    with pytest.raises(images.ImageError, match="most of the picture is transparent"):
        images.decode(data)
    assert images.decode(data, "stored").shape == (3, 4, 3)


def test_nothing_to_judge():
    picture = noise(32, 40)
    assert images.nothing_to_judge(picture) == ""
    assert "40 x 31 pixels" in images.nothing_to_judge(picture[:31])
    assert "32 x 31" not in images.nothing_to_judge(picture[:, :31])
    assert "31 x 32 pixels" in images.nothing_to_judge(picture[:, :31])
    flat = np.full((64, 64, 3), (10, 200, 30), np.uint8)
    flat[::2, ::2] += 2  # As a JPEG of one colour may come out.
    assert "one colour" in images.nothing_to_judge(flat)
    flat[-1, -1] = 255
    assert images.nothing_to_judge(flat) == ""


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
    # (Nobody here writes HEIF.)
    data = HEIC if fmt == "HEIF" else encode(photograph(), fmt)
    picture = images.read(data)
    assert picture.format == fmt
    assert (picture.quality is not None) == (fmt == "JPEG")
    path = tmp_path / "without_suffix"
    path.write_bytes(data)
    assert images.format_of(path) == (None if fmt == "TGA" else fmt)


def test_heic():
    rows, columns = np.mgrid[:48, :64]
    drawn = np.stack([4 * columns, 5 * rows, 255 - 2 * (rows + columns)], axis=-1)
    np.testing.assert_allclose(images.decode(HEIC), np.clip(drawn, 0, 255), atol=8)
    for end in range(0, len(HEIC), 7):
        with pytest.raises(images.ImageError):
            images.decode(HEIC[:end])


def test_heic_without_its_package_says_what_to_install(tmp_path):
    path = tmp_path / "phone.heic"
    path.write_bytes(HEIC)
    code = (
        "import sys; sys.modules['pi_heif'] = None\n"
        "from fdftnet_jax.data import images\n"
        "print(images.format_of(sys.argv[1]))\n"
        "images.read(sys.argv[1])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, path], capture_output=True, text=True
    )
    assert run.stdout == "HEIF\n"
    assert "pip install pi-heif" in run.stderr.splitlines()[-1]


def test_large_pictures_are_decoded_one_at_a_time(monkeypatch):
    at_work, counts = [], []

    def decode(*_):
        at_work.append(1)
        counts.append(len(at_work))
        time.sleep(0.02)
        at_work.pop()
        return np.zeros((1, 1, 3), np.uint8), []

    monkeypatch.setattr(images, "_decode_any", decode)
    data = encode(photograph(64, 48))
    most = []
    for large in (64 * 48, 64 * 48 - 1):
        monkeypatch.setattr(images, "_LARGE", large)
        with futures.ThreadPoolExecutor(4) as pool:
            list(pool.map(images.decode, [data] * 8))
        most.append(max(counts))
        counts.clear()
    assert most[0] > 1 and most[1] == 1


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
        "decoding": "srgb",
        "mirror": False,
        "train_size": 0,
    }
    assert preprocess.Preprocessing.from_dict(values) == preprocessing
    # As version 0.2 wrote it.
    del values["decoding"], values["mirror"], values["train_size"]
    assert preprocess.Preprocessing.from_dict(values).decoding == "stored"


@pytest.mark.parametrize(
    "values",
    [
        {"view": "crop"},
        {"size": 0},
        {"size": 6.5},
        {"filter": "magic"},
        {"scaling": "none"},
        {"decoding": "none"},
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
