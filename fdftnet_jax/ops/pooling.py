"""Max-pooling as a maximum of shifted slices, with a gradient of its own.

XLA's gradient of a max-pool (select-and-scatter) is several times slower on a CPU, and
that of the slices writes a padded image for each of them. Here every pixel collects
what the windows over it give, in one pass.
"""

import functools
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
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
    return _max_pool(images, window, stride)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _max_pool(images: jax.Array, window: int, stride: int) -> jax.Array:
    return functools.reduce(jnp.maximum, _slices(images, window, stride))


def _slices(images: jax.Array, window: int, stride: int) -> list[jax.Array]:
    """The pixels at each place in the windows, [batch, out_height, out_width, c]."""
    spans = []
    for length in images.shape[1:3]:
        reach = (length - window) // stride * stride + 1
        spans.append([slice(k, k + reach, stride) for k in range(window)])
    return [images[:, rows, columns] for rows, columns in itertools.product(*spans)]


def _forward(images, window, stride):
    out = _max_pool(images, window, stride)
    return out, (images, out)


def _backward(window, stride, residuals, cotangent):
    images, out = residuals
    ties = sum((s == out).astype(out.dtype) for s in _slices(images, window, stride))
    share = cotangent / ties
    # A pixel of row i lies in the windows i // stride - a, as far as they reach to it.
    cells = [-(-length // stride) for length in images.shape[1:3]]
    before = (window - 1) // stride

    def padded(array):
        after = [max(0, n - m) for n, m in zip(cells, array.shape[1:3], strict=True)]
        return jnp.pad(array, ((0, 0), *((before, n) for n in after), (0, 0)))

    share, out = padded(share), padded(out)

    def of_pixels(array, a, b):
        """What `array` has for the window of each pixel, like `images`."""
        starts = (before - a, before - b)
        rows, columns = (slice(k, k + n) for k, n in zip(starts, cells, strict=True))
        array = array[:, rows, columns]
        for axis in (1, 2):
            array = jnp.repeat(array, stride, axis)
        return array[:, : images.shape[1], : images.shape[2]]

    places = [np.arange(length) % stride for length in images.shape[1:3]]
    gradient = jnp.zeros_like(images)
    for a, b in itertools.product(range(before + 1), repeat=2):
        rows, columns = (
            place + stride * k < window for place, k in zip(places, (a, b), strict=True)
        )
        wins = images == of_pixels(out, a, b)
        wins &= rows[:, None, None] & columns[:, None]
        gradient += jnp.where(wins, of_pixels(share, a, b), 0)
    return (gradient,)


_max_pool.defvjp(_forward, _backward)


def _ceil_pad(length: int, window: int, stride: int) -> int:
    """Padding beyond the border that the last window of `ceil_mode` needs."""
    last = -(-(length - window) // stride) * stride
    if last >= length:
        last -= stride
    return max(0, last + window - length)
