"""Sums over every axis but the channels, means over devices."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

# Products that one loop over the channels adds up.
_TERMS = 32
# Arrays above the first size are summed a group of images at a time, each of at most
# the second, so that what is read more than once is read from a CPU's cache.
_LARGE_BYTES = 20 * 2**20
_GROUP_BYTES = 5 * 2**20
# Rows whose sums XLA adds up in the loop that makes them: with more, it reads too many
# places at a time.
_FEW = 8


def sums_over_batch(sums: Callable[..., jax.Array], *arrays: jax.Array) -> jax.Array:
    """Several sums over the same arrays.

    Args:
      sums: of arrays [images, ...], an array of any shape that a sum over the images
        makes; it is called with all images, or with groups of them whose results are
        added up.
      *arrays: [batch, ...] each.

    Returns:
      `sums(*arrays)`.
    """
    batch = arrays[0].shape[0]
    bytes_of_one = sum(
        math.prod(array.shape[1:]) * array.dtype.itemsize for array in arrays
    )
    # A batch of unknown size, of an exported program, is not dealt to groups.
    if not isinstance(batch, int) or batch * bytes_of_one <= _LARGE_BYTES:
        return sums(*arrays)
    fitting = max(1, _GROUP_BYTES // bytes_of_one)
    size = next(n for n in range(min(batch, fitting), 0, -1) if batch % n == 0)

    def by_groups(*arrays):
        grouped = [array.reshape(-1, size, *array.shape[1:]) for array in arrays]
        start = jax.eval_shape(sums, *(array[0] for array in grouped))
        total = jnp.zeros(start.shape, start.dtype)
        return lax.scan(lambda t, group: (t + sums(*group), None), total, grouped)[0]

    return lax.platform_dependent(*arrays, cpu=by_groups, default=sums)


def channel_sums(*factors: jax.Array) -> jax.Array:
    """Sums the product of arrays over all their axes but the last.

    Args:
      *factors: [..., channels] each, of one shape.

    Returns:
      [channels], in float32 at least.
    """
    if factors[0].ndim < 3:
        return _reduced(*factors)
    return lax.platform_dependent(*factors, cpu=_written_out, default=_reduced)


def _reduced(*factors):
    return jnp.sum(_product(factors), axis=tuple(range(factors[0].ndim - 1)))


def _written_out(*factors):
    """XLA's loops over the channels are fast where they add a few terms at a time.

    So the sum along a row is written out, that of a few rows too, and a product with
    ones, which is as fast, adds up what is left.
    """
    terms = _sum_of_rows(*factors)
    while terms.ndim > 2 and terms.shape[-2] <= _FEW:
        terms = _sum_of_rows(terms)
    terms = terms.reshape(-1, terms.shape[-1])
    return jnp.ones(terms.shape[0], terms.dtype) @ terms


def _sum_of_rows(*factors):
    """[..., n, channels] each -> [..., channels], the sum of n products."""
    *shape, number, channels = factors[0].shape
    total = jnp.zeros((*shape, channels), wide(factors[0]).dtype)
    for start in range(0, number, _TERMS):
        rows = range(start, min(number, start + _TERMS))
        terms = [_product([factor[..., row, :] for factor in factors]) for row in rows]
        total += functools.reduce(jnp.add, terms)
    return total


def _product(factors):
    return functools.reduce(jnp.multiply, map(wide, factors))


def device_mean(tree: Any, axis_name: str | None) -> Any:
    """`lax.pmean`, but nothing where there is one device: XLA would copy the arrays.

    Args:
      tree: of arrays.
      axis_name: the pmapped axis, or None.
    """
    if axis_name is None or lax.axis_size(axis_name) == 1:
        return tree
    return lax.pmean(tree, axis_name)


def wide(array: jax.Array) -> jax.Array:
    """The array in float32 at least."""
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))
