"""From an image file to the network's input: the one place that decides it.

A file of any size and mode is decoded to RGB uint8 (`decode`), shown through a named
view at the network's size (`Preprocessing`), and scaled on its way into the network
(`scale`). A `Preprocessing` is stored with every checkpoint, so that training,
evaluation and prediction cannot disagree.
"""

import contextlib
import dataclasses
import io
import itertools
import os
import stat
import struct
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import numpy as np
from PIL import Image, ImageOps

from fdftnet_jax.data import damage
from fdftnet_jax.errors import UserError

# A NumPy or a JAX array: this module needs no JAX.
Array = TypeVar("Array", bound=Any)

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
    quality: int | None  # Of a JPEG, in 1..100.


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
        pixels = _to_rgb(ImageOps.exif_transpose(image))
        damage.check(found, image, data)
        tables = getattr(image, "quantization", None)
        quality = _jpeg_quality(tables[min(tables)]) if tables else None
        return Picture(pixels, found, quality)


def _format(image: Image.Image) -> str:
    # Pillow calls a JPEG with further pictures behind it by a name of its own.
    return "JPEG" if image.format == "MPO" else str(image.format)


def _jpeg_quality(table: list[int]) -> int:
    """The quality in 1..100 whose luminance table is nearest to [64] `table`."""
    quality = np.arange(1, 101)[:, None]
    # The scaling that libjpeg introduced and others follow.
    scale = np.where(quality < 50, 5000 // quality, 200 - 2 * quality)
    tables = np.clip((_LUMINANCE * scale + 50) // 100, 1, 255)
    return int(np.abs(tables - np.array(table)).sum(axis=1).argmin()) + 1


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


def encode_png(image: np.ndarray) -> bytes:
    """Encodes [height, width, 3] uint8 RGB as PNG, trading some size for speed."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def decode_png(data: bytes) -> np.ndarray:
    """Decodes what `encode_png` gave, without the checks that foreign data needs."""
    with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        return np.array(image)


def png_size(data: bytes) -> tuple[int, int]:
    """(width, height) of a PNG, by its header alone."""
    width, height = struct.unpack(">II", data[16:24])
    return width, height


_FILTERS = {"bilinear": Image.Resampling.BILINEAR}
VIEWS = ("resize", "crops")


def _resize(image: np.ndarray, height: int, width: int, filter_name: str) -> np.ndarray:
    """The whole image, stretched by an antialiased filter."""
    # Pillow widens the filter's support by the reduction factor: no aliasing.
    resized = Image.fromarray(image).resize((width, height), _FILTERS[filter_name])
    return np.array(resized)


def _minus_one_one(images: Array) -> Array:
    return images.astype(np.float32) / 127.5 - 1


def _zero_one(images: Array) -> Array:
    return images.astype(np.float32) / 255


# Of the red, green and blue of ImageNet's training images, in [0, 1]; PyTorch's models
# expect images standardised by them.
_IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
_IMAGENET_STD = np.array([0.229, 0.224, 0.225], np.float32)


def _imagenet(images: Array) -> Array:
    return (_zero_one(images) - _IMAGENET_MEAN) / _IMAGENET_STD


# How pixels in [0, 255] become the network's numbers.
SCALINGS: dict[str, Callable[[Any], Any]] = {
    "minus_one_one": _minus_one_one,
    "zero_one": _zero_one,
    "imagenet": _imagenet,
}


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Everything between a decoded image and the network's input.

    Attributes:
      view: one of `VIEWS`; 'resize' stretches the whole image, 'crops' cuts windows at
        its native resolution.
      size: side of the network's square input, in pixels.
      filter: 'bilinear', antialiased.
      grid: of 'crops', the windows along each axis that an image is scored by, evenly
        from edge to edge.
      scaling: a key of `SCALINGS`; 'minus_one_one' is [0, 255] -> [-1, 1].

    Raises:
      UserError: at construction, if a value is unknown.
    """

    view: str = "resize"
    size: int = 64
    filter: str = "bilinear"
    scaling: str = "minus_one_one"
    grid: int = 1

    def __post_init__(self) -> None:
        known: dict[str, Iterable[str]] = {
            "view": VIEWS,
            "filter": _FILTERS,
            "scaling": SCALINGS,
        }
        for field, values in known.items():
            if getattr(self, field) not in values:
                raise UserError(
                    f"expected preprocessing {field} to be one of {sorted(values)}, "
                    f"found {getattr(self, field)!r}; choose one of them"
                )
        for field, example in (("size", 64), ("grid", 3)):
            value = getattr(self, field)
            if not (isinstance(value, int) and value > 0):
                raise UserError(
                    f"expected preprocessing {field} to be a positive whole number, "
                    f"found {value!r}; give for example {example}"
                )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Preprocessing":
        """Rebuilds what `to_dict` gave; raises UserError on unknown keys or values."""
        fields = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - fields):
            raise UserError(
                f"expected preprocessing to have the keys {sorted(fields)}, found "
                f"{unknown} too; use the version of fdftnet_jax that wrote it"
            )
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Returns the record as plain values, ready for JSON."""
        return dataclasses.asdict(self)

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """What an image is scored by.

        Args:
          image: [h, w, 3] uint8 RGB.

        Returns:
          [size, size, 3] uint8 RGB, or for 'crops' [grid^2, size, size, 3], row by row.
        """
        if self.view == "resize":
            return _resize(image, self.size, self.size, self.filter)
        image = self._large_enough(image)
        tops, lefts = (self._places(length) for length in image.shape[:2])
        corners = itertools.product(tops, lefts)
        return np.stack([self._window(image, *corner) for corner in corners])

    def random_view(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A view to train on: of 'crops', one window anywhere in the image.

        Args:
          image: [h, w, 3] uint8 RGB.
          rng: of the draw.

        Returns:
          [size, size, 3] uint8 RGB.
        """
        if self.view == "resize":
            return self(image)
        image = self._large_enough(image)
        top, left = (rng.integers(0, n - self.size + 1) for n in image.shape[:2])
        return self._window(image, int(top), int(left))

    def _large_enough(self, image: np.ndarray) -> np.ndarray:
        """The image, enlarged in proportion where it is smaller than a window."""
        height, width = image.shape[:2]
        ratio = self.size / min(height, width)
        if ratio <= 1:
            return image
        height, width = (max(self.size, round(n * ratio)) for n in (height, width))
        return _resize(image, height, width, self.filter)

    def _places(self, length: int) -> list[int]:
        """Where the windows of the grid begin along an axis."""
        free = length - self.size
        if self.grid == 1:
            return [free // 2]
        return [round(i * free / (self.grid - 1)) for i in range(self.grid)]

    def _window(self, image: np.ndarray, top: int, left: int) -> np.ndarray:
        return image[top : top + self.size, left : left + self.size]


def scale(images: Array, scaling: str = "minus_one_one") -> Array:
    """Scales pixels to the network's range.

    Args:
      images: [..., 3] in [0, 255], uint8 or floating point, NumPy or JAX.
      scaling: 'minus_one_one', 'zero_one', or 'imagenet' (ImageNet's mean 0 and
        standard deviation 1 in each colour).

    Returns:
      [..., 3] float32 in [-1, 1], in [0, 1], or in about [-2.2, 2.7], of the same array
      library.
    """
    return SCALINGS[scaling](images)
