"""Batch normalisation folded into the kernels before it, for inference.

With its running statistics, a normalisation is a multiplication and an addition for
each channel. Where it takes what a convolution or a dense layer gives, and nothing else
does, the factor becomes one of the kernel, and an addition is left:

    (W x + b - mean) factor + beta = (W factor) x + b factor + (beta - mean factor),
    factor = gamma / sqrt(variance + epsilon).

Which these are is seen in the computation itself. The rest, such as the normalisations
before a ReLU in a pre-activation unit, stay as they are.
"""

import collections
import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax import traverse_util
from jax.ad_checkpoint import checkpoint_name

from fdftnet_jax.models.layers import BatchNorm

Path = tuple[str, ...]


def fold(module: nn.Module, variables: Mapping[str, Any], size: int) -> dict[str, Any]:
    """Folds what can be folded of a network.

    Args:
      module: `(images, *, train)`, of any modules; only `layers.BatchNorm` is folded.
      variables: its `params` and `batch_stats`, on the host.
      size: side of its images, in pixels.

    Returns:
      Variables with which `module.apply(variables, images, train=False)` gives the same
      up to rounding. A folded normalisation has only a `bias`; the variables are for
      inference alone.
    """
    flat = traverse_util.flatten_dict(dict(variables))
    for norm, (kernel, epsilon) in _foldable(module, variables, size).items():
        mean, variance = (
            np.asarray(flat.pop(("batch_stats", *norm, name)), np.float64)
            for name in ("mean", "var")
        )
        scale = np.asarray(flat.pop(("params", *norm, "scale")), np.float64)
        factor = scale / np.sqrt(variance + epsilon)
        for name in ("kernel", "bias"):
            path = ("params", *kernel, name)
            if path in flat:
                flat[path] = (np.asarray(flat[path]) * factor).astype(np.float32)
        path = ("params", *norm, "bias")
        shift = np.asarray(flat[path]) - mean * factor
        flat[path] = shift.astype(np.float32)
    return {"params": {}, "batch_stats": {}} | traverse_util.unflatten_dict(flat)


def _foldable(
    module: nn.Module, variables: Mapping[str, Any], size: int
) -> dict[Path, tuple[Path, float]]:
    """Path of a normalisation -> path of the layer before it, and epsilon.

    What such a layer gives, and what a normalisation takes, is given a name; the pairs
    are then found in the graph.
    """
    layers: dict[str, nn.Module] = {}
    calls: collections.Counter[Path] = collections.Counter()

    def named(array: jax.Array, module: nn.Module) -> jax.Array:
        name = f"{len(layers)}"
        layers[name] = module
        return checkpoint_name(array, name)

    def name_ends(call, args, kwargs, context):
        layer = context.module
        if context.method_name != "__call__":
            return call(*args, **kwargs)
        calls[layer.path] += 1
        if isinstance(layer, nn.Conv | nn.Dense):
            return named(call(*args, **kwargs), layer)
        if isinstance(layer, BatchNorm) and layer.use_running_average:
            return call(named(args[0], layer))
        return call(*args, **kwargs)

    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), variables)
    images = jax.ShapeDtypeStruct((1, size, size, 3), np.float32)
    with nn.intercept_methods(name_ends):
        apply = functools.partial(module.apply, train=False)
        graph = jax.make_jaxpr(apply)(dict(shapes), images).jaxpr

    used = collections.Counter(
        id(variable)
        for variables in (*(equation.invars for equation in graph.eqns), graph.outvars)
        for variable in variables
    )
    pairs, made = {}, {}
    for equation in graph.eqns:
        if equation.primitive.name != "name":
            continue
        layer = layers[equation.params["name"]]
        (source,), (result,) = equation.invars, equation.outvars
        made[id(result)] = layer
        before = made.get(id(source))
        if (
            isinstance(layer, BatchNorm)
            and isinstance(before, nn.Conv | nn.Dense)
            and used[id(source)] == 1
            and calls[layer.path] == calls[before.path] == 1
        ):
            pairs[layer.path] = before.path, layer.epsilon
    return pairs
