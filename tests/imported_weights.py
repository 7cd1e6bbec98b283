"""Networks whose weights are imported, and what is checked when they are."""

import functools
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import keras_networks
import numpy as np
import pytest
import safetensors.numpy
import weight_files

from fdftnet_jax.errors import UserError
from fdftnet_jax.models import get_backbone
from fdftnet_jax.weights import pretrained

keras = keras_networks.keras
FORMATS = ["keras", "weights.h5", "h5"]
TORCH = "PyTorch is not installed; its weights are tried where it is"
# Our leaf -> Keras's names of the variable.
VARIABLES = {
    "kernel": ("kernel", "depthwise_kernel", "pointwise_kernel"),
    "bias": ("bias", "beta"),
    "scale": ("gamma",),
    "mean": ("moving_mean",),
    "var": ("moving_variance",),
}


def without_initial_values():
    """Keras compiles a program for each shape of them, and they are replaced anyway."""
    return mock.patch.object(
        keras.initializers.GlorotUniform,
        "__call__",
        lambda self, shape, dtype=None: np.zeros(shape, dtype),
    )


@functools.cache
def application(name):
    """With a top, and not the first in its session, so that numbers begin above 0."""
    keras.utils.clear_session(free_memory=False)
    for _ in range(4):
        keras.layers.Conv2D(1, 1)
        keras.layers.BatchNormalization()
    model = keras_networks.BUILDERS[name](weights=None, classes=10)
    rng = np.random.default_rng(0)
    for variable in model.weights:
        shape = variable.shape
        if len(shape) == 4:
            fan_in = np.prod(shape[:2] if shape[-1] == 1 else shape[:3])
            values = rng.standard_normal(shape, np.float32) / np.sqrt(fan_in)
        elif variable.name in ("gamma", "moving_variance"):
            values = rng.uniform(0.5, 1.5, shape)
        else:
            values = rng.normal(0, 0.2, shape)
        variable.assign(values)
    return model


def backbone_layers(name):
    """Our name -> Keras layer."""
    layers = keras_networks.layers(application(name))
    layers.pop("predictions")
    return layers


def own_keras(name, named=None):
    """A Keras model with a top; layers are called `named(our name)`, or numbered."""
    layers = keras.layers
    keras.utils.clear_session(free_memory=False)
    made = {}

    def conv(x, ours, features, size, **options):
        options["name"] = named(ours) if named else None
        made[ours] = layers.Conv2D(features, size, activation="relu", **options)
        return made[ours](x)

    x = inputs = keras.Input((64, 64, 3))
    if name == "squeezenet":
        x = layers.MaxPooling2D(3, 2)(conv(x, "conv1", 64, 3, strides=2))
        widths = ((16, 64), (16, 64), (32, 128), (32, 128))
        widths += ((48, 192), (48, 192), (64, 256), (64, 256))
        for fire, (squeeze, expand) in enumerate(widths, 2):
            x = conv(x, f"fire{fire}/squeeze1x1", squeeze, 1)
            # Created in another order than usual.
            right = conv(x, f"fire{fire}/expand3x3", expand, 3, padding="same")
            left = conv(x, f"fire{fire}/expand1x1", expand, 1)
            x = layers.concatenate([left, right])
            if fire in (3, 5):
                x = layers.MaxPooling2D(3, 2)(x)
        output = x
        x = layers.Conv2D(2, 1, name=named("conv10") if named else None)(x)
        x = layers.GlobalAveragePooling2D()(x)
    else:
        for ours, size, _, width in weight_files.SHALLOWNET:
            x = conv(x, ours, width, size)
            if ours in ("conv3", "conv6"):
                x = layers.MaxPooling2D(2)(x)
        output = x
        x = layers.Dense(8)(layers.Flatten()(x))
        x = layers.Dense(2)(layers.BatchNormalization()(x))
    model = keras.Model(inputs, layers.Activation("softmax")(x))
    rng = np.random.default_rng(3)
    for layer in made.values():
        shape = layer.kernel.shape
        layer.kernel.assign(rng.normal(0, np.sqrt(2 / np.prod(shape[:3])), shape))
        layer.bias.assign(rng.normal(0, 0.2, shape[-1:]))
    return model, made, keras.Model(inputs, output)


def write_torch(path, state):
    safetensors.numpy.save_file(state, path)
    return path


def leaves(params, batch_stats):
    """{'layer/leaf': array}, leaf as in Keras."""
    found = {}
    for tree in (params, batch_stats):
        for path, array in jax.tree_util.tree_leaves_with_path(tree):
            found["/".join(key.key for key in path)] = array
    return found


def assert_holds(loaded, layers):
    """The trees are exactly the Keras layers, {name: layer or {variable: array}}."""
    found = leaves(*loaded[:2])
    for name, layer in layers.items():
        if not isinstance(layer, dict):
            layer = {v.path.rpartition("/")[2]: np.asarray(v) for v in layer.weights}
        for variable, array in layer.items():
            (leaf,) = (ours for ours, keras in VARIABLES.items() if variable in keras)
            inner = variable.removesuffix("_kernel") if "_kernel" in variable else ""
            path = "/".join(part for part in (name, inner, leaf) if part)
            if inner == "depthwise":
                array = array.transpose(0, 1, 3, 2)
            ours = found.pop(path)
            assert ours.dtype == np.float32, path
            np.testing.assert_array_equal(ours, array, path)
    assert not found


def assert_fits(loaded, backbone):
    params, batch_stats, info = loaded
    module = get_backbone(backbone, None, variant=info.variant)
    init = functools.partial(module.init, train=False)
    expected = jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    expected = {"batch_stats": {}} | expected
    chex.assert_trees_all_equal_shapes_and_dtypes(
        {"params": params, "batch_stats": batch_stats}, expected
    )


def refused(path, backbone):
    """The message, which is one line."""
    with pytest.raises(UserError) as error:
        pretrained.load(path, backbone)
    assert "\n" not in str(error.value)
    return str(error.value)
