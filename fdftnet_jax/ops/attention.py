"""Self-attention over image positions (FDFtNet Eq. 1-2), unscaled dot products.

Images are taken one at a time: at 1,024 positions one image's map stays in cache, a
batch of maps does not. The backward pass computes the map again, a block of queries at
a time and transposed, which leaves XLA plain matrix products where its own gradient
has transposed ones.
"""

import jax
import jax.numpy as jnp
from jax import lax

# Queries in a block of the backward pass: 128 x 1,024 floats are half a megabyte.
_BLOCK = 128


def attention_map(f: jax.Array, g: jax.Array) -> jax.Array:
    """The attention map beta of Eq. 1.

    Args:
      f: [..., positions, channels], the keys f(x_i).
      g: [..., positions, channels], the queries g(x_j).

    Returns:
      beta [..., j, i] = softmax over i of f(x_i) . g(x_j); each row sums to 1.
    """
    return jax.nn.softmax(jnp.einsum("...jc,...ic->...ji", g, f), axis=-1)


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
    return lax.map(lambda fgh: attention_map(*fgh[:2]) @ fgh[2], (f, g, h))


def _forward(f, g, h):
    out = attend(f, g, h)
    return out, (f, g, h, out)


def _backward(residuals, cotangent):
    return lax.map(_backward_one, (*residuals, cotangent))


def _backward_one(image):
    """Gradients of one image, with beta transposed: [i, j], keys by queries."""
    f, g, h, out, cotangent = image
    # The softmax's gradient needs sum_i beta[j, i] d beta[j, i], which is this.
    inner = jnp.sum(out * cotangent, axis=-1)

    def of_block(gradients, block):
        gradient_f, gradient_h = gradients
        g, cotangent, inner = block
        beta = jax.nn.softmax(f @ g.T, axis=0)
        gradient_logits = beta * (h @ cotangent.T - inner)
        gradient_f += gradient_logits @ g
        gradient_h += beta @ cotangent
        return (gradient_f, gradient_h), gradient_logits.T @ f

    positions = g.shape[0]
    size = _BLOCK if positions % _BLOCK == 0 else positions
    blocks = [a.reshape(-1, size, *a.shape[1:]) for a in (g, cotangent, inner)]
    start = jnp.zeros_like(f), jnp.zeros_like(h)
    (gradient_f, gradient_h), gradient_g = lax.scan(of_block, start, tuple(blocks))
    return gradient_f, gradient_g.reshape(g.shape), gradient_h


attend.defvjp(_forward, _backward)
