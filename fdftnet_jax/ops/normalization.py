"""Batch normalisation (Ioffe & Szegedy 2015, arXiv:1502.03167), with its gradient."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from fdftnet_jax.ops.reduction import channel_sums, device_mean, wide


def scale_and_shift(
    x: jax.Array,
    mean: jax.Array,
    variance: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    epsilon: float,
) -> jax.Array:
    """(x - mean) / sqrt(variance + epsilon) scale + bias, for [..., channels]."""
    factor = lax.rsqrt(variance + epsilon) * scale
    return ((x - mean) * factor + bias).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def batch_norm(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    epsilon: float,
    axis_name: str | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalises each channel by the statistics of the global batch.

    The gradient flows through the first result alone; the other two are for running
    averages.

    Args:
      x: [..., channels].
      scale: [channels], gamma of the paper.
      bias: [channels], beta of the paper.
      epsilon: added to the variance.
      axis_name: the pmapped axis of the global batch, or None.

    Returns:
      The normalised x, of its shape and dtype; mean and biased variance, [channels],
      computed in float32 at least.
    """
    mean, square = (
        _mean(channel_sums(*factors), x, axis_name) for factors in ([x], [x, x])
    )
    variance = jnp.maximum(0.0, square - mean * mean)
    return scale_and_shift(x, mean, variance, scale, bias, epsilon), mean, variance


def _mean(sums, x, axis_name):
    """Sums over this device's share of the batch -> means over the global batch."""
    return device_mean(sums / (x.size // x.shape[-1]), axis_name)


def _forward(x, scale, bias, epsilon, axis_name):
    y, mean, variance = batch_norm(x, scale, bias, epsilon, axis_name)
    return (y, mean, variance), (x, scale, mean, lax.rsqrt(variance + epsilon))


def _backward(epsilon, axis_name, residuals, cotangents):
    x, scale, mean, inverse = residuals
    cotangent = cotangents[0]
    # Sums over the batch of the cotangent, and of its product with the normalised x.
    bias_gradient = channel_sums(cotangent)
    products = channel_sums(cotangent, x)
    scale_gradient = inverse * (products - mean * bias_gradient)
    shared = [_mean(sums, x, axis_name) for sums in (bias_gradient, scale_gradient)]
    # (x - mean) is written out by channel, so that no array of it is kept.
    slope = inverse * shared[1]
    x_gradient = (scale * inverse) * (
        wide(cotangent) - wide(x) * slope + (mean * slope - shared[0])
    )
    return (
        x_gradient.astype(x.dtype),
        scale_gradient.astype(scale.dtype),
        bias_gradient.astype(scale.dtype),
    )


batch_norm.defvjp(_forward, _backward)
