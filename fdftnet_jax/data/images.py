"""From an image file to its pixels, strictly: a whole still picture, or an error.

A file of any size and mode is decoded to RGB uint8 (`decode`, `read`); what becomes of
it is `preprocess`'s.
"""

import contextlib
import io
import os
import stat
import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import cv2
import numpy as np
import simplejpeg
from PIL import ExifTags, Image, ImageOps

from fdftnet_jax.errors import UserError

# The formats that photographs come in, by the suffixes of their files. Pillow knows
# more, some of which run other programs on the data.
SUFFIXES = {
    ".apng": "PNG",
    ".avif": "AVIF",
    ".bmp": "BMP",
    ".gif": "GIF",
    ".j2k": "JPEG2000",
    ".jfif": "JPEG",
    ".jp2": "JPEG2000",
    ".jpe": "JPEG",
    ".jpeg": "JPEG",
    ".jpg": "JPEG",
    ".pgm": "PPM",
    ".png": "PNG",
    ".pnm": "PPM",
    ".ppm": "PPM",
    ".tga": "TGA",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".webp": "WEBP",
}
# TGA comes last: its files start with nothing that tells them from garbage.
_FORMATS = (*sorted(set(SUFFIXES.values()) - {"TGA"}), "TGA")
# No picture of Image.MAX_IMAGE_PIXELS needs more bytes for each of them.
_BYTES_PER_PIXEL = 8
# A progressive JPEG has some ten scans. Each takes a decoder through the whole picture,
# however few bytes it has: with thousands, a small file takes hours.
_MOST_SCANS = 1000
# Table K.1 of the JPEG standard: the luminance quantisation of quality 50.
_LUMINANCE = np.array(
    [
        *(16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55),
        *(14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51, 87, 80, 62),
        *(18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92),
        *(49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99),
    ]
)


class ImageError(UserError):
    """Data that cannot be read as an image; the message names it and the reason.

    Attributes:
      reason: why, in a few words.
    """

    def __init__(self, name: str, reason: str):
        super().__init__(
            f"expected an image, cannot read {name}: {reason}; replace or remove it"
        )
        self.reason = reason


class Picture(NamedTuple):
    """A decoded image and what its file says of itself."""

    pixels: np.ndarray  # [height, width, 3] uint8 RGB.
    format: str  # A value of `SUFFIXES`.
    luminance: tuple[int, ...] | None  # A JPEG's 64 steps of quantisation.

    @property
    def quality(self) -> int | None:
        """Quality of a JPEG, in 1..100, whose luminance steps are nearest."""
        if self.luminance is None:
            return None
        quality = np.arange(1, 101)[:, None]
        # The scaling that libjpeg introduced and others follow.
        scale = np.where(quality < 50, 5000 // quality, 200 - 2 * quality)
        tables = np.clip((_LUMINANCE * scale + 50) // 100, 1, 255)
        return int(np.abs(tables - np.array(self.luminance)).sum(axis=1).argmin()) + 1


def decode(source: bytes | str | os.PathLike) -> np.ndarray:
    """Decodes an image of any size and mode to RGB; see `read`.

    Args:
      source: the encoded file's bytes, or its path.

    Returns:
      [height, width, 3] uint8 RGB.

    Raises:
      ImageError: as `read`.
    """
    return read(source).pixels


def read(source: bytes | str | os.PathLike) -> Picture:
    """Reads a whole, single image of any size and mode, or nothing.

    Values are those a viewer without colour management shows: embedded colour profiles
    are ignored, 16-bit grey values v become round(v / 257) (Pillow itself reads 16-bit
    colours, to 8 bits), float values in [0, 1] become
    round(255 v), CMYK becomes (255 - C)(255 - K) / 255 and so on. Transparency is
    dropped, keeping the colour beneath it: a background of our choosing would add edges
    that the picture does not have. EXIF orientation is applied.

    Decoders fill up what is missing in a damaged file. So a PNG's checksums are
    compared, a JPEG's entropy code is checked for every error that its decoder would
    conceal, and a TIFF's or JPEG 2000's parts for being there.

    Args:
      source: the encoded file's bytes, or its path.

    Returns:
      The picture. Of the several that a phone stores in one JPEG (MPO), the first.

    Raises:
      ImageError: if the data is not an image of one of the formats of `SUFFIXES`, is
        damaged, holds several frames or pages, has more pixels than Pillow's
        MAX_IMAGE_PIXELS, or holds numbers without a defined white: floats outside
        [0, 1] or integers outside [0, 65535].
    """
    try:
        data = source if isinstance(source, bytes) else _contents(source)
        with _no_warnings():
            return _read(data)
    except Image.UnidentifiedImageError:
        reason = "not in an image format that is read here"
    except Image.DecompressionBombError:
        reason = f"more than the {Image.MAX_IMAGE_PIXELS:,} pixels that are read"
    except OSError as error:
        reason = error.strerror or str(error)
    # Pillow reports damaged headers and chunks with exceptions of every kind.
    except Exception as error:
        reason = str(error)
    name = f"{len(source)} bytes" if isinstance(source, bytes) else os.fspath(source)
    raise ImageError(name, " ".join(reason.split()) or "damaged")


def format_of(path: str | os.PathLike) -> str | None:
    """The format of a file by its first bytes, None where they are no image's."""
    try:
        # TGA is left out, as many files of other kinds pass for it.
        with _no_warnings(), Image.open(path, formats=_FORMATS[:-1]) as image:
            return _format(image)
    except Exception:
        return None


def _contents(path: str | os.PathLike) -> bytes:
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("not a regular file")
    if (
        Image.MAX_IMAGE_PIXELS is not None
        and status.st_size > _BYTES_PER_PIXEL * Image.MAX_IMAGE_PIXELS
    ):
        raise ValueError(f"{status.st_size:,} bytes are more than a picture has")
    with open(path, "rb") as file:
        return file.read()


def _read(data: bytes) -> Picture:
    if not data:
        raise ValueError("empty")
    with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
        # Pillow itself only warns up to twice that number.
        number = image.width * image.height
        if Image.MAX_IMAGE_PIXELS is not None and number > Image.MAX_IMAGE_PIXELS:
            raise Image.DecompressionBombError
        if image.format != "MPO" and getattr(image, "is_animated", False):
            raise ValueError("several frames or pages (an animation?)")
        found = _format(image)
        if found == "JPEG" and data.count(b"\xff\xda") > _MOST_SCANS:
            raise ValueError("more scans than a picture has")
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
        if found == "JPEG" and image.mode in ("RGB", "L") and not turned:
            # Decodes and checks in one pass, to the same pixels as Pillow does.
            pixels = simplejpeg.decode_jpeg(data, "RGB")
        else:
            pixels = _to_rgb(ImageOps.exif_transpose(image))
            _check_whole(found, image, data)
        tables = getattr(image, "quantization", None)
        return Picture(pixels, found, tuple(tables[min(tables)]) if tables else None)


def _format(image: Image.Image) -> str:
    # Pillow calls a JPEG with further pictures behind it by a name of its own.
    return "JPEG" if image.format == "MPO" else str(image.format)


_warnings_lock = threading.Lock()
_warnings_off = contextlib.ExitStack()
_readers = 0


@contextlib.contextmanager
def _no_warnings() -> Iterator[None]:
    """Mutes Pillow's warnings, of metadata and of what is checked here anyway.

    The filters of warnings belong to the whole process: the first of several threads
    changes them, and the last changes them back.
    """
    global _readers
    with _warnings_lock:
        if not _readers:
            _warnings_off.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", module=r"PIL\.")
        _readers += 1
    try:
        yield
    finally:
        with _warnings_lock:
            _readers -= 1
            if not _readers:
                _warnings_off.close()


def _to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode == "F" or image.mode.startswith("I"):
        # Pillow's convert() clips these at 255 instead of scaling them.
        values = np.asarray(image, np.float64)
        white = 1 if image.mode == "F" else 65535
        if not (values.min() >= 0 and values.max() <= white):  # False for NaN too
            raise ValueError(
                f"grey values in [{values.min():g}, {values.max():g}] "
                f"instead of [0, {white}]"
            )
        grey = np.rint(values * (255 / white)).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=-1)
    if image.mode in ("P", "PA"):
        # A palette may have transparency, which Pillow wants converted first.
        image = image.convert("RGBA")
    return np.array(image.convert("RGB"))


# Damage that decoders conceal, by filling up what is missing in a file: Pillow decodes
# these files without an error.


def _check_whole(name: str, image: Image.Image, data: bytes) -> None:
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


# Each row as its difference from the row above, packed as runs. Pillow looks for the
# best filter of each row, which takes twice as long for 5 % less of a photograph.
_PNG = (
    *(cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP),
    *(cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE),
    *(cv2.IMWRITE_PNG_COMPRESSION, 1),
)


def encode_png(image: np.ndarray) -> bytes:
    """Encodes [height, width, 3] uint8 RGB as PNG, trading some size for speed."""
    _, data = cv2.imencode(".png", np.ascontiguousarray(image[..., ::-1]), _PNG)
    return data.tobytes()


def decode_png(data: bytes) -> np.ndarray:
    """Decodes what `encode_png` gave, without the checks that foreign data needs."""
    with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        return np.array(image)


def png_size(data: bytes) -> tuple[int, int]:
    """(width, height) of a PNG, by its header alone."""
    width, height = struct.unpack(">II", data[16:24])
    return width, height
