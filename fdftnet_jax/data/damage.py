"""Damage that decoders conceal, by filling up what is missing in a file.

Pillow decodes these files without an error; the checks here are those of `images.read`.
"""

import struct
import zlib
from collections.abc import Callable
from typing import Any

import simplejpeg
from PIL import Image


def check(name: str, image: Image.Image, data: bytes) -> None:
    """Raises an exception with a reason where a decoded file is not whole.

    Args:
      name: of the format: 'JPEG', 'JPEG2000', 'PNG' and 'TIFF' are checked. Damage of
        the others is seen by Pillow, or by nobody.
      image: what Pillow made of the file.
      data: the file.
    """
    if name in _CHECKS:
        _CHECKS[name](image, data)


def _check_png(image: Image.Image, data: bytes) -> None:
    """Raises ValueError for a wrong checksum, or fewer rows than the header says."""
    place, kind, packed = 8, b"", bytearray()
    while kind != b"IEND":
        size = int.from_bytes(data[place : place + 4], "big")
        kind, body = data[place + 4 : place + 8], data[place + 8 : place + 8 + size]
        place += 12 + size
        if zlib.crc32(kind + body).to_bytes(4, "big") != data[place - 4 : place]:
            raise ValueError("a checksum is wrong, or image file is truncated")
        if kind == b"IHDR":
            width, height, depth, colours, *_, interlaced = struct.unpack(
                ">IIBBBBB", body
            )
        elif kind == b"IDAT":
            packed += body
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colours]
    # Each pass takes every so many pixels from a first one: (row, column), (rows, ...).
    passes = [(0, 0, 1, 1)]
    if interlaced:
        passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4)]
        passes += [(2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    expected = 0
    for row, column, down, right in passes:
        rows, columns = -((row - height) // down), -((column - width) // right)
        if columns > 0:
            # A row begins with the number of its filter.
            expected += max(rows, 0) * (1 + -(-columns * bits // 8))
    if len(zlib.decompressobj().decompress(packed, expected)) < expected:
        raise ValueError("image file is truncated")


def _check_jpeg(image: Image.Image, data: bytes) -> None:
    """Raises ValueError for what libjpeg only warns of, and Pillow does not pass on."""
    # At 1/8 of the size: this is about the entropy code, not the pixels.
    simplejpeg.decode_jpeg(data, "GRAY", min_height=1, min_width=1)


def _check_tiff(image: Any, data: bytes) -> None:
    """Raises ValueError where a strip or tile is missing, or a JPEG in it damaged."""
    tags = image.tag_v2
    width, height = tags[256], tags[257]
    if 324 in tags:
        offsets, sizes = tags[324], tags[325]
        parts = -(-width // tags[322]) * -(-height // tags[323])
    else:
        offsets, sizes = tags[273], tags[279]
        parts = -(-height // min(tags.get(278, height), height))
    planar = tags.get(284, 1) == 2
    if len(offsets) < parts * (tags.get(277, 1) if planar else 1):
        raise ValueError("a part of the picture is missing")
    if tags.get(259) == 7:
        # The tables that all parts share end with a marker, the parts begin with one.
        tables = tags.get(347, b"\xff\xd8\xff\xd9")[:-2]
        for offset, size in zip(offsets, sizes, strict=True):
            _check_jpeg(image, tables + data[offset + 2 : offset + size])


def _check_jpeg2000(image: Image.Image, data: bytes) -> None:
    """Raises ValueError unless the code stream has data and an end."""
    if not 0 <= data.find(b"\xff\x93") < data.rfind(b"\xff\xd9"):
        raise ValueError("image file is truncated")


_CHECKS: dict[str, Callable[[Any, bytes], None]] = {
    "JPEG": _check_jpeg,
    "JPEG2000": _check_jpeg2000,
    "PNG": _check_png,
    "TIFF": _check_tiff,
}
