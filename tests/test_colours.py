"""Colour profiles, against the matrices and curves of their standards."""

import io

import numpy as np
import pytest
from pictures import encode, noise
from PIL import Image, ImageCms

from fdftnet_jax.data import images

# Linear red, green, blue -> CIE XYZ with the white of D65, by IEC 61966-2-1, SMPTE EG
# 432-1 (Display P3) and Adobe RGB (1998), 4.3.5.
_TO_XYZ = {
    "sRGB": np.array(
        [
            [0.4124564, 0.3575761, 0.1804375],
            [0.2126729, 0.7151522, 0.0721750],
            [0.0193339, 0.1191920, 0.9503041],
        ]
    ),
    "Display P3": np.array(
        [
            [0.4865709, 0.2656677, 0.1982173],
            [0.2289746, 0.6917385, 0.0792869],
            [0.0000000, 0.0451134, 1.0439444],
        ]
    ),
    "Adobe RGB": np.array(
        [
            [0.5767309, 0.1855540, 0.1881852],
            [0.2973769, 0.6273491, 0.0752741],
            [0.0270343, 0.0706872, 0.9911085],
        ]
    ),
}
# Bradford's adaptation from D65 to D50, in which profiles hold their colours.
_TO_D50 = np.array(
    [
        [1.0478112, 0.0228866, -0.0501270],
        [0.0295424, 0.9904844, -0.0170491],
        [-0.0092345, 0.0150436, 0.7521316],
    ]
)


def fixed(value):
    """A number as profiles store it: 16 bits before the point and 16 after it."""
    return round(value * 65536).to_bytes(4, "big", signed=True)


def curve(gamma):
    """sRGB's curve as a table of 1,024 values; another gamma as a number."""
    if gamma is not None:
        return b"curv\0\0\0\0\0\0\0\1" + round(gamma * 256).to_bytes(2, "big")
    table = np.rint(linear_from_srgb(np.linspace(0, 1, 1024)) * 65535)
    return b"curv\0\0\0\0" + (1024).to_bytes(4, "big") + table.astype(">u2").tobytes()


def profile(name, gamma=None):
    """An ICC profile (version 2): a matrix and equal curves, or 'grey' and a curve."""
    white = b"XYZ \0\0\0\0" + b"".join(map(fixed, (0.9642, 1, 0.8249)))
    text = b"desc\0\0\0\0\0\0\0\2x\0" + bytes(4 + 4 + 2 + 1 + 67 + 1)
    tags = {b"desc": text, b"wtpt": white}
    if name == "grey":
        tags[b"kTRC"] = curve(gamma)
    else:
        for channel, column in zip(b"rgb", (_TO_D50 @ _TO_XYZ[name]).T, strict=True):
            xyz = b"XYZ \0\0\0\0" + b"".join(map(fixed, column))
            tags |= {b"%cXYZ" % channel: xyz, b"%cTRC" % channel: curve(gamma)}
    place, table, body = 128 + 4 + 12 * len(tags), b"", b""
    for tag, data in tags.items():
        data += bytes(-len(data) % 4)
        table += tag + (place + len(body)).to_bytes(4, "big")
        table += len(data).to_bytes(4, "big")
        body += data
    space = b"GRAY" if name == "grey" else b"RGB "
    header = bytes(8) + b"\2\x10\0\0mntr" + space + b"XYZ " + bytes(12) + b"acsp"
    header += bytes(28) + b"".join(map(fixed, (0.9642, 1, 0.8249)))
    whole = header.ljust(128, b"\0") + len(tags).to_bytes(4, "big") + table + body
    return len(whole).to_bytes(4, "big") + whole[4:]


def linear_from_srgb(values):
    return np.where(
        values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4
    )


def srgb_from_linear(values):
    values = np.clip(values, 0, 1)
    return np.where(
        values <= 0.0031308, 12.92 * values, 1.055 * values ** (1 / 2.4) - 0.055
    )


def converted(pixels, name, gamma):
    values = pixels / 255
    light = linear_from_srgb(values) if gamma is None else values**gamma
    xyz = light @ _TO_XYZ[name].T
    return 255 * srgb_from_linear(xyz @ np.linalg.inv(_TO_XYZ["sRGB"]).T)


@pytest.mark.parametrize(
    ("name", "gamma"), [("Display P3", None), ("Adobe RGB", 563 / 256)]
)
@pytest.mark.parametrize("fmt", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_colours_become_srgb(name, gamma, fmt):
    # Large areas, which a JPEG keeps.
    pixels = np.kron(noise(6, 8), np.ones((16, 16, 1), np.uint8))
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}
    data = encode(
        Image.fromarray(pixels),
        fmt,
        icc_profile=profile(name, gamma),
        **options.get(fmt, {}),
    )
    stored = images.decode(data, "stored")
    expected = converted(stored, name, gamma)
    assert np.abs(expected - stored).max() > 20
    np.testing.assert_allclose(images.decode(data), expected, atol=2)


@pytest.mark.parametrize("fmt", ["PNG", "JPEG"])
def test_grey_becomes_srgb(fmt):
    grey = np.kron(np.arange(0, 256, 5, np.uint8)[None], np.ones((16, 16), np.uint8))
    options = {"quality": 100} if fmt == "JPEG" else {}
    data = encode(
        Image.fromarray(grey), fmt, icc_profile=profile("grey", 1.8), **options
    )
    stored = images.decode(data, "stored")
    # As old Macintoshes showed it; a profile holds 461 / 256.
    expected = 255 * srgb_from_linear((stored / 255) ** (461 / 256))
    assert np.abs(expected - stored).max() > 10
    np.testing.assert_allclose(images.decode(data), expected, atol=2)


def test_alpha_is_laid_over_white_in_srgb():
    pixels = noise(8, 8)
    opacity = np.full((8, 8, 1), 204, np.uint8)
    picture = Image.fromarray(np.concatenate([pixels, opacity], axis=-1))
    data = encode(picture, icc_profile=profile("Display P3"))
    expected = 0.8 * converted(pixels, "Display P3", None) + 0.2 * 255
    np.testing.assert_allclose(images.decode(data), expected, atol=2)


def test_srgb_stays_as_it_is():
    pixels = noise(32, 32)
    for icc in (
        profile("sRGB"),
        ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
    ):
        data = encode(Image.fromarray(pixels), icc_profile=icc)
        np.testing.assert_array_equal(images.decode(data), pixels)


def test_print_colours_by_a_profile_of_another_kind():
    """A profile that does not fit the picture's colours is ignored, and named."""
    data = encode(Image.new("CMYK", (4, 3), (51, 102, 0, 51)), "TIFF")
    with Image.open(io.BytesIO(data)) as image:
        wrong = encode(image, "TIFF", icc_profile=profile("Adobe RGB", 2.2))
    picture = images.read(wrong)
    assert "profile" in picture.notes[0]
    np.testing.assert_array_equal(picture.pixels, images.decode(data))


@pytest.mark.parametrize("end", [0, 3, 100, 131, 200, -20])
def test_a_broken_profile_is_ignored_with_a_note(end):
    pixels = noise(8, 8)
    data = encode(Image.fromarray(pixels), icc_profile=profile("Adobe RGB", 2.2)[:end])
    picture = images.read(data)
    np.testing.assert_array_equal(picture.pixels, pixels)
    assert ["profile" in note for note in picture.notes] == ([True] if end else [])
