"""Weights of Keras and PyTorch become ours, tensor by tensor, and compute the same."""

import functools
import hashlib
import json

import h5py
import jax
import numpy as np
import pytest
import weight_files
from imported_weights import (
    FORMATS,
    TORCH,
    application,
    assert_fits,
    assert_holds,
    backbone_layers,
    keras,
    own_keras,
    refused,
    without_initial_values,
    write_torch,
)
from weight_files import save, strip_names

from fdftnet_jax.models import get_backbone
from fdftnet_jax.weights import pretrained, torch_files


def features(loaded, backbone, images):
    params, batch_stats, info = loaded
    module = get_backbone(backbone, None, variant=info.variant)
    variables = {"params": params, "batch_stats": batch_stats}
    return jax.jit(functools.partial(module.apply, train=False))(variables, images)


def images(size, seed=1):
    values = np.random.default_rng(seed).uniform(-1, 1, (1, size, size, 3))
    return values.astype(np.float32)


def assert_computes(found, expected):
    expected = np.asarray(expected)
    assert found.shape == expected.shape
    # Both are of the order of 1 to 20.
    assert np.abs(found - expected).max() < 1e-4


@pytest.fixture(scope="module", autouse=True)
def no_initial_values():
    with without_initial_values():
        yield


# Keras Applications


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Path of a network of Keras Applications, by (name, format)."""

    @functools.cache
    def path(name, suffix):
        folder = tmp_path_factory.mktemp("saved")
        return save(application(name), folder / f"{name}.{suffix}")

    return path


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("name", ["resnet50v2", "xception"])
def test_every_tensor_of_keras_applications(saved, name, suffix):
    path = saved(name, suffix)
    loaded = pretrained.load(path, name)
    assert_fits(loaded, name)
    assert_holds(loaded, backbone_layers(name))
    info = loaded[2]
    assert info == pretrained.WeightsInfo(
        path=str(path),
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        format=suffix,
        variant="keras",
        scaling="minus_one_one",
        left_out=("predictions/kernel", "predictions/bias"),
    )


def test_a_later_model_of_a_session_is_the_one_that_is_tested():
    """Or the numbers of Xception's shortcuts would be the usual ones."""
    names = {layer.name for layer in application("xception").layers}
    assert {"conv2d_4", "conv2d_7", "batch_normalization_7"} < names
    assert "conv2d" not in names


@pytest.mark.parametrize("name", ["resnet50v2", "xception"])
def test_early_files_without_names(saved, tmp_path, name):
    """All layers are matched by order and shape, among them 28 BNs of one shape."""
    path = tmp_path / "old.weights.h5"
    strip_names(saved(name, "weights.h5"), path)
    loaded = pretrained.load(path, name)
    assert_holds(loaded, backbone_layers(name))
    assert loaded[2].left_out == ("/layers/dense/kernel", "/layers/dense/bias")


@pytest.mark.parametrize("in_keras_1", [True, False])
def test_weights_alone_as_keras_applications_ships_them(tmp_path, in_keras_1):
    """Of Xception they were written by Keras 1, and every layer is numbered."""
    old = {
        **{"kernel": "W", "bias": "b"},
        **{"moving_mean": "running_mean", "moving_variance": "running_std"},
    }
    kinds = {
        "Conv2D": "convolution2d",
        "BatchNormalization": "batchnormalization",
        "SeparableConv2D": "separableconvolution2d",
        "Dense": "dense",
    }
    layers = {}
    # In order of the graph, with other numbers than that.
    weighted = [layer for layer in application("xception").layers if layer.weights]
    for number, layer in zip(range(len(weighted), 0, -1), weighted, strict=True):
        tensors = {v.path.rpartition("/")[2]: np.asarray(v) for v in layer.weights}
        name = layer.name
        if in_keras_1:
            name = f"{kinds[type(layer).__name__]}_{number}"
            tensors = {old.get(key, key): value for key, value in tensors.items()}
        layers[name] = tensors
    weight = "{layer}_{variable}:0" if in_keras_1 else "{layer}_1/{variable}:0"
    weight_files.write_h5(tmp_path / "x.h5", layers, weight=weight)
    loaded = pretrained.load(tmp_path / "x.h5", "xception")
    assert_holds(loaded, backbone_layers("xception"))
    assert len(loaded[2].left_out) == 2


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_network_inside_a_model_with_a_top(tmp_path, suffix):
    """Its own top has layers of the backbone's classes; the early blocks are frozen."""
    layers = keras.layers
    inner = application("xception")
    inner = keras.Model(inner.inputs, inner.get_layer("block14_sepconv2_act").output)
    for layer in inner.layers[:60]:
        layer.trainable = False
    top = [
        *[layers.Conv2D(8, 1), layers.BatchNormalization(), layers.Dropout(0.5)],
        *[layers.GlobalAveragePooling2D(), layers.Dense(2, name="real_or_fake")],
    ]
    model = keras.Sequential([keras.Input((299, 299, 3)), inner, *top])
    path = save(model, tmp_path / f"x.{suffix}")
    inner.trainable = True
    loaded = pretrained.load(path, "xception")
    assert_holds(loaded, backbone_layers("xception"))
    assert len(loaded[2].left_out) == 2 + 4 + 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "suffix", "size"), [("resnet50v2", "h5", 224), ("xception", "keras", 299)]
)
def test_loaded_networks_compute_what_keras_does(saved, name, suffix, size):
    model = application(name)
    last = {"resnet50v2": "post_relu", "xception": "block14_sepconv2_act"}[name]
    reference = keras.Model(model.inputs, model.get_layer(last).output)
    batch = images(224 if name == "resnet50v2" else 299)
    assert batch.shape[1] == size
    loaded = pretrained.load(saved(name, suffix), name)
    assert_computes(features(loaded, name, batch), reference.predict_on_batch(batch))


# SqueezeNet and ShallowNetV3, as they are written with Keras


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("squeezenet", None),
        ("squeezenet", lambda name: name.replace("/", "_")),
        ("shallownetv3", None),
        ("shallownetv3", str),
    ],
)
def test_networks_that_keras_applications_has_not(tmp_path, name, named, suffix):
    """Without names, and with ours."""
    model, layers, reference = own_keras(name, named)
    loaded = pretrained.load(save(model, tmp_path / f"x.{suffix}"), name)
    assert_fits(loaded, name)
    assert_holds(loaded, layers)
    # What the released code trained on.
    assert loaded[2].scaling == "zero_one"
    assert len(loaded[2].left_out) == (2 if name == "squeezenet" else 8)
    if suffix == "h5" and named is None:
        batch = images(64)
        expected = reference.predict_on_batch(batch)
        assert_computes(features(loaded, name, batch), expected)


def test_inside_a_model_and_partly_frozen(tmp_path):
    """The legacy format then swaps two layers of one shape; the configuration helps."""
    model, layers, _ = own_keras("shallownetv3")
    layers["conv2"].trainable = False
    outer = keras.Sequential([keras.Input((64, 64, 3)), model, keras.layers.Dense(2)])
    path = save(outer, tmp_path / "x.h5")
    assert_holds(pretrained.load(path, "shallownetv3"), layers)
    with h5py.File(path, "r+") as file:
        del file.attrs["model_config"]
    assert "missing: conv2/bias (32,), conv2/kernel" in refused(path, "shallownetv3")


@pytest.fixture(scope="module")
def squeezenet():
    return weight_files.convolutions(weight_files.SQUEEZENET)


def test_squeezenet_as_the_released_code_saves_it(tmp_path, squeezenet):
    """A whole model of Keras 2, names with '/', a file without a suffix."""
    layers = {**squeezenet, **weight_files.conv10(2)}
    model = json.dumps({"class_name": "Model", "config": {"name": "squeezenet"}})
    weight_files.write_h5(tmp_path / "weights", layers, model=model)
    loaded = pretrained.load(tmp_path / "weights", "squeezenet")
    assert_holds(loaded, squeezenet)
    assert loaded[2].left_out == ("conv10/kernel", "conv10/bias")
    assert (loaded[2].format, loaded[2].variant) == ("h5", "keras")


def test_the_order_of_named_layers_does_not_matter(tmp_path, squeezenet):
    layers = list({**squeezenet, **weight_files.conv10()}.items())
    np.random.default_rng(5).shuffle(layers)
    assert layers[-1][0] != "conv10"
    weight_files.write_h5(tmp_path / "x.h5", dict(layers))
    assert_holds(pretrained.load(tmp_path / "x.h5", "squeezenet"), squeezenet)


def test_of_numbered_layers_the_order_in_the_file_counts(tmp_path):
    """Not their numbers: ShallowNetV3 has twice two layers of one shape."""
    layers = weight_files.convolutions(weight_files.SHALLOWNET)
    numbers = [12, 3, 2, 9, 8, 1, 30, 4]
    numbered = {
        f"conv2d_{number}": tensors
        for number, tensors in zip(numbers, layers.values(), strict=True)
    }
    weight_files.write_h5(tmp_path / "x.h5", numbered)
    assert_holds(pretrained.load(tmp_path / "x.h5", "shallownetv3"), layers)


# PyTorch


@pytest.mark.parametrize("prefix", ["", "model.", "module.backbone."])
def test_every_tensor_of_squeezenet1_1(tmp_path, squeezenet, prefix):
    state = weight_files.torch_names({**squeezenet, **weight_files.conv10()})
    state = {prefix + name: array for name, array in reversed(state.items())}
    path = write_torch(tmp_path / "x.safetensors", state)
    loaded = pretrained.load(path, "squeezenet")
    assert_fits(loaded, "squeezenet")
    assert_holds(loaded, squeezenet)
    info = loaded[2]
    assert (info.format, info.variant) == ("safetensors", "torch")
    assert info.scaling == "imagenet"
    assert sorted(info.left_out) == [
        f"{prefix}classifier.1.bias",
        f"{prefix}classifier.1.weight",
    ]


def test_without_the_top_features_is_no_prefix(tmp_path, squeezenet):
    """All names begin with it."""
    state = weight_files.torch_names(squeezenet)
    path = write_torch(tmp_path / "x.safetensors", state)
    loaded = pretrained.load(path, "squeezenet")
    assert_holds(loaded, squeezenet)
    assert loaded[2].left_out == ()


def test_names_of_legacy_xception():
    """Against a few that were written down from timm's source."""
    names = torch_files.LAYERS["xception"]
    assert len(names) == 2 * (2 + 4 + 34)
    for ours, theirs in {
        "block1_conv1": "conv1",
        "block1_conv2_bn": "bn2",
        "block2_sepconv1": "block1.rep.0",
        "block2_sepconv2_bn": "block1.rep.4",
        "block2_shortcut": "block1.skip",
        "block3_sepconv1": "block2.rep.1",
        "block4_shortcut_bn": "block3.skipbn",
        "block5_sepconv3": "block4.rep.7",
        "block12_sepconv3_bn": "block11.rep.8",
        "block13_sepconv2": "block12.rep.4",
        "block14_sepconv2": "conv4",
        "block14_sepconv2_bn": "bn4",
    }.items():
        assert names[ours] == theirs


@functools.cache
def torch_network(name):
    import torch_networks

    network = {
        "squeezenet": torch_networks.SqueezeNet,
        "xception": torch_networks.Xception,
    }[name](num_classes=10)
    return torch_networks.randomise(network)


@pytest.fixture(scope="module")
def state_dict(tmp_path_factory):
    """Path of a PyTorch network's weights, as PyTorch itself writes them."""

    @functools.cache
    def path(name):
        torch = pytest.importorskip("safetensors.torch", reason=TORCH)
        file = tmp_path_factory.mktemp("torch") / f"{name}.safetensors"
        torch.save_file(torch_network(name).state_dict(), file)
        return file

    return path


@pytest.mark.parametrize(
    ("name", "size"),
    [*[("squeezenet", size) for size in (64, 224, 299)], ("xception", 64)],
)
def test_loaded_networks_compute_what_pytorch_does(state_dict, name, size):
    pytest.importorskip("torch", reason=TORCH)
    import torch_networks

    path = state_dict(name)
    loaded = pretrained.load(path, name)
    assert_fits(loaded, name)
    batch = images(size)
    expected, _ = torch_networks.run(torch_network(name), batch)
    assert_computes(features(loaded, name, batch), expected)
    if name == "xception":
        assert loaded[2].scaling == "minus_one_one"
        assert sorted(loaded[2].left_out) == ["fc.bias", "fc.weight"]
