"""Batch normalisation folded into kernels, against the network as it is."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from fdftnet_jax.models import folding, layers, registry

SIZE = 64
# Normalisations of the backbone that no kernel can take.
LEFT = {
    "squeezenet": 0,
    "shallownetv3": 0,
    # Before each of 16 units, and after the last.
    "resnet50v2": 17,
    "xception": 0,
    "efficientnet_lite0": 0,
}


def _variables(module, size=SIZE):
    """Random ones, statistics included, with which signals neither fade nor grow."""
    images = np.zeros((1, size, size, 3), np.float32)
    init = functools.partial(module.init, train=False)
    shapes = jax.eval_shape(init, jax.random.key(0), images)
    rng = np.random.default_rng(0)

    def random(path, leaf):
        name, shape = path[-1].key, leaf.shape
        if name == "kernel":
            values = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[:-1]))
        elif name in ("scale", "var"):
            values = rng.uniform(0.5, 1.5, shape)
        else:
            values = 0.3 * rng.standard_normal(shape)
        return values.astype(np.float32)

    return {"batch_stats": {}} | jax.tree_util.tree_map_with_path(random, shapes)


def _count(variables, name):
    paths = traverse_util.flatten_dict(dict(variables))
    return sum(path[-1] == name for path in paths)


def _agree(module, variables, folded, size=SIZE):
    images = np.random.default_rng(1).uniform(-1, 1, (2, size, size, 3))
    apply = jax.jit(functools.partial(module.apply, train=False))
    expected = np.asarray(apply(variables, images.astype(np.float32)))
    found = np.asarray(apply(folded, images.astype(np.float32)))
    largest = np.abs(expected).max()
    assert np.ptp(expected, axis=0).max() > 0.01 * largest
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * largest)


@pytest.mark.parametrize("backbone", LEFT)
def test_logits_are_those_of_the_network_as_it_is(backbone):
    model = {"kind": "fdftnet", "backbone": backbone, "taps": True, "first_stride": 1}
    module = registry.build(model | {"num_blocks": 1, "num_stages": 1})
    variables = _variables(module)
    folded = folding.fold(module, variables, SIZE)
    # Beside the backbone's, that of the taps, which follows no kernel.
    assert _count(folded, "mean") == _count(folded, "scale") == LEFT[backbone] + 1
    assert _count(folded, "bias") == _count(variables, "bias")
    _agree(module, variables, folded)


class Network(nn.Module):
    """One convolution or more, and normalisations of `form`."""

    form: str

    @nn.compact
    def __call__(self, images, *, train):
        norm = functools.partial(layers.BatchNorm, use_running_average=not train)
        conv = layers.Conv(5, (3, 3), name="conv")
        x = conv(images)
        if self.form == "biased":
            x = norm(name="bn")(x)
        elif self.form == "dense":
            x = norm(name="bn")(layers.Dense(5, name="dense")(nn.relu(x)))
        elif self.form == "relu between":
            x = norm(name="bn")(nn.relu(x))
        elif self.form == "used elsewhere":
            x = norm(name="bn")(x) * x
        elif self.form == "two normalisations":
            x = norm(name="bn")(x) * norm(name="bn2")(x)
        elif self.form == "a result, too":
            return jnp.stack([norm(name="bn")(x), x])
        elif self.form == "called twice":
            x = norm(name="bn")(x) + nn.relu(conv(images[:, ::-1]))
        elif self.form == "shared normalisation":
            bn = norm(name="bn")
            x = bn(x) + bn(layers.Conv(5, (3, 3), name="conv2")(images))
        return nn.relu(x)


@pytest.mark.parametrize(
    ("form", "left"),
    [
        ("biased", 0),
        ("dense", 0),
        ("relu between", 1),
        ("used elsewhere", 1),
        ("two normalisations", 2),
        ("a result, too", 1),
        ("called twice", 1),
        ("shared normalisation", 1),
    ],
)
def test_only_a_kernel_whose_result_nothing_else_reads_takes_it(form, left):
    module = Network(form)
    variables = _variables(module, 8)
    folded = folding.fold(module, variables, 8)
    assert _count(folded, "scale") == left
    _agree(module, variables, folded, 8)
    # The given ones are as they were.
    assert _count(variables, "scale") == max(1, left)
