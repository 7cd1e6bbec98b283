"""From an image file to its pixels, strictly: a whole still picture, or an error.

A file of any size and mode is decoded to RGB uint8 (`decode`, `read`); what becomes of
it is `preprocess`'s. Colours are converted by `colours`, and files that are odd but
whole are read by way of `odd_files`.
"""

import contextlib
import io
import os
import stat
import struct
import threading
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import cv2
import numpy as np
import simplejpeg
from PIL import ExifTags, Image, ImageOps, JpegImagePlugin, TiffImagePlugin

from fdftnet_jax.data import colours, odd_files
from fdftnet_jax.errors import UserError

try:
    import pi_heif
except ImportError:
    pi_heif = None
else:
    pi_heif.register_heif_opener()

# The formats that photographs come in, by the suffixes of their files. Pillow knows
# more, some of which run other programs on the data.
SUFFIXES = {
    ".apng": "PNG",
    ".avif": "AVIF",
    ".bmp": "BMP",
    ".gif": "GIF",
    ".heic": "HEIF",
    ".heif": "HEIF",
    ".hif": "HEIF",
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
_FORMATS = (
    *sorted(set(SUFFIXES.values()) - {"TGA", *([] if pi_heif else ["HEIF"])}),
    "TGA",
)
_NO_HEIF = (
    "HEIC and HEIF pictures need another package; give `pip install pi-heif`, or save "
    "them as JPEG"
)
# How a HEIF file's first box names what follows; AVIF's, which Pillow reads, is not
# among them.
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
# Pillow's own reader takes the planes of uncompressed 16-bit colours for something
# else; libtiff reads them right.
TiffImagePlugin.READ_LIBTIFF = True
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _PALETTE, _LAB = 0, 1, 3, 8
_PREMULTIPLIED, _ALPHA = 1, 2
_GREY_ALPHA = (16, 16)
# 16-bit kinds of TIFF that Pillow does not list; it reads their numbers all the same.
TiffImagePlugin.OPEN_INFO |= {
    (b"MM", _WHITE_IS_ZERO, (1,), 1, (16,), ()): ("I;16B", "I;16B"),
    (b"MM", _PALETTE, (1,), 1, (16,), ()): ("I;16B", "I;16B"),
    (b"II", _PALETTE, (1,), 1, (16,), ()): ("I;16", "I;16"),
}
# Grey and opacity: the four bytes of a pixel, until `_eight_bits`.
TiffImagePlugin.OPEN_INFO |= {
    (order, _BLACK_IS_ZERO, (1,), 1, _GREY_ALPHA, (kind,)): ("RGBA", "RGBA")
    for order in (b"II", b"MM")
    for kind in (_PREMULTIPLIED, _ALPHA)
}
# What a decoded image shows: colours by its profile and over white; or the numbers of
# its file, as detectors of version 0.2 and before were trained on.
DECODINGS = ("srgb", "stored")
# One picture of more pixels than this is decoded at a time: each may take a gigabyte.
_LARGE = 2**24
_large_lock = threading.Lock()
# A picture without so many pixels on a side, or with one colour but for rounding, tells
# nothing of how it was made.
_LEAST_SIDE = 32
_ONE_COLOUR = 2
_SIXTEEN_BITS = np.rint(np.arange(2**16) / 257).astype(np.uint8)
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
        # (Some reasons end with advice of their own.)
        advice = "" if "; " in reason else "; replace or remove it"
        super().__init__(f"expected an image, cannot read {name}: {reason}{advice}")
        self.reason = reason


class Picture(NamedTuple):
    """A decoded image and what its file says of itself."""

    pixels: np.ndarray  # [height, width, 3] uint8 RGB.
    format: str  # A value of `SUFFIXES`.
    luminance: tuple[int, ...] | None = None  # A JPEG's 64 steps of quantisation.
    notes: tuple[str, ...] = ()  # What is odd about the file.
    subsampling: str = ""  # Of a JPEG's colours, such as '4:2:0'; '' if not known.

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


def decode(source: bytes | str | os.PathLike, decoding: str = "srgb") -> np.ndarray:
    """Decodes an image of any size and mode to RGB; see `read`.

    Args:
      source: the encoded file's bytes, or its path.
      decoding: one of `DECODINGS`.

    Returns:
      [height, width, 3] uint8 RGB.

    Raises:
      ImageError: as `read`.
    """
    return read(source, decoding).pixels


def nothing_to_judge(pixels: np.ndarray) -> str:
    """Says why a picture, [height, width, 3], cannot be judged; '' where it can."""
    height, width, _ = pixels.shape
    if min(height, width) < _LEAST_SIDE:
        return (
            f"nothing to judge: {width} x {height} pixels, at least {_LEAST_SIDE} on "
            "each side"
        )
    # The first row rules most pictures out.
    if np.ptp(pixels[0], axis=0).max() <= _ONE_COLOUR:
        lowest, highest = (f(pixels, axis=(0, 1)) for f in (np.min, np.max))
        if (highest - lowest).max() <= _ONE_COLOUR:
            return "nothing to judge: the picture is of one colour"
    return ""


def read(source: bytes | str | os.PathLike, decoding: str = "srgb") -> Picture:
    """Reads a whole, single image of any size and mode, or nothing.

    With the decoding 'srgb', values are those that a viewer shows: colours are
    converted to sRGB by the file's profile (a broken one is ignored, with a note), and
    transparent pixels are laid over white. With 'stored' they are the numbers of the
    file, without profile and transparency. In both, 16-bit grey values v become
    round(v / 257) (Pillow itself reads 16-bit colours, to 8 bits), float values in
    [0, 1] become round(255 v), CMYK without a profile becomes (255 - C)(255 - K) / 255
    and so on. EXIF orientation is applied. Of the pages of a TIFF, and of the pictures
    that a phone stores in one JPEG (MPO) or HEIC, the first one is read.

    Decoders fill up what is missing in a damaged file. So a PNG's checksums are
    compared, a JPEG's entropy code is checked for every error that its decoder would
    conceal, and a TIFF's or JPEG 2000's parts for being there. Where a JPEG or PNG is
    odd in its form alone, a note says so (see `odd_files`).

    Args:
      source: the encoded file's bytes, or its path.
      decoding: one of `DECODINGS`.

    Returns:
      The picture.

    Raises:
      ImageError: if the data is not an image of one of the formats of `SUFFIXES`, is
        damaged, is animated, has more pixels than Pillow's MAX_IMAGE_PIXELS, holds
        numbers without a defined white (floats outside [0, 1] or integers outside
        [0, 65535]), or, as 'srgb', is transparent in most of its pixels.
    """
    data = b""
    try:
        data = source if isinstance(source, bytes) else _contents(source)
        with _no_warnings():
            return _read(data, decoding)
    except Image.UnidentifiedImageError:
        reason = _why_unidentified(data)
    except Image.DecompressionBombError:
        reason = (
            f"more than the {Image.MAX_IMAGE_PIXELS:,} pixels that are read; cut out "
            "the part in question at its own size"
        )
    except OSError as error:
        reason = error.strerror or str(error)
        if reason.startswith("decoder error"):
            reason = "damaged, or packed in a way that is not read here"
    # (Of a key that is missing, only the number would be shown.)
    except KeyError:
        reason = "damaged: its description is not complete"
    # Pillow reports damaged headers and chunks with exceptions of every kind.
    except Exception as error:
        reason = str(error)
    name = f"{len(source)} bytes" if isinstance(source, bytes) else os.fspath(source)
    raise ImageError(name, " ".join(reason.split()) or "damaged")


def format_of(path: str | os.PathLike) -> str | None:
    """The format of a file by its first bytes, None where they are no image's."""
    try:
        if pi_heif is None:
            with open(path, "rb") as file:
                if _is_heif(file.read(12)):
                    return "HEIF"
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


def _why_unidentified(data: bytes) -> str:
    if _is_heif(data):
        return _NO_HEIF
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return (
            "a TIFF with a kind of pixels that is not read here; save it as RGB with 8 "
            "bits"
        )
    return "not in an image format that is read here"


def _is_heif(head: bytes) -> bool:
    return head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS


def _read(data: bytes, decoding: str) -> Picture:
    if not data:
        raise ValueError("empty")
    notes: list[str] = []
    long_profile = None
    if data.startswith(odd_files.PNG_SIGNATURE):
        data, long_profile, notes = odd_files.without_long_text(data)
    with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
        # Pillow itself only warns up to twice that number.
        number = image.width * image.height
        if Image.MAX_IMAGE_PIXELS is not None and number > Image.MAX_IMAGE_PIXELS:
            raise Image.DecompressionBombError
        format_name = _format(image)
        profile = long_profile or image.info.get("icc_profile")
        tables = getattr(image, "quantization", None)
        luminance = tuple(tables[min(tables)]) if tables else None
        with _large_lock if number > _LARGE else contextlib.nullcontext():
            decode = _decode_jpeg if _is_plain_jpeg(image) else _decode_any
            pixels, more = decode(image, data, decoding, profile)
        # (Pillow has a number for those that it knows, -1 for others.)
        in_colour = tables and getattr(image, "layers", 0) == 3
        sampling = JpegImagePlugin.get_sampling(image) if in_colour else -1
        subsampling = ("4:4:4", "4:2:2", "4:2:0", "")[sampling]
        return Picture(pixels, format_name, luminance, (*notes, *more), subsampling)


def _is_plain_jpeg(image: Image.Image) -> bool:
    turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    return _format(image) == "JPEG" and image.mode in ("RGB", "L") and not turned


def _decode_jpeg(
    image: Image.Image, data: bytes, decoding: str, profile: bytes | None
) -> tuple[np.ndarray, list[str]]:
    """Decodes and checks in one pass, to the same pixels as Pillow does."""
    _check_scans(data)
    notes: list[str] = []
    try:
        pixels = simplejpeg.decode_jpeg(data, "RGB")
    except ValueError:
        data, notes = odd_files.mend_jpeg(data)
        pixels = simplejpeg.decode_jpeg(data, "RGB")
    if decoding == "srgb" and profile:
        transform, note = colours.to_srgb(profile, image.mode)
        notes += [note] * bool(note)
        if transform is not None:
            plain = Image.fromarray(pixels if image.mode == "RGB" else pixels[..., 0])
            pixels = np.array(colours.apply(plain, transform))
    return pixels, notes


def _decode_any(
    image: Image.Image, data: bytes, decoding: str, profile: bytes | None
) -> tuple[np.ndarray, list[str]]:
    """Decodes with Pillow; checks what it does not."""
    notes = _check_whole(image, data)
    tags = getattr(image, "tag_v2", {})
    ImageOps.exif_transpose(image, in_place=True)
    plain = _eight_bits(image, tags)
    if decoding == "stored":
        return np.array(_without_alpha(plain)), notes
    shown, note = colours.show(plain, profile)
    return np.array(shown), notes + [note] * bool(note)


def _check_whole(image: Image.Image, data: bytes) -> list[str]:
    """Checks a file for damage that decoders conceal; Pillow sees that of the others.

    Returns:
      Notes about what is odd but harmless.

    Raises:
      ValueError: it is damaged, or not one still picture.
    """
    format_name = _format(image)
    pages = getattr(image, "n_frames", 1)
    if format_name == "TIFF":
        _check_tiff(image, data)
        return [f"the first of its {pages} pages"] if pages > 1 else []
    if image.format not in ("MPO", "HEIF") and pages > 1:
        raise ValueError("several frames (an animation?); save one as a picture")
    if format_name == "JPEG":
        _check_scans(data)
        try:
            odd_files.check_jpeg(data)
        except ValueError:
            return odd_files.mend_jpeg(data)[1]
    elif format_name == "PNG":
        odd_files.check_png(data)
    elif format_name == "JPEG2000" and not (
        0 <= data.find(b"\xff\x93") < data.rfind(b"\xff\xd9")
    ):
        raise ValueError("image file is truncated")
    return []


def _check_scans(jpeg: bytes) -> None:
    if jpeg.count(b"\xff\xda") > _MOST_SCANS:
        raise ValueError("more scans than a picture has")


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


def _eight_bits(image: Image.Image, tags: Mapping[int, Any]) -> Image.Image:
    """Scales grey values of more than 8 bits, which Pillow's convert() clips at 255.

    Args:
      image: of any mode.
      tags: of a TIFF.
    """
    if tags.get(TiffImagePlugin.BITSPERSAMPLE) == _GREY_ALPHA:
        # libtiff gives the numbers in the order of this machine.
        values = _SIXTEEN_BITS[np.array(image).view(np.uint16)]
        premultiplied = tags[TiffImagePlugin.EXTRASAMPLES] == (_PREMULTIPLIED,)
        mode = "La" if premultiplied else "LA"
        return Image.frombytes(mode, image.size, values.tobytes(), "raw", mode)
    if image.mode != "F" and not image.mode.startswith("I"):
        return image
    values = np.asarray(image)
    white = 1 if image.mode == "F" else 65535
    if not (values.min() >= 0 and values.max() <= white):  # False for NaN too
        raise ValueError(
            f"grey values in [{values.min():g}, {values.max():g}] "
            f"instead of [0, {white}]"
        )
    if image.mode == "F":
        return Image.fromarray(np.rint(values * 255.0).astype(np.uint8))
    kind = tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION)
    if kind == _PALETTE:
        palette = _SIXTEEN_BITS[np.array(tags[TiffImagePlugin.COLORMAP])]
        return Image.fromarray(palette.reshape(3, -1).T[values])
    if kind == _WHITE_IS_ZERO:
        values = white - values
    return Image.fromarray(_SIXTEEN_BITS[values])


def _without_alpha(image: Image.Image) -> Image.Image:
    """The picture in mode 'RGB', with the colours that are stored beneath a mask."""
    if image.mode in ("P", "PA"):
        # A palette may have transparency, which Pillow wants converted first.
        image = image.convert("RGBA")
    if image.mode == "La":
        image = image.getchannel(0)
    return image if image.mode == "RGB" else image.convert("RGB")


def _check_tiff(image: Any, data: bytes) -> None:
    """Checks the parts of a TIFF's first page.

    Raises:
      ValueError: a strip or tile is missing, or a JPEG in it damaged; or the page is a
        preview, or its colours have no one meaning.
    """
    tags = image.tag_v2
    if tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == _LAB:
        raise ValueError("a TIFF in CIELAB colours is not read here; save it as RGB")
    if tags.get(254, 0) & 1:
        raise ValueError(
            "its first page is a small preview (of a raw photograph?); save the "
            "picture as TIFF or JPEG"
        )
    width, height = tags[256], tags[257]
    if 324 in tags:
        offsets, sizes = tags[324], tags.get(325, ())
        parts = -(-width // tags[322]) * -(-height // tags[323])
    else:
        offsets, sizes = tags.get(273, ()), tags.get(279, ())
        parts = -(-height // min(tags.get(278, height), height))
    planar = tags.get(284, 1) == 2
    if planar and tags.get(TiffImagePlugin.BITSPERSAMPLE) == _GREY_ALPHA:
        raise ValueError(
            "a TIFF whose grey values and opacity, of 16 bits, lie apart is not read "
            "here; save it as RGB"
        )
    if len(offsets) < parts * (tags.get(277, 1) if planar else 1):
        raise ValueError("a part of the picture is missing")
    if tags.get(259) == 7:
        # The tables that all parts share end with a marker, the parts begin with one.
        tables = tags.get(347, b"\xff\xd8\xff\xd9")[:-2]
        for offset, size in zip(offsets, sizes, strict=True):
            odd_files.check_jpeg(tables + data[offset + 2 : offset + size])


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
