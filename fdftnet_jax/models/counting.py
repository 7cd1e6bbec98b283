"""The size of a network: its parameters, and the work that one image costs.

Floating-point operations are counted on the jaxpr, for what is computed there:

| operation | counts |
|---|---|
| convolution, matrix product | 2 for each multiply-add |
| any other arithmetic (sum, product, maximum, exponential, ...) | 1 for each result |
| reduction | 1 for each element that it takes |
| moving and choosing elements, comparisons, integers | 0 |

So a depthwise convolution counts alike as a convolution and as the shifted products
and sums of `ops.convolution`, and bias, normalisation and ReLU count beside the
kernels. The body of a loop counts once for each turn.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr

from fdftnet_jax.models import registry

_FREE = {
    "all_gather",
    "broadcast_in_dim",
    "concatenate",
    "convert_element_type",
    "copy",
    "dynamic_slice",
    "dynamic_update_slice",
    "expand_dims",
    "gather",
    "optimization_barrier",
    "pad",
    "reshape",
    "rev",
    "select_n",
    "slice",
    "split",
    "squeeze",
    "stack",
    "stop_gradient",
    "transpose",
    "unstack",
}


@dataclasses.dataclass(frozen=True)
class Size:
    """Parameters and operations of a network.

    Attributes:
      parameters: all of them, as Keras counts: a batch normalisation has four per
        channel, its two statistics included.
      flops: floating-point operations of the inference of one image.
      output_shape: of one image, (height, width, channels) or (classes,).
    """

    parameters: int
    flops: int
    output_shape: tuple[int, ...]


def measure(module: nn.Module, image_size: int = 64) -> Size:
    """Counts a network, without compiling or running it.

    Args:
      module: `(images, *, train)`.
      image_size: side of the square image, in pixels.
    """
    image = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    init = functools.partial(module.init, train=False)
    variables = jax.eval_shape(init, jax.random.key(0), image)
    apply = functools.partial(module.apply, train=False)
    jaxpr, output = jax.make_jaxpr(apply, return_shape=True)(variables, image)
    return Size(
        parameters=sum(leaf.size for leaf in jax.tree.leaves(variables)),
        flops=_of_jaxpr(jaxpr.jaxpr),
        output_shape=output.shape[1:],
    )


def flops(function: Callable[..., Any], *arguments: Any) -> int:
    """Floating-point operations of one call, by the rules above.

    Args:
      function: of arrays.
      *arguments: arrays, or their `jax.ShapeDtypeStruct`.

    Raises:
      ValueError: a loop whose number of turns depends on values.
    """
    return _of_jaxpr(jax.make_jaxpr(function)(*arguments).jaxpr)


def table(image_size: int = 64) -> str:
    """The sizes of the package's backbones and of FDFtNet on each, as Markdown.

    FDFtNet has four MBblockV3 and three attention stages, as in the paper. MFLOPs are
    those of one image; a backbone's are counted with its 2-class top. New is what
    fine-tuning adds: all but the backbone.
    """
    lines = [
        "| backbone | feature map | parameters without top | with 2-class top | MFLOPs "
        "| FDFtNet: parameters | of them new | MFLOPs |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in registry.OWN:
        features = measure(registry.get_backbone(name), image_size)
        whole = measure(registry.get_backbone(name, 2), image_size)
        model = {"kind": "fdftnet", "backbone": name}
        options = {"num_blocks": 4, "num_stages": 3, "first_stride": 1}
        fdftnet = measure(registry.build(model | options), image_size)
        cells = (
            f"`{name}`",
            "x".join(map(str, features.output_shape)),
            f"{features.parameters:,}",
            f"{whole.parameters:,}",
            f"{whole.flops / 1e6:,.0f}",
            f"{fdftnet.parameters:,}",
            f"{fdftnet.parameters - features.parameters:,}",
            f"{fdftnet.flops / 1e6:,.0f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _of_jaxpr(jaxpr: Jaxpr) -> int:
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "while":
        raise ValueError("cannot count a loop whose number of turns depends on values")
    if name == "cond":
        return max(_of_jaxpr(branch.jaxpr) for branch in params["branches"])
    inner = [
        value.jaxpr if isinstance(value, ClosedJaxpr) else value
        for value in params.values()
        if isinstance(value, ClosedJaxpr | Jaxpr)
    ]
    if inner:
        return params.get("length", 1) * sum(map(_of_jaxpr, inner))
    out = equation.outvars[0].aval
    # (Without an input: a constant that is filled in.)
    free = name in _FREE or not equation.invars
    if free or not jnp.issubdtype(out.dtype, jnp.floating):
        return 0
    first = equation.invars[0].aval
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        return 2 * out.size * math.prod(first.shape[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval
        features = params["dimension_numbers"].rhs_spec[0]
        # Zeros between the pixels of a dilated image are not multiplied.
        zeros = math.prod(params["lhs_dilation"])
        return 2 * out.size * kernel.size // kernel.shape[features] // zeros
    if "window_dimensions" in params:
        return out.size * math.prod(params["window_dimensions"])
    return first.size if name.startswith("reduce") else out.size
