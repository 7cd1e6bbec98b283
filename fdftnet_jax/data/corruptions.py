"""Ordinary image processing: what pictures meet on their way through the world.

`OPERATIONS` is the table of operations and strengths by which a detector's robustness
is measured; `Drawn` applies three of them at random, to train with. All work on decoded
pictures at their own size, before a view of them is taken: sigma is in pixels of the
picture, not of the network's input. Filters and codecs are Pillow's and OpenCV's.
"""

import dataclasses
import io
from collections.abc import Callable

import cv2
import numpy as np
from PIL import Image

from fdftnet_jax.errors import UserError

# Of the noise that robustness is measured by.
SEED = 0
# `Drawn`: quality is a whole number of this range, sigma and factor are uniform in
# theirs; ends included.
QUALITIES = (30, 95)
SIGMAS = (0.5, 3.0)
FACTORS = (0.35, 1.0)
# Of a side, by libjpeg.
_MOST_PIXELS = 65_500
# Where the tails of the Gaussian are cut off, in sigmas.
_TRUNCATED = 4


def jpeg(image: np.ndarray, quality: float) -> np.ndarray:
    """The picture after JPEG compression with 4:2:0 subsampling of the colours.

    Args:
      image: [h, w, 3] uint8 RGB.
      quality: of libjpeg's scale, in 1..100; its whole part counts.

    Returns:
      [h, w, 3] uint8 RGB.

    Raises:
      UserError: a side is longer than JPEG can have, 65,500 pixels.
    """
    if max(image.shape) > _MOST_PIXELS:
        height, width, _ = image.shape
        raise UserError(
            f"expected a picture of at most {_MOST_PIXELS} pixels a side for JPEG, "
            f"found {width}x{height}; remove or shrink it"
        )
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=int(quality), subsampling="4:2:0")
    with Image.open(file, formats=["JPEG"]) as decoded:
        return np.array(decoded)


def rescale(image: np.ndarray, factor: float) -> np.ndarray:
    """The picture made smaller (antialiased) and as large as before, both bilinear.

    Args:
      image: [h, w, 3] uint8 RGB.
      factor: of the sides, in (0, 1]; a side keeps a pixel at least.

    Returns:
      [h, w, 3] uint8 RGB.
    """
    height, width, _ = image.shape
    # Pillow widens the filter's support by the reduction factor: no aliasing.
    small = (max(1, round(width * factor)), max(1, round(height * factor)))
    shrunk = Image.fromarray(image).resize(small, Image.Resampling.BILINEAR)
    return np.array(shrunk.resize((width, height), Image.Resampling.BILINEAR))


def blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """The picture under a Gaussian of `sigma` >= 0 pixels, mirrored at its edges.

    Args:
      image: [h, w, 3] uint8 RGB.
      sigma: standard deviation; 0 changes nothing.

    Returns:
      [h, w, 3] uint8 RGB.
    """
    side = 2 * round(_TRUNCATED * sigma) + 1
    return cv2.GaussianBlur(
        np.ascontiguousarray(image),
        (side, side),
        sigma,
        borderType=cv2.BORDER_REFLECT,
    )


def noise(
    image: np.ndarray, sigma: float, *, seed: int = SEED, index: int = 0
) -> np.ndarray:
    """The picture with Gaussian noise, independent in every pixel and colour.

    Args:
      image: [h, w, 3] uint8 RGB.
      sigma: standard deviation, in units of 1/255 of the range; >= 0.
      seed: of the draw, >= 0.
      index: the picture's number, >= 0. The same seed, index and shape give the same
        noise, at another sigma scaled.

    Returns:
      [h, w, 3] uint8 RGB, rounded and clipped.
    """
    rng = np.random.default_rng((seed, index))
    drawn = rng.standard_normal(image.shape, np.float32)
    return np.clip(np.rint(image + np.float32(sigma) * drawn), 0, 255).astype(np.uint8)


@dataclasses.dataclass(frozen=True)
class Operation:
    """A way to process pictures, and how strongly.

    Attributes:
      title: for people.
      unit: what a strength is.
      strengths: from mild to strong.
      apply: `(image [h, w, 3] uint8, strength, index) -> [h, w, 3] uint8` of the
        picture of that number in its split.
    """

    title: str
    unit: str
    strengths: tuple[float, ...]
    apply: Callable[[np.ndarray, float, int], np.ndarray]


OPERATIONS = {
    "jpeg": Operation(
        "JPEG compression",
        "quality",
        (95, 90, 75, 50, 30),
        lambda image, quality, index: jpeg(image, quality),
    ),
    "rescale": Operation(
        "Down- and upscaling",
        "factor",
        (0.75, 0.5, 0.25),
        lambda image, factor, index: rescale(image, factor),
    ),
    "blur": Operation(
        "Gaussian blur",
        "sigma (pixels)",
        (0.5, 1, 2, 4),
        lambda image, sigma, index: blur(image, sigma),
    ),
    "noise": Operation(
        "Gaussian noise",
        "sigma (1/255)",
        (2, 5, 10, 20),
        lambda image, sigma, index: noise(image, sigma, index=index),
    ),
}


@dataclasses.dataclass(frozen=True)
class Drawn:
    """Blur, down- and upscaling, and then JPEG compression, each at random.

    Attributes:
      jpeg: probability of compression, of a quality drawn evenly from `QUALITIES`.
      blur: probability of blur, of a sigma drawn evenly from `SIGMAS`.
      rescale: probability of scaling, by a factor drawn evenly from `FACTORS`.
    """

    jpeg: float = 0.0
    blur: float = 0.0
    rescale: float = 0.0

    def __bool__(self) -> bool:
        return bool(self.jpeg or self.blur or self.rescale)

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A picture that has met them, or not.

        Args:
          image: [h, w, 3] uint8 RGB.
          rng: of the draw. It draws the same numbers whatever the probabilities are.

        Returns:
          [h, w, 3] uint8 RGB.
        """
        blurred, compressed = rng.random(2) < (self.blur, self.jpeg)
        sigma = rng.uniform(*SIGMAS)
        quality = int(rng.integers(*QUALITIES, endpoint=True))
        rescaled = rng.random() < self.rescale
        factor = rng.uniform(*FACTORS)
        if blurred:
            image = blur(image, sigma)
        if rescaled:
            image = rescale(image, factor)
        return jpeg(image, quality) if compressed else image
