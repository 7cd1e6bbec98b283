"""The layers that are read from what Keras writes now, and from what it once wrote."""

import io
import json
import shutil
import zipfile

import h5py
import keras_networks
import numpy as np
import pytest
import weight_files
from weight_files import save, strip_names

from fdftnet_jax.errors import UserError
from fdftnet_jax.weights import keras_files

keras = keras_networks.keras
FORMATS = ["keras", "weights.h5", "h5"]


def read(path):
    """[(name, {variable: array})], whether they are ordered, format, model."""
    with keras_files.open_file(path) as file:
        layers = [
            (layer.name, {name: tensor[()] for name, tensor in layer.tensors.items()})
            for layer in file.layers
        ]
        return layers, file.ordered, file.format, file.model


@pytest.fixture(scope="module")
def model():
    """Layers of all kinds, two of one shape, a shortcut, dropout, an optimiser."""
    layers = keras.layers
    keras.utils.clear_session(free_memory=False)
    # Numbered in an order that is not that of the graph.
    third, second, first = (layers.Conv2D(3, 1, padding="same") for _ in range(3))
    x = inputs = keras.Input((8, 8, 3), name="images")
    x = first(x)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.Dropout(0.5)(x)
    x = layers.add([third(second(x)), layers.Conv2D(3, 3, padding="same")(x)])
    x = layers.SeparableConv2D(4, 3, use_bias=False, name="separable")(x)
    x = layers.Flatten()(x)
    model = keras.Model(inputs, layers.Dense(2)(x), name="sample")
    rng = np.random.default_rng(0)
    for variable in model.weights:
        variable.assign(rng.uniform(0.5, 1, variable.shape))
    model.compile("adam", "mse")
    return model


def expected(model):
    """The same as `read` from the model itself, by Keras 3's names of variables."""
    return [
        (layer.name, {v.path.rpartition("/")[2]: np.asarray(v) for v in layer.weights})
        for layer in model.layers
        if layer.weights
    ]


def assert_same(found, wanted):
    assert [name for name, _ in found] == [name for name, _ in wanted]
    for (name, tensors), (_, arrays) in zip(found, wanted, strict=True):
        assert tensors.keys() == arrays.keys(), name
        for variable, array in arrays.items():
            np.testing.assert_array_equal(tensors[variable], array, name)


def assert_same_within_a_class(found, wanted):
    assert_same(sorted(found), sorted(wanted))
    for kind in ("conv2d", "dense"):
        order = [name for name, _ in wanted if name.startswith(kind)]
        assert [name for name, _ in found if name.startswith(kind)] == order


@pytest.mark.parametrize("suffix", ["keras", "h5"])
def test_all_layers_in_order(model, tmp_path, suffix):
    layers, ordered, file_format, name = read(save(model, tmp_path / f"x.{suffix}"))
    assert_same(layers, expected(model))
    assert (ordered, file_format, name) == (True, suffix, "sample")


def test_weights_h5_is_in_order_within_a_class(model, tmp_path):
    path = save(model, tmp_path / "x.weights.h5")
    layers, ordered, file_format, name = read(path)
    assert (ordered, file_format, name) == (False, "weights.h5", "sample")
    assert_same_within_a_class(layers, expected(model))


def test_names_of_early_archives_are_those_of_the_configuration(model, tmp_path):
    path = save(model, tmp_path / "x.keras")
    with zipfile.ZipFile(path) as archive:
        (tmp_path / "with").write_bytes(archive.read("model.weights.h5"))
        config = archive.read("config.json")
    strip_names(tmp_path / "with", tmp_path / "without")
    with zipfile.ZipFile(tmp_path / "old.keras", "w") as archive:
        archive.writestr("config.json", config)
        archive.write(tmp_path / "without", "model.weights.h5")
    layers, ordered, *_ = read(tmp_path / "old.keras")
    assert ordered
    assert_same(layers, expected(model))


def test_a_configuration_of_another_model_gives_no_names(model, tmp_path):
    """It lists one convolution more: which is which, only the weights can tell."""
    path = save(model, tmp_path / "x.keras")
    with zipfile.ZipFile(path) as archive:
        config = json.loads(archive.read("config.json"))
        weights = archive.read("model.weights.h5")
    more = {"class_name": "Conv2D", "config": {"name": "another"}}
    config["config"]["layers"].insert(0, more)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", json.dumps(config))
        archive.writestr("model.weights.h5", weights)
    layers, ordered, *_ = read(path)
    assert not ordered
    assert_same_within_a_class(layers, expected(model))


def test_early_weights_files_have_no_names(model, tmp_path):
    path = save(model, tmp_path / "x.weights.h5")
    strip_names(path, tmp_path / "old.weights.h5")
    layers, ordered, _, name = read(tmp_path / "old.weights.h5")
    assert (ordered, name) == (False, "")
    assert {name for name, _ in layers} == {""}
    named, *_ = read(path)
    assert_same(layers, [("", tensors) for _, tensors in named])


def test_the_groups_of_tensorflow_2_13(model, tmp_path):
    """They had another name, and gaps in their numbers."""
    path = save(model, tmp_path / "x.weights.h5")
    with h5py.File(path, "r+") as file:
        file.move("layers", "_layer_checkpoint_dependencies")
        groups = file["_layer_checkpoint_dependencies"]
        groups.move("conv2d_3", "conv2d_11")
    layers, *_ = read(path)
    assert_same_within_a_class(layers, expected(model))


@pytest.mark.parametrize("trainable", [True, False])
@pytest.mark.parametrize("suffix", FORMATS)
def test_layers_of_models_in_models(model, tmp_path, suffix, trainable):
    """Two deep, and partly frozen, which the legacy format writes in another order."""
    head = keras.layers.Dense(5, name="head")
    middle = keras.Sequential([keras.Input((8, 8, 3)), model, head], name="middle")
    last = keras.layers.Dense(2, name="last")
    outer = keras.Sequential([keras.Input((8, 8, 3)), middle, last], name="outer")
    model.trainable = trainable
    layers, ordered, _, name = read(save(outer, tmp_path / f"x.{suffix}"))
    model.trainable = True
    assert name == "outer"
    layers = [(name.rpartition("/")[2], tensors) for name, tensors in layers]
    wanted = [*expected(model), *expected(middle)[1:], *expected(outer)[1:]]
    assert ordered == (suffix != "weights.h5")
    if ordered:
        assert_same(layers, wanted)
    else:
        assert_same_within_a_class(layers, wanted)


def test_without_a_configuration_the_order_in_an_inner_model_is_not_known(
    model, tmp_path
):
    outer = keras.Sequential([keras.Input((8, 8, 3)), model, keras.layers.Dense(3)])
    path = save(outer, tmp_path / "x.h5")
    with h5py.File(path, "r+") as file:
        del file.attrs["model_config"]
    with keras_files.open_file(path) as file:
        assert not file.ordered
        assert [layer.in_order for layer in file.layers] == [False] * 7 + [True]


def test_weights_alone_of_keras_2(tmp_path):
    """As keras.applications ships them; graphs added a number to a layer's name."""
    layers = weight_files.convolutions(weight_files.SHALLOWNET)
    weight_files.write_h5(tmp_path / "x.h5", layers, weight="{layer}_7/{variable}:0")
    found, ordered, file_format, name = read(tmp_path / "x.h5")
    assert_same(found, list(layers.items()))
    assert (ordered, file_format, name) == (True, "h5", "")


def test_names_of_keras_1(tmp_path):
    norm = ("gamma", "beta", "running_mean", "running_std")
    layers = {
        "convolution2d_1": {"W": np.ones((1, 1, 3, 4)), "b": np.ones(4)},
        "batchnormalization_1": {n: np.full(4, i) for i, n in enumerate(norm)},
        "separableconvolution2d_1": {
            "depthwise_kernel": np.ones((3, 3, 4, 1)),
            "pointwise_kernel": np.ones((1, 1, 4, 2)),
        },
    }
    weight_files.write_h5(tmp_path / "x.h5", layers, weight="{layer}_{variable}:0")
    found, *_ = read(tmp_path / "x.h5")
    assert [name for name, _ in found] == list(layers)
    (_, conv), (_, norm), (_, separable) = found
    assert list(conv) == ["kernel", "bias"]
    assert {name: array[0] for name, array in norm.items()} == {
        **{"gamma": 0, "beta": 1, "moving_mean": 2, "moving_variance": 3}
    }
    assert list(separable) == ["depthwise_kernel", "pointwise_kernel"]


def test_a_sequential_model_of_keras_2_0(tmp_path):
    """Its configuration is a list, not a dictionary."""
    layers = weight_files.convolutions(weight_files.SHALLOWNET[:1])
    conv1 = {"class_name": "Conv2D", "config": {"name": "conv1"}}
    config = {"class_name": "Sequential", "config": [conv1]}
    weight_files.write_h5(tmp_path / "x.h5", layers, model=json.dumps(config))
    found, _, _, name = read(tmp_path / "x.h5")
    assert_same(found, list(layers.items()))
    assert name == ""


def test_attributes_that_are_split(tmp_path):
    """HDF5 has a limit of 64 kB; Keras then numbers the parts."""
    layers = weight_files.convolutions(weight_files.SHALLOWNET)
    weight_files.write_h5(tmp_path / "x.h5", layers)
    with h5py.File(tmp_path / "x.h5", "r+") as file:
        names = list(file.attrs.pop("layer_names"))
        file.attrs["layer_names0"], file.attrs["layer_names1"] = names[:5], names[5:]
    found, *_ = read(tmp_path / "x.h5")
    assert_same(found, list(layers.items()))


def test_a_normalisation_without_scale_keeps_numbers(tmp_path):
    """Which of the four is absent cannot be known."""
    norm = keras.layers.BatchNormalization(scale=False)
    path = save(keras.Sequential([keras.Input((3,)), norm]), tmp_path / "x.weights.h5")
    ((_, tensors),), *_ = read(path)
    assert list(tensors) == ["0", "1", "2"]


def test_nothing_in_a_configuration_is_run(model, tmp_path):
    path = save(model, tmp_path / "x.keras")
    with zipfile.ZipFile(path) as archive:
        config = json.loads(archive.read("config.json"))
        weights = archive.read("model.weights.h5")
    code = {"class_name": "__lambda__", "config": "no code at all"}
    layer = {"class_name": "Lambda", "config": {"name": "x", "function": code}}
    config["config"]["layers"].insert(1, {"module": "no_such_module", **layer})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", json.dumps(config))
        archive.writestr("model.weights.h5", weights)
    layers, *_ = read(path)
    assert_same(layers, expected(model))


def test_a_model_that_is_not_made_of_a_list_of_layers(model, tmp_path):
    """Its configuration lists none: names and order are those of the weights alone."""
    path = save(model, tmp_path / "x.keras")
    with zipfile.ZipFile(path) as archive:
        weights = archive.read("model.weights.h5")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", json.dumps({"config": {"name": "own"}}))
        archive.writestr("model.weights.h5", weights)
    layers, ordered, _, name = read(path)
    assert (ordered, name) == (False, "own")
    assert_same(sorted(layers), sorted(expected(model)))


def _external_link(file, secret):
    del file["conv1"]
    file["conv1"] = h5py.ExternalLink(str(secret), "/")


def _external_data(file, secret):
    del file["conv1/conv1/bias:0"]
    file["conv1/conv1"].create_dataset(
        "bias:0", (32,), "f4", external=[(str(secret), 0, 128)]
    )


def _virtual_data(file, secret):
    del file["conv1/conv1/bias:0"]
    layout = h5py.VirtualLayout((32,), "f4")
    layout[:] = h5py.VirtualSource(str(secret), "data", (32,))
    file["conv1/conv1"].create_virtual_dataset("bias:0", layout)


def _names_without_groups(file, _):
    del file["conv2"]


def _a_group_for_a_weight(file, _):
    file["conv1"].attrs["weight_names"] = ["conv1"]


def _names_that_are_numbers(file, _):
    file.attrs["layer_names"] = 3


def _loop(file, _):
    """A group that is its own member, where Keras 3 has its layers."""
    del file.attrs["layer_names"]
    file["layers/conv2d/again"] = file.create_group("layers/conv2d")


@pytest.mark.parametrize(
    "damage",
    [
        *[_external_link, _external_data, _virtual_data],
        *[_names_without_groups, _a_group_for_a_weight, _names_that_are_numbers, _loop],
    ],
)
def test_links_out_of_a_file_and_false_lists_are_refused(tmp_path, damage):
    layers = weight_files.convolutions(weight_files.SHALLOWNET)
    weight_files.write_h5(tmp_path / "x.h5", layers)
    shutil.copy(tmp_path / "x.h5", tmp_path / "secret.h5")
    with h5py.File(tmp_path / "x.h5", "r+") as file:
        damage(file, tmp_path / "secret.h5")
    with pytest.raises(UserError, match=r"x\.h5 .*damaged") as error:
        read(tmp_path / "x.h5")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("groups", [[], ["data"], ["layers/conv2d/vars"]])
def test_other_hdf5_files_are_refused(tmp_path, groups):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        for group in groups:
            file.create_group(group)
    with pytest.raises(UserError, match="no layers as Keras writes them"):
        read(tmp_path / "x.h5")


@pytest.mark.parametrize("config", [b"{", b"[]", b'{"config": 3}', None])
def test_archives_with_a_damaged_configuration_are_refused(model, tmp_path, config):
    weights = io.BytesIO()
    with h5py.File(weights, "w") as file:
        file["layers/dense/vars/0"] = np.ones((2, 2))
    with zipfile.ZipFile(tmp_path / "x.keras", "w") as archive:
        if config is not None:
            archive.writestr("config.json", config)
        archive.writestr("model.weights.h5", weights.getvalue())
    with pytest.raises(UserError, match=r"x\.keras .*damaged"):
        read(tmp_path / "x.keras")
