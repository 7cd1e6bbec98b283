"""Whole files are read as they are; damaged, endless and huge ones are refused."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
import simplejpeg
from pictures import (
    encode,
    noise,
    photograph,
)
from PIL import Image, PngImagePlugin

from fdftnet_jax.data import images


def ycck(jpeg):
    """A JPEG of CMYK colours, marked as that of YCCK colours."""
    marker = jpeg.index(b"Adobe")
    return jpeg[: marker + 11] + b"\x02" + jpeg[marker + 12 :]


JPEGS = {
    "baseline": encode(photograph(), "JPEG"),
    "4:4:4": encode(photograph(), "JPEG", subsampling=0),
    "restarts": encode(photograph(), "JPEG", restart_marker_blocks=2),
    "progressive": encode(photograph(), "JPEG", progressive=True),
    "grey": encode(photograph().convert("L"), "JPEG"),
    "grey, progressive": encode(photograph().convert("L"), "JPEG", progressive=True),
    "rgb": encode(photograph(), "JPEG", keep_rgb=True),
    "cmyk": encode(photograph().convert("CMYK"), "JPEG"),
    "ycck": ycck(encode(photograph().convert("CMYK"), "JPEG")),
    "trailing bytes": encode(photograph(), "JPEG") + b"more",
}


@pytest.mark.parametrize("kind", JPEGS)
def test_whole_jpegs_of_every_kind_are_read(kind):
    with Image.open(io.BytesIO(JPEGS[kind])) as image:
        expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(images.decode(JPEGS[kind]), expected)


@pytest.mark.parametrize("subsampling", ["444", "422", "440", "420", "411", "Gray"])
@pytest.mark.parametrize("size", [(1, 1), (17, 31), (40, 33)])
def test_the_colours_of_a_jpeg_are_those_that_pillow_reads(subsampling, size):
    data = simplejpeg.encode_jpeg(noise(*size), 80, colorsubsampling=subsampling)
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(images.decode(data), expected)


@pytest.mark.parametrize("kind", sorted(set(JPEGS) - {"trailing bytes"}))
def test_a_jpeg_whose_end_was_patched_on_is_not_read(kind):
    # libjpeg fills the rest with grey, and Pillow does not tell.
    data = JPEGS[kind]
    start = data.rindex(b"\xff\xda")
    cut = (start + 14 + len(data)) // 2
    with pytest.raises(images.ImageError, match=r"(?i)corrupt|premature|truncated"):
        images.decode(data[:cut].rstrip(b"\xff") + b"\xff\xd9")


def test_a_phone_s_several_pictures_in_one_jpeg_are_its_first():
    first = photograph()
    data = encode(first, "MPO", save_all=True, append_images=[Image.new("RGB", (9, 9))])
    picture = images.read(data)
    assert picture.pixels.shape == (64, 48, 3)
    assert picture.format == "JPEG"


def interlaced_png(pixels, missing=0):
    """Pillow cannot write one; [h, w] uint8, without the last `missing` bytes."""
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4)]
    passes += [(2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    rows = b""
    for row, column, down, right in passes:
        part = pixels[row::down, column::right]
        rows += b"".join(b"\0" + line.tobytes() for line in part if part.size)
    height, width = pixels.shape

    def chunk(kind, data):
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 1)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows[: len(rows) - missing]))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (8, 8), (17, 31), (60, 9)])
def test_an_interlaced_png(shape):
    pixels = noise(*shape)[..., 0]
    read = images.decode(interlaced_png(pixels))
    np.testing.assert_array_equal(read, np.repeat(pixels[..., None], 3, axis=-1))
    # Pillow leaves black what is missing, where that is whole rows of a pass.
    for missing in range(1, pixels.size):
        with pytest.raises(images.ImageError, match="truncated"):
            images.decode(interlaced_png(pixels, missing))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "LA", "RGBA", "I;16"])
@pytest.mark.parametrize("width", [1, 7, 9])
def test_a_png_of_every_depth_has_as_many_rows_as_it_says(mode, width):
    picture = Image.fromarray(noise(5, width)).convert(mode if mode != "I;16" else "I")
    if mode == "I;16":
        picture = Image.fromarray(noise(5, width)[..., 0].astype(np.uint16))
    for bits in (1, 2, 4) if mode == "P" else (None,):
        data = encode(picture, **({"bits": bits} if bits else {}))
        assert images.decode(data).shape == (5, width, 3)
        # One row more, which Pillow leaves black.
        header = data[12:20] + struct.pack(">I", 6) + data[24:29]
        more = data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]
        with Image.open(io.BytesIO(more)) as image:
            image.load()
        with pytest.raises(images.ImageError, match="truncated"):
            images.decode(more)


@pytest.mark.parametrize("chunk", [b"IDAT", b"tEXt"])
def test_a_wrong_checksum_is_noticed(chunk):
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "none")
    data = bytearray(encode(photograph(), pnginfo=text))
    start = data.index(chunk)
    data[start + 4 + int.from_bytes(data[start - 4 : start], "big")] ^= 1
    with pytest.raises(images.ImageError):
        images.decode(bytes(data))


def tiff(picture, *, strips=None, drop=0):
    """An uncompressed TIFF, whose directory comes first, with `drop` strips missing."""
    rows = -(-picture.height // strips) if strips else picture.height
    pixels = np.asarray(picture)
    parts = [pixels[i : i + rows].tobytes() for i in range(0, picture.height, rows)]
    parts = parts[: len(parts) - drop]
    count = len(parts)
    fields = [
        (256, 4, [picture.width]),
        (257, 4, [picture.height]),
        (258, 3, [8, 8, 8]),
        (259, 3, [1]),
        (262, 3, [2]),
        (273, 4, [0] * count),
        (277, 3, [3]),
        (278, 4, [rows]),
        (279, 4, [len(part) for part in parts]),
    ]
    end = 8 + 2 + 12 * len(fields) + 4
    extra = 6 + 8 * count
    offsets = [end + extra + sum(map(len, parts[:i])) for i in range(count)]
    fields[5] = (273, 4, offsets)
    directory, tail = struct.pack("<H", len(fields)), b""
    for tag, kind, values in fields:
        packed = struct.pack(f"<{len(values)}{'H' if kind == 3 else 'I'}", *values)
        if len(packed) > 4:
            tail, packed = tail + packed, struct.pack("<I", end + len(tail))
        directory += struct.pack("<HHI", tag, kind, len(values)) + packed.ljust(
            4, b"\0"
        )
    head = b"II*\0" + struct.pack("<I", 8) + directory + b"\0" * 4 + tail
    return head.ljust(end + extra, b"\0") + b"".join(parts)


def test_a_missing_strip_is_noticed():
    picture = photograph()
    data = tiff(picture, strips=4)
    np.testing.assert_array_equal(images.decode(data), np.asarray(picture))
    # Pillow leaves the rows of such a strip black.
    with pytest.raises(images.ImageError, match="a part of the picture is missing"):
        images.decode(tiff(picture, strips=4, drop=1))


def test_a_damaged_jpeg_in_a_tiff_is_noticed():
    data = encode(photograph(256, 256), "TIFF", compression="jpeg")
    images.decode(data)
    with Image.open(io.BytesIO(data)) as image:
        offset, size = image.tag_v2[273][0], image.tag_v2[279][0]
    middle = offset + size // 2
    damaged = data[:middle] + bytes(40) + data[middle + 40 :]
    with Image.open(io.BytesIO(damaged)) as image:
        image.load()  # Pillow notices nothing.
    with pytest.raises(images.ImageError, match="Corrupt JPEG"):
        images.decode(damaged)


def test_more_pixels_than_are_decoded_at_most(monkeypatch):
    """Are refused by the header, with neither a warning nor the memory."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 48)
    images.decode(encode(photograph(64, 48)))
    monkeypatch.setattr(
        images, "_decode_any", lambda *_: pytest.fail("decoded before the check")
    )
    for shape in ((65, 48), (500, 500)):
        with pytest.raises(images.ImageError, match="pixels"):
            images.decode(encode(photograph(*shape)))


@pytest.mark.parametrize("options", [{}, {"no_jp2": True}])
def test_a_jpeg_2000_that_ends_before_its_data(options):
    data = encode(photograph(), "JPEG2000", **options)
    start = data.index(b"\xff\x93")
    for end in range(start - 20, start + 20):
        # Pillow shows black where the header is whole and nothing follows.
        with pytest.raises(images.ImageError):
            images.decode(data[:end])


@pytest.mark.parametrize(
    "error",
    [struct.error, EOFError, KeyError, MemoryError, OverflowError, zlib.error],
)
def test_whatever_pillow_raises_is_an_image_error(monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(images, "_decode_any", fail)
    with pytest.raises(images.ImageError, match=r"cannot read .* bytes: damaged"):
        images.decode(encode(photograph()))


def test_a_jpeg_of_thousands_of_scans_is_not_decoded(monkeypatch):
    data = encode(photograph(), "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    monkeypatch.setattr(
        simplejpeg, "decode_jpeg", lambda *_: pytest.fail("decoded before the check")
    )
    with pytest.raises(images.ImageError, match="more scans than a picture has"):
        images.decode(data[:-2] + 2000 * last + data[-2:])


def test_what_is_no_regular_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(images.ImageError, match="not a regular file"):
        images.decode(tmp_path / "pipe.png")
    with pytest.raises(images.ImageError, match=r"zero: not a regular file"):
        images.decode("/dev/zero")


def test_a_file_larger_than_a_picture_is_not_read(tmp_path):
    with open(tmp_path / "huge.png", "wb") as file:
        file.truncate(10**12)  # Without a block on the disk.
    with pytest.raises(images.ImageError, match="bytes are more than a picture has"):
        images.decode(tmp_path / "huge.png")
