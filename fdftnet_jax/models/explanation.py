"""What an FDFtNet looks at: its attention, and Grad-CAM of its other branch.

Both are of the network in inference, and say which positions a score came from, not
why. A stage of the Fine-Tune Transformer whose gamma is near 0 hardly uses what it
attends to.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fdftnet_jax.models.fdftnet import FDFtNet
from fdftnet_jax.models.layers import hard_swish
from fdftnet_jax.ops import attention

_TRANSFORMER = "fine_tune_transformer"
# Queries in a block; of no image is a whole map held.
_BLOCK = 128


def attention_maps(
    model: FDFtNet, variables: Mapping[str, Any], images: jax.Array | np.ndarray
) -> tuple[jax.Array, ...]:
    """Maps of how much each position is attended to, one a stage.

    Args:
      model: FDFtNet; without a Fine-Tune Transformer there are no maps.
      variables: its `params` and `batch_stats`.
      images: [batch, height, width, 3] float32, scaled as for the network.

    Returns:
      For each stage m = 1..M [batch, h_m, w_m] float32: the mean over the queries j of
      beta[j, i] (Eq. 1), at the position of key i; the first stage has half the sides
      of what the Fine-Tune Transformer sees, each further one half of that. Each map
      sums to 1, so that 1 / (h_m w_m) is even attention. Where that sees a window of
      the image, zeros stand for the rest.
    """
    return _attention_maps(model, variables, images)


@functools.partial(jax.jit, static_argnums=0)
def _attention_maps(model, variables, images):
    modules = [f"attention{stage}" for stage in range(1, model.num_stages + 1)]
    paths = [(_TRANSFORMER, module, name) for module in modules for name in "fg"]
    found = _outputs(model, variables, images, paths)
    maps = []
    for f, g in zip(found[::2], found[1::2], strict=True):
        batch, height, width, channels = f.shape
        f, g = (a.reshape(batch, height * width, channels) for a in (f, g))
        # One image at a time.
        received = lax.map(lambda image: _received(*image), (f, g))
        maps.append(received.reshape(batch, height, width))
    if model.ftt_view == "window":
        maps = [_placed(stage, images.shape[1:3], model.ftt_size) for stage in maps]
    return tuple(maps)


def _placed(stage, sides, size):
    """A map of the window in the centre, [batch, h, w], amid zeros for the rest."""
    if not 0 < size < min(sides):
        return stage
    margins = [(0, 0)]
    for side, positions in zip(sides, stage.shape[1:], strict=True):
        before = (side - size) // 2
        after = side - size - before
        margins.append(tuple(round(m * positions / size) for m in (before, after)))
    return jnp.pad(stage, margins)


def gammas(variables: Mapping[str, Any]) -> tuple[float, ...]:
    """The gamma of each stage (Eq. 3), by which its attention counts beside its input.

    Args:
      variables: of an FDFtNet; of another network, or one without a Fine-Tune
        Transformer, there are none.
    """
    transformer = variables["params"].get(_TRANSFORMER, {})
    stages = sum(name.startswith("attention") for name in transformer)
    return tuple(
        float(transformer[f"attention{stage}"]["gamma"])
        for stage in range(1, stages + 1)
    )


def regression_log_odds(
    model: FDFtNet, variables: Mapping[str, Any], images: jax.Array | np.ndarray
) -> np.ndarray | None:
    """What the regression beside the network adds to the log odds of fake.

    Args:
      model: FDFtNet.
      variables: its `params` and `batch_stats`.
      images: [batch, height, width, 3] float32, scaled as for the network.

    Returns:
      [batch] float32, None where there is no regression.
    """
    if model.regression is None:
        return None
    own = {part: tree.get("regression", {}) for part, tree in variables.items()}
    logits = np.asarray(_logits(model.regression, own, images))
    return logits[:, 1] - logits[:, 0]


@functools.partial(jax.jit, static_argnums=0)
def _logits(model, variables, images):
    return model.apply(variables, images, train=False)


def grad_cam(
    model: FDFtNet, variables: Mapping[str, Any], images: jax.Array | np.ndarray
) -> jax.Array:
    """Grad-CAM (Selvaraju et al. 2017) of logit(fake) - logit(real).

    It is ReLU(sum_k alpha_k A_k), where A is the last feature map of the MBblockV3
    branch (its last 1x1 convolution, normalised, through h-swish: 576 channels), and
    alpha_k is the mean over all positions of the gradient with respect to A_k.

    Only a mean over the positions and the classifier follow A. So the gradient needs no
    backward pass: alpha_k = (w[k, fake] - w[k, real]) / (h w) for every image. The map
    shows what each position adds to the log odds of fake, where that is above 0 (it is
    a class activation map, Zhou et al. 2016). It lacks what the Fine-Tune Transformer,
    the taps and a regression beside the network add.

    Args:
      model: FDFtNet.
      variables: its `params` and `batch_stats`.
      images: [batch, height, width, 3] float32, scaled as for the network.

    Returns:
      [batch, h, w] float32 >= 0, of the size of A: the caller enlarges it.
    """
    return _grad_cam(model, variables, images)


@functools.partial(jax.jit, static_argnums=0)
def _grad_cam(model, variables, images):
    path = ("mobilenet_head", "head_bn")
    (normalised,) = _outputs(model, variables, images, [path])
    features = hard_swish(normalised).astype(jnp.float32)
    # Behind the rows of these channels are those of the taps.
    kernel = variables["params"]["classifier"]["kernel"][: features.shape[3]]
    weight = (kernel[:, 1] - kernel[:, 0]) / (features.shape[1] * features.shape[2])
    return jax.nn.relu(jnp.einsum("bhwk,k->bhw", features, weight))


def _outputs(model, variables, images, paths):
    """The outputs of the submodules at these paths."""
    _, state = model.apply(
        variables,
        images,
        train=False,
        capture_intermediates=lambda module, _: module.path in paths,
        mutable=["intermediates"],
    )
    found = []
    for path in paths:
        node = state["intermediates"]
        for name in path:
            node = node[name]
        found.append(node["__call__"][0])
    return found


def _received(f, g):
    """The mean over the queries of one image's attention, [positions]."""
    positions = f.shape[0]
    size = min(_BLOCK, positions)
    filling = -positions % size
    queries = jnp.pad(g, [(0, filling), (0, 0)]).reshape(-1, size, g.shape[1])
    # A query of filling weighs nothing.
    weights = (jnp.arange(positions + filling) < positions) / positions

    def add(total, block):
        queries, weights = block
        return total + weights @ attention.attention_map(f, queries), None

    start = jnp.zeros(positions, jnp.float32)
    total, _ = lax.scan(add, start, (queries, weights.reshape(-1, size)))
    return total
