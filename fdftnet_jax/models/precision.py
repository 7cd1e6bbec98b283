"""Mixed precision: float32 parameters, a network that computes in bfloat16."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

DTYPES = ("float32", "bfloat16")


def computing_in(dtype: str, apply: Callable[..., Any]) -> Callable[..., Any]:
    """A network's apply function, computing in another dtype.

    Parameters and images are rounded on their way in, so that gradients arrive in
    float32 at float32 parameters. Batch statistics, sums over a batch and the softmax
    of the attention are in float32 in the layers themselves; the logits come out in
    float32.

    Args:
      dtype: one of `DTYPES`.
      apply: `(variables, images, ...) -> logits`, or `(logits, updates)` with
        `mutable=`.

    Returns:
      A function of the same arguments and results.
    """
    if dtype == "float32":
        return apply

    def rounded(variables, images, **kwargs):
        params = jax.tree.map(lambda leaf: leaf.astype(dtype), variables["params"])
        variables = {**variables, "params": params}
        found = apply(variables, images.astype(dtype), **kwargs)
        if not kwargs.get("mutable"):
            return found.astype(jnp.float32)
        logits, updates = found
        return logits.astype(jnp.float32), updates

    return rounded
