"""Small image files of many kinds."""

import io
import struct
import zlib

import numpy as np
from PIL import Image


def encode(image, fmt="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, fmt, **options)
    return buffer.getvalue()


def solid(mode, colour, fmt="PNG", **options):
    return encode(Image.new(mode, (4, 3), colour), fmt, **options)


def flag(mode, colour, fmt="PNG", **options):
    """Large enough to be judged, and black in a corner."""
    image = Image.new(mode, (48, 40), colour)
    black = (0, 0, 0, 255) if mode == "CMYK" else (0, 0, 0)
    image.paste(Image.new(mode, (12, 10), black))
    return encode(image, fmt, **options)


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


def animation(fmt):
    frames = [Image.new("RGB", (4, 3), colour) for colour in ("red", "blue")]
    return encode(frames[0], fmt, save_all=True, append_images=frames[1:])


def noise(height, width):
    shape = (height, width, 3)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def photograph(height=64, width=48):
    """Smooth enough for a JPEG of it to have no error that shows."""
    rows, columns = np.mgrid[:height, :width]
    planes = 128 + 90 * np.sin([rows / 9, columns / 7, (rows + columns) / 11])
    return Image.fromarray(planes.transpose(1, 2, 0).astype(np.uint8))
