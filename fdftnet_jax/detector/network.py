"""Builds the function of a detector's file: named weights and views in, logits out.

The package builds it from the card. A detector's file also has it as StableHLO, with
the weights as arguments, for those who lack the network's code.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.traverse_util
import jax
import jax.export
import numpy as np

from fdftnet_jax.data import preprocess
from fdftnet_jax.models import registry

PLATFORMS = ("cpu", "cuda", "tpu")
Arrays = Mapping[str, Any]
# `(arrays, views [b, size, size, 3] uint8) -> logits [b, 2] float32`.
Program = Callable[[Arrays, Any], jax.Array]


def build(model: Mapping[str, Any], scaling: str) -> Program:
    """Builds the function by the network's code.

    Args:
      model: as `registry.build` takes it, with its `dtype`.
      scaling: of the views (see `preprocess.scale`).

    Raises:
      UserError: no such network.
    """
    apply = registry.computing_in(model["dtype"], registry.build(model).apply)

    def logits(arrays: Arrays, views: Any) -> jax.Array:
        images = preprocess.scale(views, scaling)
        return apply(nested(arrays), images, train=False)

    return logits


def flat(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Flattens `params` and `batch_stats`, by path such as 'params/conv1/kernel'."""
    leaves = flax.traverse_util.flatten_dict(dict(variables), sep="/")
    return {path: leaves[path] for path in sorted(leaves)}


def nested(arrays: Arrays) -> dict[str, Any]:
    """Undoes `flat`."""
    variables = flax.traverse_util.unflatten_dict(dict(arrays), sep="/")
    return {"params": {}, "batch_stats": {}} | variables


def export(program: Program, arrays: Arrays, size: int) -> jax.export.Exported:
    """Exports the function as StableHLO for any batch, on CPUs, NVIDIA GPUs and TPUs.

    Args:
      program: see `Program`.
      arrays: whose shapes and types it takes.
      size: side of the views, in pixels.
    """
    (batch,) = jax.export.symbolic_shape("b")
    views = jax.ShapeDtypeStruct((batch, size, size, 3), np.uint8)
    shapes = {
        name: jax.ShapeDtypeStruct(array.shape, array.dtype)
        for name, array in arrays.items()
    }
    with _without_locations():
        return jax.export.export(jax.jit(program), platforms=PLATFORMS)(shapes, views)


def check_views(size: int) -> np.ndarray:
    """Computes pictures whose logits a file states: one of waves, one of slopes.

    Args:
      size: side, in pixels.

    Returns:
      [2, size, size, 3] uint8.
    """
    y, x, colour = np.indices((size, size, 3))
    waves = x * y + 85 * colour
    slopes = 255 * (x + y) // (2 * size) + 40 * colour
    return (np.stack([waves, slopes]) % 256).astype(np.uint8)


@contextlib.contextmanager
def _without_locations() -> Iterator[None]:
    """Keeps the paths of the code, folders of this machine, out of a program."""
    name = "jax_traceback_in_locations_limit"
    limit = getattr(jax.config, name)
    jax.config.update(name, 0)
    try:
        yield
    finally:
        jax.config.update(name, limit)
