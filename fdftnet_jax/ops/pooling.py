"""Max-pooling as a maximum of shifted slices.

XLA's own gradient of a max-pool (select-and-scatter) is several times slower on a CPU.
"""

import functools
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax


def max_pool(
    images: jax.Array,
    window: int,
    stride: int,
    padding: str | Sequence[tuple[int, int]] = "VALID",
) -> jax.Array:
    """Largest value of each window; padding never wins, it is minus infinity.

    Where two values of a window tie for the maximum, they share the gradient.

    Args:
      images: [batch, height, width, channels].
      window: side of the square window, in pixels.
      stride: of the windows over height and width.
      padding: 'VALID', 'SAME', (low, high) for height and width, or 'CEIL': a last
        window may reach over the lower and the right border as long as it starts
        inside the image, which is PyTorch's `ceil_mode`.

    Returns:
      [batch, out_height, out_width, channels]; unpadded, out_height is
      (height - window) // stride + 1.
    """
    size = images.shape[1:3]
    if padding == "CEIL":
        padding = [(0, _ceil_pad(n, window, stride)) for n in size]
    elif isinstance(padding, str):
        padding = lax.padtype_to_pads(size, (window,) * 2, (stride,) * 2, padding)
    if any(map(any, padding)):
        config = [(0, 0, 0), *((low, high, 0) for low, high in padding), (0, 0, 0)]
        images = lax.pad(images, jnp.array(-jnp.inf, images.dtype), config)
    spans = []
    for length in images.shape[1:3]:
        reach = (length - window) // stride * stride + 1
        spans.append([slice(k, k + reach, stride) for k in range(window)])
    slices = (images[:, rows, columns] for rows, columns in itertools.product(*spans))
    return functools.reduce(jnp.maximum, slices)


def _ceil_pad(length: int, window: int, stride: int) -> int:
    """What the last window of `ceil_mode` needs beyond the border."""
    last = -(-(length - window) // stride) * stride
    if last >= length:
        last -= stride
    return max(0, last + window - length)
