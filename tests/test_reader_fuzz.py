"""The reader on damaged files: an error or a picture, never a crash, a hang or a half.

A short part runs always, the long one with `-m slow`.
"""

import faulthandler
import io
import itertools
import struct
import zlib

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image

from fdftnet_jax.data import images

SECONDS = 60


def photograph(height=37, width=35):
    rows, columns = np.mgrid[:height, :width]
    planes = 128 + 90 * np.sin([rows / 5, columns / 4, (rows + columns) / 7])
    noise = np.random.default_rng(0).integers(-8, 9, planes.shape)
    return Image.fromarray((planes + noise).transpose(1, 2, 0).astype(np.uint8))


def encode(fmt, mode="RGB", **options):
    file = io.BytesIO()
    photograph().convert(mode).save(file, fmt, **options)
    return file.getvalue()


def directory_first(tiff):
    """The same TIFF with its directory before its pixels."""
    with Image.open(io.BytesIO(tiff)) as image:
        tags = image.tag_v2
        strips = [
            tiff[offset : offset + size]
            for offset, size in zip(tags[273], tags[279], strict=True)
        ]
        fields = {
            tag: (tags.tagtype[tag], tags[tag])
            for tag in sorted(tags)
            if tags.tagtype[tag] in (3, 4, 7)
        }
    for tag, (kind, value) in fields.items():
        if isinstance(value, int):
            fields[tag] = kind, (value,)
    end = 8 + 2 + 12 * len(fields) + 4
    room = sum(4 * len(value) + 4 for _, value in fields.values())
    offsets = [end + room + sum(map(len, strips[:i])) for i in range(len(strips))]
    fields[273] = 4, tuple(offsets)
    head, extra = struct.pack("<H", len(fields)), b""
    for tag, (kind, value) in fields.items():
        if kind == 7:
            packed = bytes(value)
        else:
            packed = struct.pack(f"<{len(value)}{'H' if kind == 3 else 'I'}", *value)
        head += struct.pack("<HHI", tag, kind, len(value))
        if len(packed) > 4:
            head += struct.pack("<I", end + len(extra))
            extra += packed
        else:
            head += packed.ljust(4, b"\0")
    extra = extra.ljust(room, b"\0")
    return b"II*\0\x08\0\0\0" + head + b"\0" * 4 + extra + b"".join(strips)


TIFFS = ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")
FILES = {
    "png": encode("PNG"),
    "png palette": encode("PNG", "P"),
    "png grey": encode("PNG", "L"),
    "jpeg": encode("JPEG"),
    "jpeg progressive": encode("JPEG", progressive=True),
    "jpeg grey": encode("JPEG", "L"),
    "jpeg cmyk": encode("JPEG", "CMYK"),
    "jpeg restarts": encode("JPEG", restart_marker_blocks=1),
    "webp": encode("WEBP"),
    "webp lossless": encode("WEBP", lossless=True),
    "gif": encode("GIF", "P"),
    "bmp": encode("BMP"),
    "bmp palette": encode("BMP", "P"),
    **{f"tiff {kind}": encode("TIFF", compression=kind) for kind in TIFFS},
    **{
        f"tiff {kind} strips": directory_first(
            encode("TIFF", compression=kind, strip_size=800)
        )
        for kind in TIFFS
    },
    "ppm": encode("PPM"),
    "tga": encode("TGA", compression="tga_rle"),
    "jpeg2000": encode("JPEG2000"),
    "avif": encode("AVIF"),
}


@pytest.fixture(autouse=True)
def no_hang():
    """Ends the process where a reader does not come back."""
    faulthandler.dump_traceback_later(SECONDS, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


def read(data):
    """The pixels, or None where the reader refuses; anything else is an error."""
    try:
        pixels = images.decode(data)
    except images.ImageError as error:
        assert error.reason and "\n" not in str(error)
        return None
    assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3
    assert pixels.size
    return pixels


def check_prefix(name, length):
    found = read(FILES[name][:length])
    if found is not None:
        np.testing.assert_array_equal(found, images.decode(FILES[name]))


@pytest.mark.parametrize("name", FILES)
def test_the_files_are_read(name):
    assert images.decode(FILES[name]).shape == (37, 35, 3)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_ends_early(name):
    """Lacks what comes after the pixels, or is refused."""
    size = len(FILES[name])
    for length in {*range(0, size, 41), *range(size - 30, size)}:
        check_prefix(name, length)


@pytest.mark.long
@pytest.mark.parametrize("name", FILES)
def test_a_file_that_ends_at_any_byte(name):
    for length in range(len(FILES[name])):
        check_prefix(name, length)


def taller(name, height=200):
    """A file whose header promises more rows than it has."""
    data = bytearray(FILES[name])
    if name.startswith("png"):
        data[20:24] = struct.pack(">I", height)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    elif name.startswith("jpeg"):
        header = data.index(struct.pack(">HH", 37, 35))
        data[header : header + 2] = struct.pack(">H", height)
    elif name.startswith("gif"):
        for start in (6, data.index(b",\0\0\0\0") + 5):
            assert struct.unpack_from("<HH", data, start) == (35, 37)
            struct.pack_into("<HH", data, start, 35, height)
    elif name.startswith("bmp"):
        struct.pack_into("<i", data, 22, height)
    else:
        directory = struct.unpack_from("<I", data, 4)[0]
        tags = range(directory + 2, directory + 2 + 12 * data[directory], 12)
        for tag in tags:
            if struct.unpack_from("<H", data, tag)[0] == 257:
                kind = "<H" if data[tag + 2] == 3 else "<I"
                assert struct.unpack_from(kind, data, tag + 8) == (37,)
                struct.pack_into(kind, data, tag + 8, height)
    assert bytes(data) != FILES[name]
    return bytes(data)


@pytest.mark.parametrize(
    "name", [n for n in FILES if n.split()[0] in ("png", "jpeg", "gif", "bmp", "tiff")]
)
def test_a_header_that_promises_more_rows_than_there_are(name):
    assert read(taller(name)) is None


SIZES = list(itertools.product((37, 35), ("little", "big"), (2, 4)))
POSITION = st.floats(0, 1, exclude_max=True)
MUTATIONS = st.one_of(
    st.tuples(st.just("flip"), POSITION, st.integers(1, 255)),
    # The first bytes are the format's own: without these, most of the tries miss them.
    st.tuples(st.just("header"), st.integers(0, 63), st.integers(1, 255)),
    st.tuples(st.just("insert"), POSITION, st.binary(min_size=1, max_size=40)),
    st.tuples(st.just("delete"), POSITION, st.integers(1, 300)),
    st.tuples(st.just("zero"), POSITION, st.integers(1, 300)),
    st.tuples(st.just("truncate"), POSITION, st.none()),
    st.tuples(st.just("move"), POSITION, st.tuples(POSITION, st.integers(1, 300))),
    st.tuples(st.just("size"), st.integers(0, 7), st.integers(0, 2**32 - 1)),
    st.tuples(st.just("splice"), POSITION, st.sampled_from(sorted(FILES))),
)


def mutate(data, mutation):
    kind, where, what = mutation
    data = bytearray(data)
    place = int(where * len(data)) if isinstance(where, float) else where
    if kind in ("flip", "header"):
        if place < len(data):
            data[place] ^= what
    elif kind == "insert":
        data[place:place] = what
    elif kind == "delete":
        del data[place : place + what]
    elif kind == "zero":
        end = min(place + what, len(data))
        data[place:end] = bytes(end - place)
    elif kind == "truncate":
        del data[place:]
    elif kind == "move":
        target, length = int(what[0] * len(data)), what[1]
        data[target : target + length] = data[place : place + length]
    elif kind == "size":
        # The number of rows or columns, wherever and however it stands.
        number, order, size = SIZES[place]
        start = bytes(data).find(number.to_bytes(size, order))
        if start >= 0:
            data[start : start + size] = (what % 256**size).to_bytes(size, order)
    elif kind == "splice":
        other = FILES[what]
        data[place:] = other[int(where * len(other)) :]
    return bytes(data)


def with_right_checksums(data):
    """A PNG whose chunks are damaged in a way that their checksums do not show."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    out, place = data[:8], 8
    while place + 12 <= len(data):
        (size,) = struct.unpack_from(">I", data, place)
        body = data[place + 4 : place + 8 + size]
        out += data[place : place + 4] + body + struct.pack(">I", zlib.crc32(body))
        place += 12 + size
    return out


def check_mutated(name, mutations, repair):
    data = FILES[name]
    for mutation in mutations:
        data = mutate(data, mutation)
    found = read(with_right_checksums(data) if repair else data)
    if found is None:
        return
    kinds = {mutation[0] for mutation in mutations}
    if name.startswith("png") and not repair and "splice" not in kinds:
        # Whatever is not the picture any more, a checksum tells.
        np.testing.assert_array_equal(found, images.decode(FILES[name]))


cases = hypothesis.given(
    st.sampled_from(sorted(FILES)),
    st.lists(MUTATIONS, min_size=1, max_size=4),
    st.booleans(),
)


@hypothesis.settings(max_examples=400, derandomize=True, deadline=5000, database=None)
@cases
def test_damaged_files(name, mutations, repair):
    check_mutated(name, mutations, repair)


@hypothesis.settings(max_examples=300, derandomize=True, deadline=5000, database=None)
@hypothesis.given(
    st.sampled_from([f[:n] for f in FILES.values() for n in (2, 8, 26)]),
    st.binary(max_size=400),
)
def test_garbage_after_the_beginning_of_a_file(start, garbage):
    read(start + garbage)


@pytest.mark.long
@pytest.mark.parametrize("name", FILES)
def test_damaged_files_for_long(name):
    faulthandler.dump_traceback_later(20 * SECONDS, exit=True)

    @hypothesis.settings(max_examples=3000, deadline=5000, database=None)
    @hypothesis.given(st.lists(MUTATIONS, min_size=1, max_size=4), st.booleans())
    def damaged(mutations, repair):
        check_mutated(name, mutations, repair)

    damaged()
