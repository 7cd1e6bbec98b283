"""Self-attention over image positions (FDFtNet Eq. 1-2), unscaled dot products."""

import jax
import jax.numpy as jnp


def attention_map(f: jax.Array, g: jax.Array) -> jax.Array:
    """The attention map beta of Eq. 1.

    Args:
      f: [..., positions, channels], the keys f(x_i).
      g: [..., positions, channels], the queries g(x_j).

    Returns:
      beta [..., j, i] = softmax over i of f(x_i) . g(x_j); each row sums to 1.
    """
    return jax.nn.softmax(jnp.einsum("...jc,...ic->...ji", g, f), axis=-1)


def attend(f: jax.Array, g: jax.Array, h: jax.Array) -> jax.Array:
    """The output o of Eq. 2, o_j = sum_i beta[j, i] h(x_i).

    Images are taken one at a time and beta is computed again in the backward pass: at
    1,024 positions one image's map stays in cache, a batch of maps does not.

    Args:
      f: [batch, positions, channels // b], the keys.
      g: [batch, positions, channels // b], the queries.
      h: [batch, positions, channels], the values.

    Returns:
      [batch, positions, channels].
    """

    @jax.checkpoint
    def of_one_image(fgh):
        f, g, h = fgh
        return attention_map(f, g) @ h

    return jax.lax.map(of_one_image, (f, g, h))
