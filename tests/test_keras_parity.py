"""ResNet50V2 and Xception agree with Keras Applications, layer by layer."""

import functools

import jax
import keras_networks
import numpy as np
import pytest

from fdftnet_jax.models import registry

# Kind of Keras weight -> (collection, name) of ours.
LEAVES = {
    "kernel": ("params", "kernel"),
    "bias": ("params", "bias"),
    "gamma": ("params", "scale"),
    "beta": ("params", "bias"),
    "moving_mean": ("batch_stats", "mean"),
    "moving_variance": ("batch_stats", "var"),
}


def variables_of(model):
    """The weights of a Keras network, in our layout."""
    found = {"params": {}, "batch_stats": {}}
    for name, layer in keras_networks.layers(model).items():
        for weight in layer.weights:
            value = np.asarray(weight)
            if weight.path.endswith("pointwise_kernel"):
                found["params"][name]["pointwise"] = {"kernel": value}
            elif value.shape[-1] == 1 and value.ndim == 4:
                kernel = np.swapaxes(value, 2, 3)
                found["params"][name] = {"depthwise": {"kernel": kernel}}
            else:
                collection, leaf = LEAVES[weight.name]
                found[collection].setdefault(name, {})[leaf] = value
    return found


@functools.cache
def _networks(name):
    """The outputs of every Keras layer with weights, and those weights for ours."""
    model = keras_networks.build(name)
    outputs = {n: layer.output for n, layer in keras_networks.layers(model).items()}
    every_layer = keras_networks.keras.Model(
        model.inputs, {**outputs, "features": model.output}
    )
    variables = variables_of(model)
    rng = np.random.default_rng(2)
    variables["params"]["predictions"] = {
        "kernel": rng.normal(0, 0.02, (2048, 7)).astype(np.float32),
        "bias": rng.normal(0, 1, 7).astype(np.float32),
    }
    return every_layer, variables


SIZES = [64, 224, pytest.param(299, marks=pytest.mark.long)]


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", sorted(keras_networks.BUILDERS))
def test_every_layer_agrees_with_keras(name, size):
    """The top, which Keras makes for one size only, against NumPy."""
    reference, variables = _networks(name)
    images = np.random.default_rng(1).uniform(-1, 1, (1, size, size, 3))
    images = images.astype(np.float32)
    expected = {
        layer: np.asarray(value)
        for layer, value in reference([images], training=False).items()
    }
    top = variables["params"]["predictions"]
    features = expected.pop("features").astype(np.float64)
    expected["predictions"] = features.mean((1, 2)) @ top["kernel"] + top["bias"]

    model = registry.get_backbone(name, 7)
    logits, state = jax.jit(
        functools.partial(model.apply, train=False, capture_intermediates=True)
    )(variables, images)
    maps = state["intermediates"]
    assert maps.keys() == {*expected, "__call__"}
    for layer, theirs in expected.items():
        ours = maps[layer]["__call__"][0]
        assert ours.shape == theirs.shape, layer
        assert np.abs(ours - theirs).max() < 1e-4 * theirs.std(), layer
    np.testing.assert_array_equal(logits, maps["predictions"]["__call__"][0])
