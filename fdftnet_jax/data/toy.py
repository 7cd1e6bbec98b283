"""Toy photographs and two families of toy forgeries, made from nothing but a seed.

They are the embedded default: they need no download, show nobody's face, and let the
whole path from pre-training to a fine-tuned detector run in minutes. They are toys:
a figure reached on them says that the machinery works, nothing about real forgeries.

A "real" image is a dead-leaves picture: opaque shapes of all sizes hide each other,
filled with shaded colours and 1/f textures, seen through optics of random sharpness by
a noisy sensor. Occlusion and scale invariance give it the statistics of natural images
(a power spectrum near 1/f^2, correlated colours).

The two families mirror the paper's two kinds of forgery:

* `upsampled` (a generator's whole image, as PGGAN): the picture is reduced to a small
  code and brought back by transposed convolutions with random kernels, which get the
  picture's own detail at every scale. The unequal phases of the kernels leave periodic
  traces, the spectral replicas of the lower resolution.
* `blended` (a swapped face, as Deepfakes or Face2Face): an inner, face-like ellipse is
  re-synthesised at low resolution, its colours are matched to the original not quite
  perfectly, and it is blended back through a soft mask. The rest is untouched.

Every image is a pure function of (family, seed, index) on one machine; elsewhere a
different linear algebra library may round single values differently.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
from PIL import Image, ImageDraw
from scipy import fft

from fdftnet_jax.data import caches, images
from fdftnet_jax.data.splits import SPLITS, Example
from fdftnet_jax.errors import UserError

FAMILIES = ("upsampled", "blended")
VERSION = 1
SIZE = 64

# Pictures are painted at twice their size, and the optics bring them down.
_CANVAS = 2 * SIZE
_LEAVES = 64
# Doublings in `upsampled`, and the standard deviation of their kernels' weights.
_DOUBLINGS = 2
_KERNEL_SPREAD = 0.07
# Images of different splits come from different ranges of this length.
_RANGE = 2**24
# Index streams: no fake shares its source with a real example or another fake.
_STREAMS = {"real": 0, "upsampled": 1, "blended": 2}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Toy:
    """The toy as a data set, with the attributes of a `folder.Folder`.

    Attributes:
      family: 'upsampled', 'blended', or 'both', which alternates them.
      seed: seed of the pictures.
      per_class: images of each class in each split.
    """

    kind: ClassVar[str] = "toy"
    family: str = "both"
    seed: int = 0
    per_class: Mapping[str, int]

    def check(self) -> None:
        """Raises UserError if a value is unknown."""
        choices = ("both", *FAMILIES)
        if self.family not in choices:
            raise UserError(
                f"expected the toy family to be one of {', '.join(choices)}, found "
                f"{self.family!r}; choose one of them"
            )
        numbers = self.per_class.values()
        unknown = set(self.per_class) - set(SPLITS)
        if unknown or min(numbers, default=0) < 0 or not any(numbers):
            raise UserError(
                f"expected toy examples for {', '.join(SPLITS)} of 0 or more, found "
                f"{dict(self.per_class)}; correct them"
            )

    @functools.cached_property
    def examples(self) -> dict[str, list[Example]]:
        """The examples of each split that has any."""
        return {s: self._split(s, n) for s, n in self.per_class.items() if n}

    def _split(self, split: str, number: int) -> list[Example]:
        """Lists `number` real images, then as many fake ones."""
        families = FAMILIES if self.family == "both" else (self.family,)
        real = [f"{split}/real/{i:06d}" for i in range(number)]
        examples = [Example(path, 0, path, "") for path in real]
        for i in range(number):
            family = families[i % len(families)]
            path = f"{split}/fake/{family}/{i:06d}"
            examples.append(Example(path, 1, path, family))
        return examples

    @property
    def expected(self) -> list[str]:
        """The splits that were asked for."""
        return list(self.examples)

    @property
    def dir(self) -> str:
        """'': the pictures are in no folder."""
        return ""

    @property
    def title(self) -> str:
        """Short name for people."""
        return f"toy-{self.family}"

    @property
    def name(self) -> str:
        """The name of the cache entry."""
        return f"{self.title}-{self.fingerprint(SPLITS)}"

    @property
    def description(self) -> str:
        """Description of the data set, for people."""
        return f"Toy forgeries, {self.family}, seed {self.seed}"

    @property
    def to_get_split(self) -> str:
        """Advice for a split that is missing."""
        return "give the split a fraction above 0"

    def png(self, split: str, index: int, pictures: caches.Pictures) -> bytes:
        """Makes the picture of `examples[split][index]`."""
        del pictures
        example = self.examples[split][index]
        number = SPLITS.index(split) * _RANGE + index % self.per_class[split]
        if example.label == 0:
            return images.encode_png(real_image(self.seed, number))
        return images.encode_png(fake_image(example.generator, self.seed, number))

    def fingerprint(self, splits: Sequence[str]) -> str:
        """A hash of the toy's parameters and of the numbers of these splits."""
        numbers = sorted((s, len(self.examples.get(s, []))) for s in set(splits))
        content = json.dumps([VERSION, self.family, self.seed, numbers])
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def digests(self, splits: Sequence[str]) -> dict[str, str]:
        """{}: the pictures are in no files."""
        del splits
        return {}


def real_image(seed: int, index: int) -> np.ndarray:
    """Returns a toy photograph.

    Args:
      seed: seed of the whole data set, >= 0.
      index: number of the image in its stream, >= 0.

    Returns:
      [64, 64, 3] uint8 RGB.

    Raises:
      ValueError: if `seed` or `index` is negative.
    """
    return _photograph(_generator(seed, "real", index))


def source_image(family: str, seed: int, index: int) -> np.ndarray:
    """Returns the toy photograph that `fake_image` forges with the same arguments.

    It follows the distribution of `real_image`, but comes from the family's own stream
    of indices, so that it is never among the real examples.

    Args:
      family: one of `FAMILIES`.
      seed: seed of the whole data set, >= 0.
      index: number of the image in the family, >= 0.

    Returns:
      [64, 64, 3] uint8 RGB.

    Raises:
      UserError: if the family is unknown.
      ValueError: if `seed` or `index` is negative.
    """
    return _photograph(_generator(seed, _known(family), index))


def fake_image(family: str, seed: int, index: int) -> np.ndarray:
    """Returns a toy forgery, made from `source_image(family, seed, index)`.

    Args:
      family: one of `FAMILIES`.
      seed: seed of the whole data set, >= 0.
      index: number of the image in the family, >= 0.

    Returns:
      [64, 64, 3] uint8 RGB.

    Raises:
      UserError: if the family is unknown.
      ValueError: if `seed` or `index` is negative.
    """
    rng = _generator(seed, _known(family), index)
    forge = {"upsampled": _upsampled, "blended": _blended}[family]
    return _quantise(forge(rng))


def blend_mask(seed: int, index: int) -> np.ndarray:
    """Returns where `fake_image("blended", seed, index)` replaces its source.

    Args:
      seed: seed of the whole data set, >= 0.
      index: number of the image in the family, >= 0.

    Returns:
      [64, 64] float32 in [0, 1]: 0 where the source is untouched.

    Raises:
      ValueError: if `seed` or `index` is negative.
    """
    rng = _generator(seed, "blended", index)
    # `_blended` draws the photograph first, and then the mask.
    _capture(rng, _scene(rng))
    return _inner_mask(rng)


def _known(family: str) -> str:
    if family not in FAMILIES:
        raise UserError(
            f"expected a toy family among {', '.join(FAMILIES)}, found {family!r}: "
            "set data.family to one of them"
        )
    return family


def _generator(seed: int, stream: str, index: int) -> np.random.Generator:
    return np.random.default_rng((seed, _STREAMS[stream], index))


def _photograph(rng: np.random.Generator) -> np.ndarray:
    return _quantise(_capture(rng, _scene(rng)))


def _quantise(image: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(image * 255), 0, 255).astype(np.uint8)


# --- Photographs


def _scene(rng: np.random.Generator) -> np.ndarray:
    """Paints a dead-leaves picture; [3, 128, 128] float32, positive, about [0, 1]."""
    leaf = _occlusion(rng)
    count = _LEAVES + 1  # the background is leaf 0

    # Colours: an image has a few hues; luminance varies more than chromaticity.
    palette = rng.normal(size=(4, 3)) * (0.55, 0.16, 0.08) + (-1.0, 0, 0)
    opponent = palette[rng.integers(4, size=count)]
    opponent += rng.normal(size=(count, 3)) * (0.4, 0.06, 0.04)
    light, red_blue, green = opponent.T
    log_colour = np.stack(
        [light + red_blue - green, light + green, light - red_blue - green]
    ).astype(np.float32)

    # Texture: the 1/f field, scrolled for every leaf, and a linear shading across it.
    field = _texture(rng).reshape(-1)
    scroll = rng.integers(field.size, size=count)
    contrast = np.exp(rng.normal(-1.8, 0.6, count)).astype(np.float32)
    place = np.arange(field.size).reshape(leaf.shape) + scroll.take(leaf)
    relief = contrast.take(leaf) * field.take(place, mode="wrap")
    ramp = np.linspace(-1, 1, _CANVAS, dtype=np.float32)
    shading = rng.normal(0, 0.35, (2, count)).astype(np.float32)
    relief += shading[0].take(leaf) * ramp[:, None] + shading[1].take(leaf) * ramp
    return np.exp(log_colour).take(leaf, axis=1) * np.exp(relief)


def _occlusion(rng: np.random.Generator) -> np.ndarray:
    """Drops blobs and polygons on each other; returns the visible leaf, [128, 128]."""
    corners = 20
    # Radii with density r^-3 between the bounds make the picture scale invariant.
    largest, smallest = 0.55 * _CANVAS, 0.03 * _CANVAS
    radius = rng.uniform(largest**-2, smallest**-2, _LEAVES) ** -0.5
    # A finite stack needs a few large leaves at the bottom to hide the background.
    radius[:6] = rng.uniform(0.2, 0.6, 6) * _CANVAS
    angle = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    lobes = rng.integers(2, 5, (_LEAVES, 1))
    wobble = rng.uniform(0, 0.35, (_LEAVES, 1))
    outline = 1 + wobble * np.cos(lobes * angle + rng.uniform(0, 7, (_LEAVES, 1)))
    points = radius[:, None] * outline * np.exp(1j * angle)
    stretch = rng.uniform(0.25, 1, (_LEAVES, 1))
    turn = np.exp(1j * rng.uniform(0, 2 * np.pi, (_LEAVES, 1)))
    points = (points.real + 1j * stretch * points.imag) * turn
    centre = rng.uniform(0, _CANVAS, (2, _LEAVES, 1))
    points = np.stack([points.real + centre[0], points.imag + centre[1]], axis=-1)

    canvas = Image.new("L", (_CANVAS, _CANVAS), 0)
    draw = ImageDraw.Draw(canvas)
    step = np.where(rng.uniform(size=_LEAVES) < 0.4, 5, 1)  # 4-sided or smooth
    for number in range(_LEAVES):
        draw.polygon(points[number, :: step[number]].ravel().tolist(), number + 1)
    return np.asarray(canvas)


def _texture(rng: np.random.Generator) -> np.ndarray:
    """Returns a periodic 1/f field of unit variance, [128, 128] float32."""
    down = np.fft.fftfreq(_CANVAS).astype(np.float32)[:, None]
    right = np.fft.rfftfreq(_CANVAS).astype(np.float32)
    turn = rng.uniform(0, np.pi)
    across = np.float32(np.cos(turn)) * down + np.float32(np.sin(turn)) * right
    # |k|^2, squeezed along a random direction: grain, cloth, bark.
    squared = down**2 + right**2 + np.float32(rng.uniform(0, 8)) * across**2
    squared[0, 0] = np.inf
    slope = np.float32(rng.uniform(0.8, 1.3))
    amplitude = np.exp(np.log(squared) * (-slope / 2))
    noise = rng.standard_normal((*squared.shape, 2), dtype=np.float32)
    spectrum = noise.view(np.complex64)[..., 0] * amplitude
    field = fft.irfft2(spectrum, s=(_CANVAS, _CANVAS))
    return field / field.std()


def _capture(rng: np.random.Generator, scene: np.ndarray) -> np.ndarray:
    """Photographs a [3, 128, 128] scene; [64, 64, 3] float32, about [0, 1]."""
    return _sensor(rng, _develop(rng, scene))


def _develop(rng: np.random.Generator, scene: np.ndarray) -> np.ndarray:
    """Applies optics of random sharpness, exposure and a highlight roll-off.

    Args:
      rng: source of the camera's random settings.
      scene: [3, 128, 128] float32, positive.

    Returns:
      [3, 64, 64] float32, about [0, 1], without noise.
    """
    # A pixel integrates over its area: the mean of 2x2 points of the scene.
    rows = scene[:, ::2] + scene[:, 1::2]
    image = (rows[..., ::2] + rows[..., 1::2]) / 4
    image = _separable(_sampling(SIZE, SIZE, 0.25 + rng.gamma(1.5, 0.13)), image)
    image = image * (rng.uniform(0.3, 0.6) / image.mean())
    return image / (1 + np.maximum(image - 0.5, 0))


def _sensor(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Adds noise that grows with brightness; [3, 64, 64] -> [64, 64, 3]."""
    level = rng.uniform(0.008, 0.03)
    noise = rng.standard_normal(image.shape, dtype=np.float32)
    noisy = image + level * np.sqrt(0.3 + np.maximum(image, 0)) * noise
    return noisy.transpose(1, 2, 0)


def _sampling(rows: int, columns: int, sigma: float) -> np.ndarray:
    """Returns the matrix that resamples `columns` points to `rows` by a Gaussian.

    Args:
      rows: number of output samples.
      columns: number of input samples over the same extent.
      sigma: the Gaussian's standard deviation in units of the coarser spacing.

    Returns:
      [rows, columns] float32, each row summing to 1.
    """
    coarse = min(rows, columns)
    to = (np.arange(rows, dtype=np.float32) + 0.5) * (coarse / rows)
    origin = (np.arange(columns, dtype=np.float32) + 0.5) * (coarse / columns)
    weights = np.exp(-0.5 * ((to[:, None] - origin[None, :]) / np.float32(sigma)) ** 2)
    return weights / weights.sum(axis=1, keepdims=True)


def _separable(matrix: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Applies a resampling matrix to the rows and columns of [c, h, w]."""
    return matrix @ image @ matrix.T


# --- Forgeries


def _upsampled(rng: np.random.Generator) -> np.ndarray:
    """Synthesises the whole image from a code; [64, 64, 3] float32, about [0, 1]."""
    image = _develop(rng, _scene(rng))
    scales = [image]
    while len(scales) <= _DOUBLINGS:
        size = scales[0].shape[-1]
        scales.insert(0, _separable(_sampling(size // 2, size, 0.5), scales[0]))
    synthesis = scales[0]
    for coarse, fine in itertools.pairwise(scales):
        size = fine.shape[-1]
        synthesis = _transposed_convolution(rng, synthesis)
        # A generator invents detail at every scale; here the picture lends its own,
        # so that nothing but the upsampling tells the two apart.
        synthesis += fine - _separable(_sampling(size, size // 2, 0.5), coarse)
    return _sensor(rng, synthesis)


def _transposed_convolution(
    rng: np.random.Generator, features: np.ndarray
) -> np.ndarray:
    """Doubles [c, n, n] by separable 4x4 kernels of random weights, one per channel.

    The weights of each kernel sum to 4, so that the mean is kept; those of its four
    phases need not be equal, which is what shows.
    """
    channels, size, _ = features.shape
    weights = np.array([0.15, 0.85, 0.85, 0.15], np.float32)
    kernel = weights + rng.normal(0, _KERNEL_SPREAD, (2, channels, 4)).astype(
        np.float32
    )
    kernel /= kernel.sum(axis=-1, keepdims=True) / 2
    matrix = np.zeros((2, channels, 2 * size + 2, size), np.float32)
    columns = np.arange(size)
    for tap in range(4):
        matrix[:, :, 2 * columns + tap, columns] = kernel[:, :, tap, None]
    # Edge replication: what falls outside goes to the border pixels' own sum.
    matrix = matrix[:, :, 1:-1]
    matrix[:, :, 0, 0] += kernel[..., 3]
    matrix[:, :, -1, -1] += kernel[..., 0]
    return matrix[0] @ features @ matrix[1].transpose(0, 2, 1)


def _blended(rng: np.random.Generator) -> np.ndarray:
    """Swaps an inner ellipse for a coarse copy; [64, 64, 3] float32, about [0, 1]."""
    image = _capture(rng, _scene(rng))
    mask = _inner_mask(rng)[..., None]
    planes = image.transpose(2, 0, 1)
    size = int(rng.integers(22, 33))
    low = _separable(_sampling(size, SIZE, 0.5), planes)
    # Wide enough to leave no trace of the coarse grid, the other family's mark.
    copy = _separable(_sampling(SIZE, size, 0.65), low).transpose(1, 2, 0)
    # Colours are matched inside the mask, up to a small error of gain and offset.
    mean = (copy * mask).sum((0, 1)) / mask.sum()
    gain = np.exp(rng.normal(0, 0.08, 3)).astype(np.float32)
    offset = rng.normal(0, 0.03, 3).astype(np.float32)
    swapped = (copy - mean) * gain + mean + offset
    return image + mask * (swapped - image)


def _inner_mask(rng: np.random.Generator) -> np.ndarray:
    """Draws a soft, upright ellipse near the centre; [64, 64] float32 in [0, 1]."""
    centre = SIZE / 2 + rng.uniform(-3, 3, 2).astype(np.float32)
    axes = np.array([rng.uniform(18, 24), rng.uniform(14, 20)], np.float32)
    y, x = np.ogrid[:SIZE, :SIZE]
    radius = np.sqrt(
        ((y + 0.5 - centre[0]) / axes[0]) ** 2 + ((x + 0.5 - centre[1]) / axes[1]) ** 2
    )
    softness = rng.uniform(0.1, 0.25)
    ramp = np.clip((1 - radius) / softness, 0, 1).astype(np.float32)
    return ramp * ramp * (3 - 2 * ramp)
