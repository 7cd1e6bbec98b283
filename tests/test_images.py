import io
import os
import struct
import warnings
import zlib
from concurrent import futures

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from fdftnet_jax.data import images
from fdftnet_jax.errors import UserError


def encode(image, fmt="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, fmt, **options)
    return buffer.getvalue()


def solid(mode, colour, fmt="PNG", **options):
    return encode(Image.new(mode, (4, 3), colour), fmt, **options)


def grey(dtype, value, fmt="PNG"):
    return encode(Image.fromarray(np.full((3, 4), value, dtype)), fmt)


def palette(**options):
    image = Image.new("P", (4, 3), 1)
    image.putpalette([1, 2, 3, 200, 100, 50])
    return encode(image, **options)


def rgb16_png(value):
    """A 1x1 PNG of 16-bit colour, which Pillow cannot write."""

    def chunk(kind, data):
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    header = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" + struct.pack(">HHH", *value))
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", pixels)
        + chunk(b"IEND", b"")
    )


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


def animation(fmt):
    frames = [Image.new("RGB", (4, 3), colour) for colour in ("red", "blue")]
    return encode(frames[0], fmt, save_all=True, append_images=frames[1:])


def noise(height, width):
    shape = (height, width, 3)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


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
        (encode(Image.fromarray(noise(64, 64)), "JPEG")[:2000], "truncated"),
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


def photograph(height=64, width=48):
    """Smooth enough for a JPEG of it to have no error that shows."""
    rows, columns = np.mgrid[:height, :width]
    planes = 128 + 90 * np.sin([rows / 9, columns / 7, (rows + columns) / 11])
    return Image.fromarray(planes.transpose(1, 2, 0).astype(np.uint8))


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
        images, "_to_rgb", lambda _: pytest.fail("decoded before the check")
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
    def fail(_):
        raise error

    monkeypatch.setattr(images, "_to_rgb", fail)
    with pytest.raises(images.ImageError, match=r"cannot read .* bytes: damaged"):
        images.decode(encode(photograph()))


def test_a_jpeg_of_thousands_of_scans_is_not_decoded(monkeypatch):
    data = encode(photograph(), "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    monkeypatch.setattr(
        images, "_to_rgb", lambda _: pytest.fail("decoded before the check")
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
    resized = images.Preprocessing(size=size)(image)
    rows, columns = (triangle_weights(n, size) for n in shape)
    expected = np.einsum("ih,hwc,jw->ijc", rows, image, columns, optimize=True)
    assert resized.dtype == np.uint8 and resized.shape == (size, size, 3)
    np.testing.assert_allclose(resized, expected, atol=1)


def test_preprocessing_round_trips_through_a_dict():
    preprocessing = images.Preprocessing(size=32)
    values = preprocessing.to_dict()
    assert values == {
        "view": "resize",
        "size": 32,
        "filter": "bilinear",
        "scaling": "minus_one_one",
    }
    assert images.Preprocessing.from_dict(values) == preprocessing


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
        images.Preprocessing.from_dict(values)


@pytest.mark.parametrize("library", [np, jnp])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_scale(library, dtype):
    pixels = library.asarray([[0, 51, 255]], dtype)
    scaled = images.scale(pixels)
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
        scaled = images.scale(given, scaling)
        assert scaled.dtype == np.float32
        np.testing.assert_allclose(scaled[0], [black, white], atol=5e-5)
