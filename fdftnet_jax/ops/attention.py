"""Self-attention over image positions (FDFtNet Eq. 1-2), unscaled dot products.

Neither pass ever holds a whole map: queries are taken a block at a time against all
keys, so that memory grows with the number of positions and not with its square. The
backward pass computes each block of the map again, transposed, which leaves XLA plain
matrix products where its own gradient has transposed ones.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

# Queries in a block: 128 x 1,024 floats are half a megabyte and stay in cache.
_BLOCK = 128
# Positions whose whole map other devices than CPUs take at once.
_WHOLE = 1024


def attention_map(f: jax.Array, g: jax.Array) -> jax.Array:
    """The attention map beta of Eq. 1.

    Args:
      f: [..., positions, channels], the keys f(x_i).
      g: [..., positions, channels], the queries g(x_j).

    Returns:
      beta [..., j, i] = softmax over i of f(x_i) . g(x_j); each row sums to 1. In
      float32 at least, and so are the softmax and the products before it.
    """
    logits = jnp.einsum("...jc,...ic->...ji", g, f, preferred_element_type=_wide(f))
    return jax.nn.softmax(logits, axis=-1)


def _wide(array):
    return jnp.promote_types(array.dtype, jnp.float32)


@jax.custom_vjp
def attend(f: jax.Array, g: jax.Array, h: jax.Array) -> jax.Array:
    """The output o of Eq. 2, o_j = sum_i beta[j, i] h(x_i).

    Args:
      f: [batch, positions, channels // b], the keys.
      g: [batch, positions, channels // b], the queries.
      h: [batch, positions, channels], the values.

    Returns:
      [batch, positions, channels].
    """
    elsewhere = _attend_block if g.shape[1] <= _WHOLE else _attend_one
    return _over_images(_attend_one, elsewhere, f, g, h)


def _over_images(on_cpu, elsewhere, *arrays):
    """One image at a time on a CPU, whose cache holds one image's work; else all."""
    return lax.platform_dependent(
        *arrays,
        cpu=lambda *arrays: lax.map(lambda image: on_cpu(*image), arrays),
        default=jax.vmap(elsewhere),
    )


def _blocks(*arrays):
    """[positions, ...] -> [blocks, queries, ...], filled up with zeros."""
    positions = arrays[0].shape[0]
    size = min(_BLOCK, positions)
    filling = -positions % size
    return tuple(
        jnp.pad(a, [(0, filling)] + [(0, 0)] * (a.ndim - 1)).reshape(
            -1, size, *a.shape[1:]
        )
        for a in arrays
    )


def _joined(blocks, positions):
    return blocks.reshape(-1, *blocks.shape[2:])[:positions]


def _attend_one(f, g, h):
    (queries,) = _blocks(g)
    return _joined(lax.map(lambda g: _attend_block(f, g, h), queries), g.shape[0])


def _attend_block(f, g, h):
    """Eq. 2 for some queries; what is divided by the softmax's sums is the product."""
    logits = jnp.matmul(g, f.T, preferred_element_type=_wide(f))
    weights = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
    products = jnp.matmul(weights.astype(h.dtype), h, preferred_element_type=_wide(h))
    return (products / jnp.sum(weights, axis=-1, keepdims=True)).astype(h.dtype)


def _forward(f, g, h):
    out = attend(f, g, h)
    return out, (f, g, h, out)


def _backward(residuals, cotangent):
    return _over_images(_backward_one, _backward_one, *residuals, cotangent)


def _backward_one(f, g, h, out, cotangent):
    """Gradients of one image, with beta transposed: [i, j], keys by queries."""
    # The softmax's gradient needs sum_i beta[j, i] d beta[j, i], which is this.
    inner = jnp.sum(out * cotangent, axis=-1, dtype=_wide(out))
    matmul = functools.partial(jnp.matmul, preferred_element_type=_wide(f))

    def of_block(gradients, block):
        gradient_f, gradient_h = gradients
        g, cotangent, inner = block
        beta = jax.nn.softmax(matmul(f, g.T), axis=0)
        gradient_logits = beta * (matmul(h, cotangent.T) - inner)
        gradient_logits = gradient_logits.astype(f.dtype)
        gradient_f += matmul(gradient_logits, g)
        gradient_h += matmul(beta.astype(h.dtype), cotangent)
        return (gradient_f, gradient_h), gradient_logits.T @ f

    # A query of filling has no cotangent, and gives no gradient.
    blocks = _blocks(g, cotangent, inner)
    start = tuple(jnp.zeros(array.shape, _wide(array)) for array in (f, h))
    (gradient_f, gradient_h), gradient_g = lax.scan(of_block, start, blocks)
    gradient_g = _joined(gradient_g, g.shape[0])
    return gradient_f.astype(f.dtype), gradient_g, gradient_h.astype(h.dtype)


attend.defvjp(_forward, _backward)
