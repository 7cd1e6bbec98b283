"""EfficientNet-Lite0 against its tables, and in float64 on the published weights."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fdftnet_jax.models.efficientnet import EfficientNetLite0
from fdftnet_jax.weights import pretrained, published, torch_pickles

# Kernel, stride and whether there is a shortcut, of each block.
BLOCKS = [
    *[(3, 1, False), (3, 2, False), (3, 1, True), (5, 2, False), (5, 1, True)],
    *[(3, 2, False), (3, 1, True), (3, 1, True), (5, 1, False), (5, 1, True)],
    *[(5, 1, True), (5, 2, False), (5, 1, True), (5, 1, True), (5, 1, True)],
    (3, 1, False),
]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return published.path_of(
        "imagenet", "efficientnet_lite0", tmp_path_factory.mktemp("cache")
    )


def test_parameters_and_operations_of_the_release():
    """4.7 million parameters and, of all operations, 407 million at 224x224.

    Nearly all of these are the multiply-adds of convolutions, which are counted here.
    """
    network = EfficientNetLite0(num_classes=1000)
    images = jnp.zeros((1, 224, 224, 3))
    found = jax.eval_shape(
        lambda: network.init_with_output(
            jax.random.key(0), images, train=False, capture_intermediates=True
        )
    )
    _, variables = found
    params = variables["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 4_652_008
    products = 0
    for name, layer in params.items():
        if "kernel" in layer:
            [output] = variables["intermediates"][name]["__call__"]
            products += math.prod(output.shape) * math.prod(layer["kernel"].shape[:-1])
    assert products / 407e6 == pytest.approx(1, abs=0.06)


# Another implementation, of the state dict, in NumPy.


def conv(x, kernel, stride=1):
    """x [c, h, w], kernel [out, in, k, k] or [c, 1, k, k]; padded like TensorFlow."""
    size = kernel.shape[-1]
    pads = []
    for side in x.shape[1:]:
        pad = max((-(-side // stride) - 1) * stride + size - side, 0)
        pads.append((pad // 2, pad - pad // 2))
    x = np.pad(x, [(0, 0), *pads])
    windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), (1, 2))
    windows = windows[:, ::stride, ::stride]
    if kernel.shape[1] == 1 and kernel.shape[0] == len(x):
        return np.einsum("chwij,cij->chw", windows, kernel[:, 0])
    return np.einsum("chwij,ocij->ohw", windows, kernel, optimize=True)


def outputs(state, image):
    """The stem's output, those of all blocks, and the head's: [c, h, w] each."""
    state = {name: array.astype(np.float64) for name, array in state.items()}

    def norm(x, name):
        shape = (-1, 1, 1)
        scale = state[f"{name}.weight"] / np.sqrt(state[f"{name}.running_var"] + 1e-3)
        shifted = x - state[f"{name}.running_mean"].reshape(shape)
        return shifted * scale.reshape(shape) + state[f"{name}.bias"].reshape(shape)

    def relu6(x):
        return np.clip(x, 0, 6)

    x = relu6(norm(conv(image, state["_conv_stem.weight"], 2), "_bn0"))
    yield x
    for i, (_, stride, shortcut) in enumerate(BLOCKS):
        start, name = x, f"_blocks.{i}"
        if i:
            x = conv(x, state[f"{name}._expand_conv.weight"])
            x = relu6(norm(x, f"{name}._bn0"))
        x = conv(x, state[f"{name}._depthwise_conv.weight"], stride)
        x = relu6(norm(x, f"{name}._bn1"))
        x = norm(conv(x, state[f"{name}._project_conv.weight"]), f"{name}._bn2")
        x = x + start if shortcut else x
        yield x
    yield relu6(norm(conv(x, state["_conv_head.weight"]), "_bn1"))


@pytest.mark.parametrize("size", [64, 75])
def test_every_layer_has_the_values_of_another_implementation(path, size):
    params, batch_stats, info = pretrained.load(path, "efficientnet_lite0")
    assert (info.format, info.scaling) == ("torch", "minus_one_one")
    assert info.left_out == ("_fc.weight", "_fc.bias")
    image = np.random.default_rng(0).uniform(-1, 1, (3, size, size))
    found, variables = jax.jit(
        lambda images: EfficientNetLite0().apply(
            {"params": params, "batch_stats": batch_stats},
            images,
            train=False,
            capture_intermediates=True,
        )
    )(jnp.asarray(image.transpose(1, 2, 0)[None], jnp.float32))
    expected = list(outputs(torch_pickles.read(path), image))
    captured = variables["intermediates"]
    norms = [f"block{i}_project_bn" for i in range(len(BLOCKS))]
    for i, (name, right) in enumerate(zip(norms, expected[1:], strict=False)):
        ours = np.asarray(captured[name]["__call__"][0][0], np.float64)
        right = right - expected[i] if BLOCKS[i][2] else right
        right = right.transpose(1, 2, 0)
        assert np.abs(ours - right).max() < 2e-4 * np.abs(right).max(), name
    right = expected[-1].transpose(1, 2, 0)
    assert found.shape == (1, *right.shape) == (1, -(-size // 32), -(-size // 32), 1280)
    np.testing.assert_allclose(found[0], right, atol=2e-3)
