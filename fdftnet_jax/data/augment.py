"""Augmentation of the fine-tuning protocol (paper, section 4.1), on the device.

Pure functions of (rng, image): one affine warp (zoom, rotation, translation), a
horizontal flip, then Cutout (DeVries and Taylor, 2017). Each step is a sampler of
parameters and a function that applies given parameters to one image
[height, width, 3] in [0, 255]; only the samplers are random.

    keys = example_keys(step_rng, index_in_global_batch)
    images = augment_batch(keys, images, cutout_beta=10)
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fdftnet_jax import errors


class Warp(NamedTuple):
    """An affine warp of one image; axes are (row, column).

    Attributes:
      zoom: [2] float32, source pixels per output pixel along each axis, as in Keras:
        below 1 magnifies.
      rotation: [] float32, degrees; positive turns the content clockwise.
      translation: [2] float32, source pixels; positive moves the content up and left.
    """

    zoom: jax.Array
    rotation: jax.Array
    translation: jax.Array


class Cutout(NamedTuple):
    """Squares to blacken in one image; the first `number` of them are used.

    Attributes:
      number: [] int32, in 0..alpha.
      centre: [alpha, 2] int32, (row, column) of a pixel of the image.
      side: [alpha] int32, even, in pixels. A square reaches from `centre - side / 2`
        (included) to `centre + side / 2` (excluded), clipped at the border.
    """

    number: jax.Array
    centre: jax.Array
    side: jax.Array


def sample_warp(
    rng: jax.Array, *, zoom: float, rotation: float, translation: int
) -> Warp:
    """Draws a warp: every parameter is uniform and symmetric about the identity.

    Args:
      rng: the key of this image.
      zoom: zoom per axis lies in [1 - zoom, 1 + zoom].
      rotation: the angle lies in +-rotation, degrees.
      translation: shift per axis is a whole number of pixels in +-translation.

    Returns:
      The drawn warp.
    """
    zoom_rng, rotation_rng, translation_rng = jax.random.split(rng, 3)
    shift = jax.random.randint(translation_rng, (2,), -translation, translation + 1)
    return Warp(
        zoom=jax.random.uniform(zoom_rng, (2,), minval=1 - zoom, maxval=1 + zoom),
        rotation=jax.random.uniform(rotation_rng, minval=-rotation, maxval=rotation),
        translation=shift.astype(jnp.float32),
    )


def apply_warp(image: jax.Array, warp: Warp) -> jax.Array:
    """Warps an image with bilinear sampling; outside it the nearest pixel is repeated.

    The pixel at `p`, measured from the centre of the image, is read at
    `rotation(zoom * p) + translation`.

    Args:
      image: [height, width, channels] float32.
      warp: the parameters.

    Returns:
      The warped image, of the same shape and range.
    """
    height, width, channels = image.shape
    centre_y, centre_x = (height - 1) / 2, (width - 1) / 2
    y = warp.zoom[0] * (jnp.arange(height, dtype=jnp.float32)[:, None] - centre_y)
    x = warp.zoom[1] * (jnp.arange(width, dtype=jnp.float32)[None, :] - centre_x)
    angle = jnp.deg2rad(warp.rotation)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    source_y = cos * y - sin * x + warp.translation[0] + centre_y
    source_x = sin * y + cos * x + warp.translation[1] + centre_x
    source_y = jnp.clip(source_y, 0, height - 1)
    source_x = jnp.clip(source_x, 0, width - 1)

    top = jnp.floor(source_y).astype(jnp.int32)
    left = jnp.floor(source_x).astype(jnp.int32)
    bottom = jnp.minimum(top + 1, height - 1)
    right = jnp.minimum(left + 1, width - 1)
    down = (source_y - top)[..., None]
    across = (source_x - left)[..., None]
    # Rows of a flat array: XLA fuses these four gathers into one fast loop on CPUs.
    pixels = image.reshape(height * width, channels)

    def read(row: jax.Array, column: jax.Array) -> jax.Array:
        return pixels.at[row * width + column].get(mode="promise_in_bounds")

    upper = (1 - across) * read(top, left) + across * read(top, right)
    lower = (1 - across) * read(bottom, left) + across * read(bottom, right)
    return (1 - down) * upper + down * lower


def sample_flip(rng: jax.Array) -> jax.Array:
    """Draws whether to flip: [] bool, true with probability 1/2."""
    return jax.random.bernoulli(rng)


def apply_flip(image: jax.Array, flip: jax.Array) -> jax.Array:
    """Mirrors [height, width, channels] left to right where `flip` ([] bool)."""
    columns = jnp.arange(image.shape[1])
    # A gather, for speed: XLA fuses a reversed slice badly with the warp on CPUs.
    return image[:, jnp.where(flip, columns[::-1], columns)]


def sample_cutout(
    rng: jax.Array, height: int, width: int, *, alpha: int, beta: int
) -> Cutout:
    """Draws the squares of Cutout.

    Args:
      rng: the key of this image.
      height: of the image, pixels.
      width: of the image, pixels.
      alpha: the number of squares is uniform in 0..alpha inclusive; at least 1.
      beta: each side is 4 * U{1..beta} pixels, drawn for each square; at least 1.

    Returns:
      The drawn squares.
    """
    number_rng, side_rng, centre_rng = jax.random.split(rng, 3)
    return Cutout(
        number=jax.random.randint(number_rng, (), 0, alpha + 1),
        centre=jax.random.randint(
            centre_rng, (alpha, 2), 0, jnp.array([height, width])
        ),
        side=4 * jax.random.randint(side_rng, (alpha,), 1, beta + 1),
    )


def apply_cutout(image: jax.Array, cutout: Cutout) -> jax.Array:
    """Fills the squares of `cutout` in [height, width, channels] with black (0)."""
    height, width, _ = image.shape

    def covered(size: int, centre: jax.Array) -> jax.Array:
        """Pixels of one axis inside each square: [alpha, size] bool."""
        offset = jnp.arange(size) - centre[:, None]
        half = cutout.side[:, None] // 2
        return (-half <= offset) & (offset < half)

    rows = covered(height, cutout.centre[:, 0])
    rows &= (jnp.arange(cutout.side.size) < cutout.number)[:, None]
    columns = covered(width, cutout.centre[:, 1])
    black = jnp.any(rows[:, :, None] & columns[:, None, :], axis=0)
    return jnp.where(black[..., None], 0, image)


def augment(
    rng: jax.Array,
    image: jax.Array,
    *,
    zoom: float = 0.2,
    rotation: float = 0.2,
    translation: int = 2,
    flip: bool = True,
    cutout_alpha: int = 3,
    cutout_beta: int = 5,
) -> jax.Array:
    """Augments one image: warp, then flip, then Cutout.

    The defaults are the protocol's for PGGAN; for Deepfake and Face2Face
    `cutout_beta` is 10. All options are static Python values.

    Args:
      rng: the key of this image.
      image: [height, width, channels] in [0, 255], float32 or uint8.
      zoom: zoom per axis is uniform in [1 - zoom, 1 + zoom]; in [0, 1).
      rotation: the angle is uniform in +-rotation, degrees.
      translation: shift per axis is uniform in {-translation..translation}, pixels.
      flip: whether half of the images are mirrored left to right.
      cutout_alpha: largest number of squares; 0 turns Cutout off.
      cutout_beta: largest side of a square, in units of 4 pixels.

    Returns:
      [height, width, channels] float32 in [0, 255].

    Raises:
      UserError: an option is outside its range.
    """
    _check_options(zoom, rotation, translation, cutout_alpha, cutout_beta)
    height, width, _ = image.shape
    warp_rng, flip_rng, cutout_rng = jax.random.split(rng, 3)
    image = image.astype(jnp.float32)
    if zoom or rotation or translation:
        warp = sample_warp(
            warp_rng, zoom=zoom, rotation=rotation, translation=translation
        )
        image = apply_warp(image, warp)
    if flip:
        image = apply_flip(image, sample_flip(flip_rng))
    if cutout_alpha:
        cutout = sample_cutout(
            cutout_rng, height, width, alpha=cutout_alpha, beta=cutout_beta
        )
        image = apply_cutout(image, cutout)
    return image


def augment_batch(rng_keys: jax.Array, images: jax.Array, **options: Any) -> jax.Array:
    """Augments each image of a batch with its own key.

    Args:
      rng_keys: [batch] keys, as from `example_keys`.
      images: [batch, height, width, channels] in [0, 255], float32 or uint8.
      **options: of `augment`.

    Returns:
      [batch, height, width, channels] float32 in [0, 255].
    """
    return jax.vmap(lambda rng, image: augment(rng, image, **options))(rng_keys, images)


def example_keys(rng: jax.Array, indices: jax.Array) -> jax.Array:
    """One key per example, whatever device or process holds the example.

    Args:
      rng: the key of this step, the same on every device.
      indices: [batch] integers, each example's index in the global batch.

    Returns:
      [batch] keys, `fold_in(rng, index)`.
    """
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(rng, indices)


def _check_options(
    zoom: float, rotation: float, translation: int, alpha: int, beta: int
) -> None:
    for name, value, valid, expected in (
        ("zoom", zoom, 0 <= zoom < 1, "in [0, 1)"),
        ("rotation", rotation, rotation >= 0, "degrees >= 0"),
        ("translation", translation, translation >= 0, "pixels >= 0"),
        ("cutout_alpha", alpha, alpha >= 0, "a number of squares >= 0"),
        ("cutout_beta", beta, alpha == 0 or beta >= 1, ">= 1 (units of 4 pixels)"),
    ):
        if not valid:
            raise errors.UserError(
                f"Augmentation's {name} must be {expected}, found {value}; "
                "correct it in the config."
            )
