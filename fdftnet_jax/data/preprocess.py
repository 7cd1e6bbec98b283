"""From a decoded image to the network's input: the one place that decides it.

An image of any size is shown through a named view at the network's size
(`Preprocessing`), and scaled on its way into the network (`scale`). A `Preprocessing`
is stored with every checkpoint, so that training, evaluation and prediction cannot
disagree.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from fdftnet_jax.data import images
from fdftnet_jax.errors import UserError

# A NumPy or a JAX array: this module needs no JAX.
Array = TypeVar("Array", bound=Any)

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


# The same of CLIP's training images (Radford et al. 2021, released code).
_CLIP_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
_CLIP_STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


def _clip(images: Array) -> Array:
    return (_zero_one(images) - _CLIP_MEAN) / _CLIP_STD


# How pixels in [0, 255] become the network's numbers.
SCALINGS: dict[str, Callable[[Any], Any]] = {
    "minus_one_one": _minus_one_one,
    "zero_one": _zero_one,
    "imagenet": _imagenet,
    "clip": _clip,
}


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Everything between an image file and the network's input.

    Attributes:
      view: one of `VIEWS`; 'resize' stretches the whole image, 'crops' cuts windows at
        its native resolution.
      size: side of the network's square input, in pixels.
      filter: 'bilinear', antialiased.
      grid: of 'crops', the windows along each axis that an image is scored by, evenly
        from edge to edge.
      mirror: of 'crops', whether an image is scored by each of them mirrored, too.
      train_size: of 'crops', side of the windows that are trained on, in pixels, where
        an image is scored by larger ones; 0 for `size`.
      scaling: a key of `SCALINGS`; 'minus_one_one' is [0, 255] -> [-1, 1].
      decoding: one of `images.DECODINGS`, for `images.read`; 'srgb' shows colours as a
        viewer does, 'stored' is what a record without this field stands for.

    Raises:
      UserError: at construction, if a value is unknown.
    """

    view: str = "resize"
    size: int = 64
    filter: str = "bilinear"
    scaling: str = "minus_one_one"
    grid: int = 1
    decoding: str = "srgb"
    mirror: bool = False
    train_size: int = 0

    def __post_init__(self) -> None:
        known: dict[str, Iterable[str]] = {
            "view": VIEWS,
            "filter": _FILTERS,
            "scaling": SCALINGS,
            "decoding": images.DECODINGS,
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
        largest = self.size if self.view == "crops" else 0
        if not (isinstance(self.train_size, int) and 0 <= self.train_size <= largest):
            raise UserError(
                "expected preprocessing train_size to be a whole number from 0 to "
                f"{largest} (the size of 'crops', 0 for any other view), found "
                f"{self.train_size!r}; give such a number"
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
        return cls(**{"decoding": "stored", **values})

    def to_dict(self) -> dict[str, Any]:
        """Returns the record as plain values, ready for JSON."""
        return dataclasses.asdict(self)

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Makes the views that an image is scored by.

        Args:
          image: [h, w, 3] uint8 RGB.

        Returns:
          [size, size, 3] uint8 RGB, or for 'crops' [number, size, size, 3], row by row,
          then the mirrored ones (see `number`).
        """
        if self.view == "resize":
            return _resize(image, self.size, self.size, self.filter)
        windows = _windows(self._large_enough(image), self.size, self.grid)
        if self.mirror:
            windows += [window[:, ::-1] for window in windows]
        return np.stack(windows)

    @property
    def number(self) -> int:
        """The number of views that an image is scored by."""
        return self.grid**2 * (1 + self.mirror) if self.view == "crops" else 1

    def random_view(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A view to train on: of 'crops', a window anywhere in the image.

        Args:
          image: [h, w, 3] uint8 RGB.
          rng: of the draw.

        Returns:
          [side, side, 3] uint8 RGB, where `side` is `train_side`.
        """
        if self.view == "resize":
            return self(image)
        image, side = self._large_enough(image), self.train_side
        top, left = (int(rng.integers(0, n - side + 1)) for n in image.shape[:2])
        return image[top : top + side, left : left + side]

    def middle_view(self, image: np.ndarray) -> np.ndarray:
        """One view, as large as those that are trained on, from the middle.

        Args:
          image: [h, w, 3] uint8 RGB.

        Returns:
          [side, side, 3] uint8 RGB, where `side` is `train_side`.
        """
        return self(image) if self.view == "resize" else self.train_grid(image, 1)[0]

    def train_grid(self, image: np.ndarray, grid: int) -> np.ndarray:
        """Views as large as those that are trained on, evenly from edge to edge.

        Args:
          image: [h, w, 3] uint8 RGB; for 'crops'.
          grid: of windows along each axis.

        Returns:
          [grid^2, side, side, 3] uint8 RGB, where `side` is `train_side`.
        """
        return np.stack(_windows(self._large_enough(image), self.train_side, grid))

    @property
    def train_side(self) -> int:
        """Side of the views that are trained on, in pixels."""
        return self.train_size or self.size

    def _large_enough(self, image: np.ndarray) -> np.ndarray:
        """The image, enlarged in proportion where it is smaller than a window."""
        height, width = image.shape[:2]
        ratio = self.size / min(height, width)
        if ratio <= 1:
            return image
        height, width = (max(self.size, round(n * ratio)) for n in (height, width))
        return _resize(image, height, width, self.filter)


def _windows(image: np.ndarray, side: int, grid: int) -> list[np.ndarray]:
    """Windows of an image, row by row, evenly from edge to edge."""
    tops, lefts = (_places(length - side, grid) for length in image.shape[:2])
    corners = itertools.product(tops, lefts)
    return [image[y : y + side, x : x + side] for y, x in corners]


def _places(free: int, grid: int) -> list[int]:
    """First pixels of windows along an axis, of which `free` are left by one."""
    if grid == 1:
        return [free // 2]
    return [round(i * free / (grid - 1)) for i in range(grid)]


def scale(images: Array, scaling: str = "minus_one_one") -> Array:
    """Scales pixels to the network's range.

    Args:
      images: [..., 3] in [0, 255], uint8 or floating point, NumPy or JAX.
      scaling: 'minus_one_one', 'zero_one', or 'imagenet' (ImageNet's mean 0 and
        standard deviation 1 in each colour) or 'clip' (the same of CLIP's images).

    Returns:
      [..., 3] float32 in [-1, 1], in [0, 1], or in about [-2.2, 2.7], of the same array
      library.
    """
    return SCALINGS[scaling](images)
