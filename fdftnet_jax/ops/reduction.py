"""Sums over every axis but the channels, means over devices."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

# Products that one loop over the channels adds up.
_TERMS = 32
# Rows whose sums XLA adds up in the loop that makes them: with more, it reads too many
# places at a time.
_FEW = 8


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
