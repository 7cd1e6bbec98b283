"""What several loops read, computed once."""

import jax
import jax.numpy as jnp
from jax import lax


@jax.custom_vjp
def compute_once(x: jax.Array) -> jax.Array:
    """Returns x, which XLA on a CPU then computes once, and keeps.

    XLA fuses a cheap computation into every loop that reads its result. Of nine loops
    over a max-pool, such as the kernel gradient of a depthwise convolution has, each
    pools again.

    Args:
      x: of floating-point numbers, not empty.
    """
    return lax.platform_dependent(x, cpu=_behind_a_branch, default=lambda x: x)


def _behind_a_branch(x):
    # XLA's barriers are gone when it fuses. A branch that it cannot foresee is not.
    foreseen = x[(0,) * x.ndim] < jnp.inf
    return lax.cond(foreseen, lambda x: x, lambda x: jnp.negative(jnp.negative(x)), x)


compute_once.defvjp(lambda x: (compute_once(x), None), lambda _, gradient: (gradient,))
