"""Convolution of NHWC images, by the form that suits the kernel.

`conv_general_dilated` is what the modules call (`nn.Conv(conv_general_dilated=...)`):
a 1x1 kernel becomes a matrix product, a depthwise kernel a sum of shifted products, a
kernel that leaves only a few pixels a product with their patches, and everything else
goes to `jax.lax`. On a CPU, XLA runs the first as a loop over pixels, the second one
channel at a time and the third up to a hundred times slower; all three forms here use
its fast paths.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Pads = tuple[tuple[int, int], tuple[int, int]]
# Pixels of an output that is so small that its patches are gathered.
_FEW = 9


def conv_general_dilated(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    **kwargs: Any,
) -> jax.Array:
    """Same contract and values as `jax.lax.conv_general_dilated`, NHWC with HWIO.

    Args:
      lhs: images, [batch, height, width, channels].
      rhs: kernel, [kernel_height, kernel_width, channels / groups, features].
      window_strides: strides over height and width.
      padding: 'SAME', 'VALID' or (low, high) for height and width.
      lhs_dilation: dilation of the images; other than 1 goes to `jax.lax`.
      rhs_dilation: dilation of the kernel; other than 1 goes to `jax.lax`.
      dimension_numbers: of NHWC images and an HWIO kernel, as Flax passes them.
      feature_group_count: 1, or `channels` for a depthwise convolution.
      **kwargs: passed on to `jax.lax` (precision, preferred_element_type).

    Returns:
      [batch, out_height, out_width, features].
    """
    height, width, group_channels, features = rhs.shape
    strides = (int(window_strides[0]), int(window_strides[1]))
    dilations = (*(lhs_dilation or ()), *(rhs_dilation or ()))
    # A precision or an accumulator that is asked for is left to XLA.
    if all(d == 1 for d in dilations) and not any(kwargs.values()):
        pads = _pads(padding, lhs.shape[1:3], (height, width), strides)
        if group_channels == 1 and features == feature_group_count:
            return depthwise_conv(lhs, rhs[:, :, 0, :], strides, pads)
        pointwise = (height, width, feature_group_count) == (1, 1, 1)
        if pointwise and pads == ((0, 0), (0, 0)):
            return pointwise_conv(lhs[:, :: strides[0], :: strides[1]], rhs[0, 0])
        if feature_group_count == 1:
            windows = _windows(lhs, rhs, strides, pads)
            first = next(windows)
            if first.shape[1] * first.shape[2] <= _FEW:
                patches = jnp.concatenate([first, *windows], axis=-1)
                return pointwise_conv(patches, rhs.reshape(-1, features))
    return lax.conv_general_dilated(
        lhs,
        rhs,
        window_strides,
        padding,
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
        dimension_numbers=dimension_numbers or ("NHWC", "HWIO", "NHWC"),
        feature_group_count=feature_group_count,
        **kwargs,
    )


def _pads(padding, size, window, strides) -> Pads:
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(size, window, strides, padding)
    (top, bottom), (left, right) = padding
    return (int(top), int(bottom)), (int(left), int(right))


@jax.custom_vjp
def pointwise_conv(images: jax.Array, kernel: jax.Array) -> jax.Array:
    """Mixes the channels of every pixel: [..., channels] @ [channels, features]."""
    return images @ kernel


def _pointwise_forward(images, kernel):
    return images @ kernel, (images, kernel)


def _pointwise_backward(residuals, cotangent):
    images, kernel = residuals
    # XLA transposes the cotangent for the kernel's gradient. Without the barrier it
    # computes whatever made the cotangent a second time, in that slow order.
    cotangent = lax.optimization_barrier(cotangent)
    rows = images.reshape(-1, images.shape[-1])
    return cotangent @ kernel.T, rows.T @ cotangent.reshape(-1, cotangent.shape[-1])


pointwise_conv.defvjp(_pointwise_forward, _pointwise_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def depthwise_conv(
    images: jax.Array, kernel: jax.Array, strides: tuple[int, int], pads: Pads
) -> jax.Array:
    """Convolves every channel with its own kernel.

    Args:
      images: [batch, height, width, channels].
      kernel: [kernel_height, kernel_width, channels].
      strides: over height and width.
      pads: (low, high) zeros for height and width.

    Returns:
      [batch, out_height, out_width, channels].
    """
    return sum(
        window * tap
        for window, tap in zip(
            _windows(images, kernel, strides, pads), _taps(kernel), strict=True
        )
    )


def _taps(kernel):
    return [
        kernel[i, j] for i in range(kernel.shape[0]) for j in range(kernel.shape[1])
    ]


def _windows(images, kernel, strides, pads):
    """Yields, for each kernel tap, the pixels that it meets: [.., oh, ow, channels]."""
    config = [(0, 0, 0)] * (images.ndim - 3) + [(*p, 0) for p in pads] + [(0, 0, 0)]
    images = lax.pad(images, jnp.zeros((), images.dtype), config)
    spans = []
    for axis, (size, stride) in enumerate(zip(kernel.shape, strides, strict=False)):
        out = (images.shape[axis - 3] - size) // stride + 1
        spans.append(
            [slice(k, k + stride * (out - 1) + 1, stride) for k in range(size)]
        )
    for rows in spans[0]:
        for columns in spans[1]:
            yield images[..., rows, columns, :]


def _depthwise_forward(images, kernel, strides, pads):
    return depthwise_conv(images, kernel, strides, pads), (images, kernel)


def _depthwise_backward(strides, pads, residuals, cotangent):
    images, kernel = residuals

    # The image's gradient is the stride-1 convolution of the dilated cotangent with
    # the flipped kernel; its pads undo the forward ones.
    config = [(0, 0, 0)]
    for axis in (1, 2):
        size, stride = kernel.shape[axis - 1], strides[axis - 1]
        low = size - 1 - pads[axis - 1][0]
        dilated = (cotangent.shape[axis] - 1) * stride + 1
        high = images.shape[axis] + size - 1 - low - dilated
        config.append((low, high, stride - 1))
    spread = lax.pad(cotangent, jnp.zeros((), cotangent.dtype), [*config, (0, 0, 0)])
    none = ((0, 0), (0, 0))
    image_gradient = depthwise_conv(spread, kernel[::-1, ::-1], (1, 1), none)

    # One image at a time: its windows stay in cache, which the whole batch's do not.
    def of_one_image(pair):
        image, gradient = pair
        return jnp.stack(
            [
                jnp.sum(window * gradient, (0, 1))
                for window in _windows(image, kernel, strides, pads)
            ]
        )

    kernel_gradient = jnp.sum(lax.map(of_one_image, (images, cotangent)), 0)
    return image_gradient, kernel_gradient.reshape(kernel.shape)


depthwise_conv.defvjp(_depthwise_forward, _depthwise_backward)
