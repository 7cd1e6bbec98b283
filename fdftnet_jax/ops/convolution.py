"""Convolution of NHWC images, by the form that suits the kernel.

`conv_general_dilated` is what the modules call (`nn.Conv(conv_general_dilated=...)`):
a 1x1 kernel becomes a matrix product, a depthwise kernel a sum of shifted products, a
kernel that leaves only a few pixels a product with their patches, any other dense
kernel `dense_conv`, and the rest goes to `jax.lax`. On a CPU, XLA runs the first as a
loop over pixels, the second one channel at a time and the third up to a hundred times
slower; all forms here use its fast paths. Where they suit a CPU alone,
`lax.platform_dependent` chooses, when the program is lowered.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from fdftnet_jax.ops.reduction import channel_sums, sums_over_batch, wide
from fdftnet_jax.ops.reuse import compute_once

Pads = tuple[tuple[int, int], tuple[int, int]]
# Pixels of an output that is so small that its patches are gathered.
_FEW = 9
# Channels of a picture.
_COLOURS = 3
# What the patches of a group of images take, at most, to stay in a CPU's cache.
_GROUP_BYTES = 4 * 2**20


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
        if feature_group_count == 1:
            pointwise = (height, width) == (1, 1) and pads == ((0, 0), (0, 0))
            if pointwise and strides == (1, 1):
                return pointwise_conv(lhs, rhs[0, 0])
            first = next(_windows(lhs, rhs, strides, pads))
            if pointwise or first.shape[1] * first.shape[2] <= _FEW:
                return patches_conv(lhs, rhs, strides, pads)
            return dense_conv(lhs, rhs, strides, pads)
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
def patches_conv(
    images: jax.Array, kernel: jax.Array, strides: tuple[int, int], pads: Pads
) -> jax.Array:
    """On a CPU, a product with all patches at once; elsewhere `jax.lax`'s convolution.

    (On a GPU, XLA 0.11 ends the process where such a product reads every other pixel.)

    Args:
      images: [batch, height, width, channels].
      kernel: [kernel_height, kernel_width, channels, features].
      strides: over height and width.
      pads: (low, high) zeros for height and width.

    Returns:
      [batch, out_height, out_width, features].
    """
    by_product, by_lax = _forms(strides, pads)
    return lax.platform_dependent(images, kernel, cpu=by_product, default=by_lax)


def _forms(strides, pads):
    def by_product(images, kernel):
        patches = _patches(images, kernel, strides, pads)
        return pointwise_conv(patches, kernel.reshape(-1, kernel.shape[-1]))

    return by_product, functools.partial(_lax_conv, strides=strides, pads=pads)


def _patches_forward(images, kernel, strides, pads):
    return patches_conv(images, kernel, strides, pads), (images, kernel)


def _patches_backward(strides, pads, residuals, cotangent):
    def gradient(form):
        return lambda *arguments: jax.vjp(form, *arguments[:2])[1](arguments[2])

    by_product, by_lax = map(gradient, _forms(strides, pads))
    return lax.platform_dependent(*residuals, cotangent, cpu=by_product, default=by_lax)


patches_conv.defvjp(_patches_forward, _patches_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def dense_conv(
    images: jax.Array, kernel: jax.Array, strides: tuple[int, int], pads: Pads
) -> jax.Array:
    """Convolves all channels with every feature's kernel.

    On a CPU, the kernel's gradient and the convolution without pads or of a picture are
    products with the patches of a few images at a time. Everything else is `jax.lax`'s
    convolution, which is as fast there.

    Args:
      images: [batch, height, width, channels].
      kernel: [kernel_height, kernel_width, channels, features].
      strides: over height and width.
      pads: (low, high) zeros for height and width.

    Returns:
      [batch, out_height, out_width, features].
    """
    by_lax = functools.partial(_lax_conv, strides=strides, pads=pads)
    if any(map(any, pads)) and images.shape[-1] > _COLOURS:
        return by_lax(images, kernel)

    def by_patches(images, kernel):
        rows = kernel.reshape(-1, kernel.shape[-1])

        def of_group(images):
            return _patches(images, kernel, strides, pads) @ rows

        (grouped,) = _grouped([images], kernel, strides, pads)
        out = lax.map(of_group, grouped)
        return out.reshape(images.shape[0], *out.shape[2:])

    return lax.platform_dependent(images, kernel, cpu=by_patches, default=by_lax)


def _lax_conv(images, kernel, strides, pads):
    return lax.conv_general_dilated(
        images, kernel, strides, pads, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _patches(images, kernel, strides, pads):
    return jnp.concatenate(list(_windows(images, kernel, strides, pads)), axis=-1)


def _grouped(arrays, kernel, strides, pads):
    """[batch, ...] each -> [groups, images, ...], images and more, by patches in cache.

    A batch of unknown size, of an exported program, comes in groups of one.
    """
    images, *_ = arrays
    batch, *shape = images.shape
    size = 1
    if isinstance(batch, int):
        one = jax.ShapeDtypeStruct((1, *shape), images.dtype)
        patches = functools.partial(_patches, strides=strides, pads=pads)
        found = jax.eval_shape(patches, one, kernel)
        fitting = _GROUP_BYTES // (found.size * found.dtype.itemsize)
        divisors = (n for n in range(min(batch, fitting), 0, -1) if batch % n == 0)
        size = next(divisors, 1)
    return [array.reshape(-1, size, *array.shape[1:]) for array in arrays]


def _dense_forward(images, kernel, strides, pads):
    return dense_conv(images, kernel, strides, pads), (images, kernel)


def _dense_backward(strides, pads, residuals, cotangent):
    images, kernel = residuals
    by_lax = functools.partial(_lax_conv, strides=strides, pads=pads)
    to_images = jax.linear_transpose(lambda images: by_lax(images, kernel), images)
    (image_gradient,) = to_images(cotangent)

    def kernel_by_lax(images, cotangent):
        to_kernel = jax.linear_transpose(lambda kernel: by_lax(images, kernel), kernel)
        return to_kernel(cotangent)[0]

    def kernel_by_patches(images, cotangent):
        def add_group(total, group):
            images, cotangent = group
            patches = _patches(images, kernel, strides, pads)
            rows = patches.reshape(-1, patches.shape[-1])
            transposed = cotangent.reshape(-1, cotangent.shape[-1]).T
            product = jnp.matmul(transposed, rows, preferred_element_type=total.dtype)
            return total + product, None

        shape = kernel.shape[-1], kernel[..., 0].size
        start = jnp.zeros(shape, wide(kernel).dtype)
        pairs = _grouped([images, cotangent], kernel, strides, pads)
        total, _ = lax.scan(add_group, start, pairs)
        return total.T.reshape(kernel.shape).astype(kernel.dtype)

    kernel_gradient = lax.platform_dependent(
        images, cotangent, cpu=kernel_by_patches, default=kernel_by_lax
    )
    return image_gradient, kernel_gradient


dense_conv.defvjp(_dense_forward, _dense_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def depthwise_conv(
    images: jax.Array, kernel: jax.Array, strides: tuple[int, int], pads: Pads
) -> jax.Array:
    """Convolves every channel with its own kernel.

    The gradients are sums of shifted products, too, on a CPU; elsewhere they are those
    of `jax.lax`'s convolution, which take up to half the time there.

    Args:
      images: [batch, height, width, channels].
      kernel: [kernel_height, kernel_width, channels].
      strides: over height and width.
      pads: (low, high) zeros for height and width.

    Returns:
      [batch, out_height, out_width, channels].
    """
    taps = kernel.reshape(-1, kernel.shape[-1])
    windows = _windows(images, kernel, strides, pads)
    products = [
        wide(window) * wide(tap) for window, tap in zip(windows, taps, strict=True)
    ]
    return sum(products, start=jnp.zeros(())).astype(images.dtype)


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
    by_taps, by_lax = (
        functools.partial(gradients, strides=strides, pads=pads)
        for gradients in (_gradients_by_taps, _gradients_by_lax)
    )
    return lax.platform_dependent(*residuals, cotangent, cpu=by_taps, default=by_lax)


def _gradients_by_lax(images, kernel, cotangent, strides, pads):
    conv = functools.partial(
        lax.conv_general_dilated,
        window_strides=strides,
        padding=pads,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=images.shape[-1],
    )
    return jax.vjp(lambda x, w: conv(x, w[:, :, None]), images, kernel)[1](cotangent)


def _gradients_by_taps(images, kernel, cotangent, strides, pads):
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

    meetings = [
        _meetings(images.shape[axis], cotangent.shape[axis], *geometry)
        for axis, *geometry in zip(
            (1, 2), kernel.shape, strides, [low for low, _ in pads], strict=False
        )
    ]
    places = list(itertools.product(*map(list, meetings)))

    def taps(images, cotangent):
        return jnp.stack(
            [
                channel_sums(
                    images[:, rows, columns], cotangent[:, out_row, out_column]
                )
                for (rows, out_row), (columns, out_column) in places
            ]
        )

    # Every tap reads both.
    both = compute_once(images), compute_once(cotangent)
    sums = sums_over_batch(taps, *both)
    kernel_gradient = sums.reshape(kernel.shape).astype(kernel.dtype)
    return image_gradient, kernel_gradient


depthwise_conv.defvjp(_depthwise_forward, _depthwise_backward)


def _meetings(length, out_length, size, stride, low):
    """Yields, for each tap along an axis, (pixels, outputs) where they meet."""
    for tap in range(size):
        first = max(0, -((tap - low) // stride))
        last = max(first, min(out_length, (length - 1 + low - tap) // stride + 1))
        begin = first * stride + tap - low
        end = begin + (last - first - 1) * stride + 1
        yield slice(begin, max(begin, end), stride), slice(first, last)
