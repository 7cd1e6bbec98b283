"""Max-pooling as a maximum of shifted slices.

XLA's own gradient of a max-pool (select-and-scatter) is several times slower on a CPU.
"""

import functools
import itertools

import jax
import jax.numpy as jnp


def max_pool(images: jax.Array, window: int, stride: int) -> jax.Array:
    """Largest value of each window, without padding ('VALID').

    Where two values of a window tie for the maximum, they share the gradient.

    Args:
      images: [batch, height, width, channels].
      window: side of the square window, in pixels.
      stride: of the windows over height and width.

    Returns:
      [batch, (height - window) // stride + 1, (width - window) // stride + 1, channels]
    """
    spans = []
    for size in images.shape[1:3]:
        reach = (size - window) // stride * stride + 1
        spans.append([slice(k, k + reach, stride) for k in range(window)])
    slices = (images[:, rows, columns] for rows, columns in itertools.product(*spans))
    return functools.reduce(jnp.maximum, slices)
