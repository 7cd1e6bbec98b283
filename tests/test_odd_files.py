"""Files that every viewer shows although their form is odd."""

import io
import random
import re
import zlib

import numpy as np
import pytest
from pictures import encode, noise, photograph
from PIL import Image, PngImagePlugin
from test_colours import profile

from fdftnet_jax.data import images, odd_files

JPEG = encode(photograph(), "JPEG", quality=90, restart_marker_blocks=2)


def pillow(data):
    """The pixels that Pillow shows, which takes no offence at the form."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def zeroed_scan(data):
    end = data.index(b"\xff\xda") + 2
    end += int.from_bytes(data[end : end + 2], "big")
    return data[: end - 3] + bytes(3) + data[end:]


def zeros_before_restarts(data, count, kinds=b"\xd0-\xd7"):
    head, scan = data[:200], data[200:]
    pattern = rb"(?=\xff[%s])" % kinds
    return head + re.sub(pattern, bytes(count), scan)


def another_jfif(data):
    return data.replace(b"JFIF\0\1", b"JFIF\0\2", 1)


def adobe(transform):
    def change(data):
        segment = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0" + bytes([transform])
        # Without JFIF's, which would settle the colours.
        end = 4 + int.from_bytes(data[4:6], "big")
        return data[:2] + segment + data[end:]

    return change


def between_segments(data):
    end = 4 + int.from_bytes(data[4:6], "big")
    return data[:end] + b"camera\0" + data[end:]


ODD = {
    "zeroed scan": zeroed_scan,
    "two zeros": lambda data: zeros_before_restarts(data, 2),
    "one zero": lambda data: zeros_before_restarts(data, 1),
    "two zeros here and there": lambda data: zeros_before_restarts(data, 2, b"\xd3"),
    "zeros before the end": lambda data: data[:-2] + bytes(4) + data[-2:],
    "JFIF 2": another_jfif,
    "Adobe 7": adobe(7),
    "between segments": between_segments,
    "several": lambda data: zeroed_scan(another_jfif(zeros_before_restarts(data, 2))),
}


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("turned", [False, True])
def test_an_odd_jpeg_has_the_pixels_that_pillow_shows(kind, mode, turned):
    exif = Image.Exif()
    if turned:
        exif[0x0112] = 3
    plain = encode(
        photograph().convert(mode), "JPEG", restart_marker_blocks=2, exif=exif
    )
    data = ODD[kind](plain)
    assert data != plain
    picture = images.read(data)
    # (Of a small grey picture, libjpeg does not see a few zeros.)
    assert picture.notes or mode == "L"
    shown = pillow(data)[::-1, ::-1] if turned else pillow(data)
    np.testing.assert_array_equal(picture.pixels, shown)
    assert images.read(plain).notes == ()


def test_an_interval_may_end_with_a_zero_of_its_own():
    """Flat areas of some colours end so; the zeros behind them are told from those."""
    random = np.random.default_rng(0)
    colours = random.integers(0, 256, (16, 64, 3), np.uint8) // 8 * 8
    flat = np.kron(colours, np.ones((8, 8, 1), np.uint8))
    data = encode(Image.fromarray(flat), "JPEG", quality=60, restart_marker_blocks=1)
    own = re.findall(rb"[^\xff]\0\xff[\xd0-\xd7]", data)
    assert own
    odd = zeros_before_restarts(data, 2)
    np.testing.assert_array_equal(images.decode(odd), images.decode(data))


@pytest.mark.parametrize("end", [0.55, 0.7, 0.9])
@pytest.mark.parametrize("fill", [0, 1, 3, 1000])
def test_a_jpeg_whose_end_is_missing_stays_unreadable(end, fill):
    cut = JPEG[: int(end * len(JPEG))] + bytes(fill)
    for data in (cut, cut + b"\xff\xd9"):
        with pytest.raises(images.ImageError):
            images.decode(data)


def test_no_damage_passes_for_a_whole_picture():
    """Of thousands of damaged files none that was refused before is read wrongly."""
    draw = random.Random(0)
    start = JPEG.index(b"\xff\xda") + 14
    mended = 0
    for _ in range(3000):
        data = bytearray(JPEG)
        place = draw.randrange(start, len(data) - 2)
        size = draw.choice((1, 2, 4, 30))
        match draw.randrange(4):
            case 0:
                data[place] ^= 1 << draw.randrange(8)
            case 1:
                data[place : place + size] = bytes(size)
            case 2:
                del data[place : place + size]
            case 3:
                data[place:place] = bytes(size)
        try:
            odd_files.check_jpeg(bytes(data))
        except ValueError:
            try:
                pixels = images.decode(bytes(data))
            except images.ImageError:
                continue
            mended += 1
            np.testing.assert_array_equal(pixels, images.decode(JPEG))
    assert mended


def long_text(kind):
    texts = PngImagePlugin.PngInfo()
    text = "a" * 1_600_000
    if kind == "iTXt":
        texts.add_itxt("workflow", text, zip=True)
    else:
        texts.add_text("workflow", text, zip=kind == "zTXt")
    return texts


@pytest.mark.parametrize("kind", ["iTXt", "tEXt", "zTXt"])
def test_a_png_with_much_text(kind):
    pixels = noise(24, 32)
    data = encode(Image.fromarray(pixels), pnginfo=long_text(kind))
    picture = images.read(data)
    np.testing.assert_array_equal(picture.pixels, pixels)
    assert picture.notes == ("more than 1 MB of text in it",)
    with pytest.raises(images.ImageError):
        images.decode(data[:-40])


def test_a_png_with_a_large_profile_is_converted_by_it():
    pixels = noise(24, 32)
    small = profile("Display P3")
    large = small + bytes(2**21)
    large = len(large).to_bytes(4, "big") + large[4:]
    expected = images.decode(encode(Image.fromarray(pixels), icc_profile=small))
    data = encode(Image.fromarray(pixels), icc_profile=large)
    with pytest.raises(ValueError):
        pillow(data)
    np.testing.assert_array_equal(images.decode(data), expected)


def test_a_part_that_would_fill_the_memory_is_left_out():
    pixels = noise(24, 32)
    bomb = b"icc\0\0" + zlib.compress(bytes(2**27), 9)
    chunk = b"iCCP" + bomb
    chunk = len(bomb).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
    data = encode(Image.fromarray(pixels))
    picture = images.read(data[:33] + chunk + data[33:])
    np.testing.assert_array_equal(picture.pixels, pixels)
    assert "profile" in picture.notes[0]


@pytest.mark.parametrize("quality", [50, 75, 90])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_zeros_in_place_of_the_end_of_an_interval_are_damage(quality, count):
    data = encode(photograph(), "JPEG", quality=quality, restart_marker_blocks=1)
    for marker in re.finditer(rb"\xff[\xd0-\xd9]", data):
        end = marker.start()
        if end < data.index(b"\xff\xda") + 30:
            continue
        changed = data[: end - count] + bytes(count) + data[end:]
        try:
            odd_files.check_jpeg(changed)
        except ValueError:
            try:
                pixels = images.decode(changed)
            except images.ImageError:
                continue
            # Only the ones behind its last code were missing.
            np.testing.assert_array_equal(pixels, images.decode(data))
