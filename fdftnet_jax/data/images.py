"""From an image file to the network's input: the one place that decides it.

A file of any size and mode is decoded to RGB uint8 (`decode`), shown through a named
view at the network's size (`Preprocessing`), and scaled on its way into the network
(`scale`). A `Preprocessing` is stored with every checkpoint, so that training,
evaluation and prediction cannot disagree.
"""

import dataclasses
import io
import os
import struct
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
from PIL import Image, ImageOps

from fdftnet_jax.errors import UserError

# A NumPy or a JAX array: this module needs no JAX.
Array = TypeVar("Array", bound=Any)


class ImageError(UserError):
    """Data that cannot be read as an image; the message names it and the reason."""


def decode(source: bytes | str | os.PathLike) -> np.ndarray:
    """Decodes an image of any size and mode to RGB.

    Values are those a viewer without colour management shows: embedded colour profiles
    are ignored, 16-bit grey values v become round(v / 257) (Pillow itself reads 16-bit
    colours, to 8 bits), float values in [0, 1] become
    round(255 v), CMYK becomes (255 - C)(255 - K) / 255 and so on. Transparency is
    dropped, keeping the colour beneath it: a background of our choosing would add edges
    that the picture does not have. EXIF orientation is applied. Of an animation the
    first frame is read.

    Args:
      source: the encoded file's bytes, or its path.

    Returns:
      [height, width, 3] uint8 RGB.

    Raises:
      ImageError: if the data is not an image, is damaged, or holds numbers without a
        defined white: floats outside [0, 1] or integers outside [0, 65535].
    """
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        with Image.open(file) as image:
            return _to_rgb(ImageOps.exif_transpose(image))
    except Image.UnidentifiedImageError:
        reason = "not in an image format that Pillow knows"
    except OSError as error:
        reason = error.strerror or str(error)
    # Pillow reports damaged headers and chunks with any of these.
    except (ValueError, SyntaxError, EOFError, struct.error) as error:
        reason = str(error) or type(error).__name__
    except (OverflowError, MemoryError, Image.DecompressionBombError) as error:
        reason = str(error) or type(error).__name__
    name = f"{len(source)} bytes" if isinstance(source, bytes) else os.fspath(source)
    raise ImageError(
        f"expected an image, cannot read {name}: {reason}; replace or remove it"
    )


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


_FILTERS = {"bilinear": Image.Resampling.BILINEAR}


def _resize(image: np.ndarray, size: int, filter_name: str) -> np.ndarray:
    """The whole image, stretched to a square by an antialiased filter."""
    # Pillow widens the filter's support by the reduction factor: no aliasing.
    resized = Image.fromarray(image).resize((size, size), _FILTERS[filter_name])
    return np.array(resized)


# How an image becomes the square that the network sees:
# ([h, w, 3] uint8, size, filter) -> [size, size, 3] uint8.
VIEWS: dict[str, Callable[[np.ndarray, int, str], np.ndarray]] = {"resize": _resize}


def _minus_one_one(images: Array) -> Array:
    return images.astype(np.float32) / 127.5 - 1


_SCALINGS: dict[str, Callable[[Any], Any]] = {"minus_one_one": _minus_one_one}


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Everything between a decoded image and the network's input.

    Attributes:
      view: a key of `VIEWS`; 'resize' stretches the whole image.
      size: side of the network's square input, in pixels.
      filter: 'bilinear', antialiased.
      scaling: 'minus_one_one', [0, 255] -> [-1, 1].

    Raises:
      UserError: at construction, if a value is unknown.
    """

    view: str = "resize"
    size: int = 64
    filter: str = "bilinear"
    scaling: str = "minus_one_one"

    def __post_init__(self) -> None:
        known: dict[str, dict] = {
            "view": VIEWS,
            "filter": _FILTERS,
            "scaling": _SCALINGS,
        }
        for field, values in known.items():
            if getattr(self, field) not in values:
                raise UserError(
                    f"expected preprocessing {field} to be one of {sorted(values)}, "
                    f"found {getattr(self, field)!r}; choose one of them"
                )
        if not (isinstance(self.size, int) and self.size > 0):
            raise UserError(
                "expected preprocessing size to be a positive number of pixels, "
                f"found {self.size!r}; give for example 64"
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
        """Applies the view: [h, w, 3] uint8 RGB -> [size, size, 3] uint8 RGB."""
        return VIEWS[self.view](image, self.size, self.filter)


def scale(images: Array, scaling: str = "minus_one_one") -> Array:
    """Scales pixels to the network's range.

    Args:
      images: [..., 3] in [0, 255], uint8 or floating point, NumPy or JAX.
      scaling: 'minus_one_one'.

    Returns:
      [..., 3] float32 in [-1, 1], of the same array library.
    """
    return _SCALINGS[scaling](images)
