"""Fixed filters that leave the noise of a picture and take away what it shows.

What a generator leaves behind is small beside the content. Both filters are linear and
have nothing to train.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# Offsets (row, column) of the eight neighbours, around the pixel.
_DIRECTIONS = ((-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1))
_SQUARE_3 = np.array([[-1, 2, -1], [2, -4, 2], [-1, 2, -1]]) / 4
_SQUARE_5 = (
    np.array(
        [
            [-1, 2, -2, 2, -1],
            [2, -6, 8, -6, 2],
            [-2, 8, -12, 8, -2],
            [2, -6, 8, -6, 2],
            [-1, 2, -2, 2, -1],
        ]
    )
    / 12
)


def neighbouring_pixels(images: jax.Array) -> jax.Array:
    """Differences within blocks of 2x2 pixels (NPR, Tan et al. 2024).

    Returns x - up(down(x)), where `down` keeps the first pixel of each block and `up`
    repeats it: 0 in a picture that was enlarged twofold by repeating pixels.

    Args:
      images: [batch, height, width, channels].

    Returns:
      The same shape.
    """
    _, height, width, _ = images.shape
    kept = images[:, ::2, ::2]
    repeated = jnp.repeat(jnp.repeat(kept, 2, axis=1), 2, axis=2)
    return images - repeated[:, :height, :width]


def rich_model(images: jax.Array) -> jax.Array:
    """The 30 residuals of the spatial rich model (Fridrich and Kodovsky 2012).

    Of the mean over the colours, with pixels of 0 around the picture.

    Args:
      images: [batch, height, width, channels].

    Returns:
      [batch, height, width, 30].
    """
    grey = jnp.mean(images, axis=-1, keepdims=True)
    kernels = jnp.asarray(KERNELS, images.dtype).transpose(1, 2, 0)[:, :, None]
    return lax.conv_general_dilated(
        grey, kernels, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _kernels() -> np.ndarray:
    """[30, 5, 5] float64: predictions of a pixel by its neighbours, less the pixel."""
    kernels = []

    def along(direction: tuple[int, int], weights: dict[int, float]) -> None:
        kernel = np.zeros((5, 5))
        for steps, weight in weights.items():
            kernel[2 + steps * direction[0], 2 + steps * direction[1]] = weight
        kernels.append(kernel)

    # First order: the difference from each neighbour.
    for direction in _DIRECTIONS:
        along(direction, {0: -1, 1: 1})
    # Second order: the mean of two opposite neighbours.
    for direction in _DIRECTIONS[:4]:
        along(direction, {-1: 1 / 2, 0: -1, 1: 1 / 2})
    # Third order: a parabola through three neighbours.
    for direction in _DIRECTIONS:
        along(direction, {-1: 1 / 3, 0: -1, 1: 1, 2: -1 / 3})
    # All around, and the four edges of that.
    for square in (_SQUARE_3, _SQUARE_5):
        pad = (5 - len(square)) // 2
        edge = square.copy()
        edge[len(square) // 2 + 1 :] = 0
        turned = [np.rot90(edge, turns) for turns in range(4)]
        kernels += [np.pad(kernel, pad) for kernel in itertools.chain([square], turned)]
    return np.stack(kernels)


KERNELS = _kernels()
FILTERS = {"npr": neighbouring_pixels, "srm": rich_model}
