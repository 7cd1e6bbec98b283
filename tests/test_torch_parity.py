"""The variants 'torch' agree with torchvision's and timm's layers, one by one."""

import functools

import flax.traverse_util
import jax
import numpy as np
import pytest

from fdftnet_jax.models import registry
from fdftnet_jax.ops import pooling

torch = pytest.importorskip("torch", reason="the reference is PyTorch")
import torch_networks  # noqa: E402

NETWORKS = {
    "squeezenet": torch_networks.SqueezeNet,
    "xception": torch_networks.Xception,
}


def _squeezenet_layers():
    """Our name -> PyTorch's, in two halves of the network's module tree."""
    names = {"conv1": "features.0", "conv10": "classifier.1"}
    for fire, index in enumerate((3, 4, 6, 7, 9, 10, 11, 12), 2):
        names[f"fire{fire}/squeeze1x1"] = f"features.{index}.squeeze"
        for kernel in ("1x1", "3x3"):
            names[f"fire{fire}/expand{kernel}"] = f"features.{index}.expand{kernel}"
    return names


def _xception_layers():
    names = {"predictions": "fc"}
    stem = ("block1_conv1", "block1_conv2", "block14_sepconv1", "block14_sepconv2")
    for index, name in enumerate(stem, 1):
        names |= {name: f"conv{index}", f"{name}_bn": f"bn{index}"}
    for block in range(2, 14):
        theirs = f"block{block - 1}"
        if block in (2, 3, 4, 13):
            names[f"block{block}_shortcut"] = f"{theirs}.skip"
            names[f"block{block}_shortcut_bn"] = f"{theirs}.skipbn"
        # A block begins with a ReLU, but the first one.
        first = 0 if block == 2 else 1
        for index in range(2 if block in (2, 3, 4, 13) else 3):
            name, place = f"block{block}_sepconv{index + 1}", first + 3 * index
            names[name] = f"{theirs}.rep.{place}"
            names[f"{name}_bn"] = f"{theirs}.rep.{place + 1}"
    return names


LAYERS = {"squeezenet": _squeezenet_layers(), "xception": _xception_layers()}


def _kernel(weight):
    return (
        weight.numpy().transpose(2, 3, 1, 0) if weight.ndim == 4 else weight.numpy().T
    )


def variables_of(network, names):
    """The weights of a PyTorch network, in our layout."""
    params, stats = {}, {}
    for ours, theirs in names.items():
        layer = network.get_submodule(theirs)
        if isinstance(layer, torch_networks.SeparableConv2d):
            params[f"{ours}/depthwise/kernel"] = _kernel(layer.conv1.weight)
            params[f"{ours}/pointwise/kernel"] = _kernel(layer.pointwise.weight)
            continue
        normalises = isinstance(layer, torch.nn.BatchNorm2d)
        if normalises:
            stats[f"{ours}/mean"] = layer.running_mean.numpy()
            stats[f"{ours}/var"] = layer.running_var.numpy()
        name = "scale" if normalises else "kernel"
        params[f"{ours}/{name}"] = _kernel(layer.weight)
        if layer.bias is not None:
            params[f"{ours}/bias"] = layer.bias.numpy()
    unflatten = functools.partial(flax.traverse_util.unflatten_dict, sep="/")
    return {"params": unflatten(params), "batch_stats": unflatten(stats)}


@functools.cache
def _network(name):
    network = torch_networks.randomise(NETWORKS[name](num_classes=7))
    return network, variables_of(network, LAYERS[name])


def test_the_torch_networks_have_the_published_sizes():
    """Of squeezenet1_1 and xception with 1,000 classes."""
    counts = {
        name: sum(p.numel() for p in network().parameters())
        for name, network in NETWORKS.items()
    }
    assert counts == {"squeezenet": 1_235_496, "xception": 22_855_952}


@pytest.mark.parametrize("size", [64, 224, 299])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_agrees_with_torch(name, size):
    network, variables = _network(name)
    images = np.random.default_rng(1).uniform(-1, 1, (1, size, size, 3))
    images = images.astype(np.float32)

    expected, hooks = {}, []
    for ours, theirs in LAYERS[name].items():
        hooks.append(
            network.get_submodule(theirs).register_forward_hook(
                lambda *call, layer=ours: expected.update({layer: call[2].numpy()})
            )
        )
    _, logits = torch_networks.run(network, images)
    for hook in hooks:
        hook.remove()

    model = registry.get_backbone(name, 7, variant="torch")
    found, state = jax.jit(
        functools.partial(model.apply, train=False, capture_intermediates=True)
    )(variables, images)
    outputs = flax.traverse_util.flatten_dict(state["intermediates"], sep="/")
    for layer, value in {**expected, "": logits}.items():
        ours = found if layer == "" else outputs[f"{layer}/__call__"][0]
        theirs = value.transpose(0, 2, 3, 1) if value.ndim == 4 else value
        assert ours.shape == theirs.shape, layer
        assert np.abs(ours - theirs).max() < 1e-4 * theirs.std(), layer


@pytest.mark.parametrize("stride", [1, 2, 3, 4])
@pytest.mark.parametrize("window", [2, 3])
def test_ceil_mode(window, stride):
    rng = np.random.default_rng(0)
    for height in range(window, 12):
        images = rng.normal(size=(1, height, 9, 2)).astype(np.float32) - 5
        expected = torch.nn.functional.max_pool2d(
            torch.from_numpy(images.transpose(0, 3, 1, 2)),
            window,
            stride,
            ceil_mode=True,
        )
        np.testing.assert_array_equal(
            pooling.max_pool(images, window, stride, "CEIL"),
            expected.numpy().transpose(0, 2, 3, 1),
        )
