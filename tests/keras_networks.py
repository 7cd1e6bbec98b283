"""Keras Applications' networks with random weights, on Keras's JAX backend."""

import os
import re
import tempfile

# Read when Keras is first imported; it writes a settings file in its home.
os.environ["KERAS_BACKEND"] = "jax"
os.environ.setdefault("KERAS_HOME", tempfile.mkdtemp(prefix="keras-"))

import keras
import numpy as np

BUILDERS = {
    "resnet50v2": keras.applications.ResNet50V2,
    "xception": keras.applications.Xception,
}
# Blocks of Xception's shortcuts, in the order in which Keras makes them.
_SHORTCUTS = (2, 3, 4, 13)


def build(name, seed=0, **options):
    """The network without top, with random weights that keep activations near 1.

    The batch statistics are no identity.
    """
    model = BUILDERS[name](include_top=False, weights=None, **options)
    rng = np.random.default_rng(seed)
    for variable in model.variables:
        shape = variable.shape
        if len(shape) == 4:
            fan_in = np.prod(shape[:2] if shape[-1] == 1 else shape[:3])
            values = rng.normal(0, np.sqrt(1 / fan_in), shape)
        elif variable.name in ("gamma", "moving_variance"):
            values = rng.uniform(0.5, 1.5, shape)
        else:
            values = rng.normal(0, 0.2, shape)
        variable.assign(values.astype(np.float32))
    return model


def layers(model):
    """Our name -> Keras layer, for all layers with weights, in order of creation."""
    found, unnamed = {}, {"conv2d": [], "batch_normalization": []}
    for layer in model.layers:
        kind = re.sub(r"_\d+$", "", layer.name)
        if kind in unnamed:
            suffix = "" if kind == "conv2d" else "_bn"
            block = _SHORTCUTS[len(unnamed[kind])]
            found[f"block{block}_shortcut{suffix}"] = layer
            unnamed[kind].append(layer)
        elif layer.weights:
            found[layer.name] = layer
    return found
