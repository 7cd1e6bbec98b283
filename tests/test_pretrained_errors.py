"""Weights files that cannot be read or do not fit are refused in one line."""

import pickle
import zipfile

import h5py
import jax.numpy as jnp
import numpy as np
import pytest
import torch_saved
import weight_files
from imported_weights import (
    application,
    assert_holds,
    keras,
    own_keras,
    refused,
    without_initial_values,
    write_torch,
)
from weight_files import save

from fdftnet_jax.errors import UserError
from fdftnet_jax.weights import pretrained


@pytest.fixture(scope="module", autouse=True)
def no_initial_values():
    with without_initial_values():
        yield


@pytest.fixture(scope="module")
def squeezenet():
    return weight_files.convolutions(weight_files.SQUEEZENET)


# Numbers


@pytest.mark.parametrize("dtype", [np.float16, np.float64, jnp.bfloat16])
@pytest.mark.parametrize("suffix", ["h5", "safetensors"])
def test_other_floating_point_becomes_float32(tmp_path, squeezenet, suffix, dtype):
    layers = {
        name: {key: value.astype(dtype) for key, value in tensors.items()}
        for name, tensors in squeezenet.items()
    }
    path = tmp_path / f"x.{suffix}"
    if suffix == "h5":
        # NumPy's bfloat16 becomes two bytes without meaning, as when Keras writes it.
        weight_files.write_h5(path, layers)
    else:
        write_torch(path, weight_files.torch_names(layers))
    wanted = {
        name: {key: value.astype(np.float32) for key, value in tensors.items()}
        for name, tensors in layers.items()
    }
    assert_holds(pretrained.load(path, "squeezenet"), wanted)


@pytest.mark.parametrize("suffix", ["h5", "safetensors"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: (100 * a).astype(np.int8), "int8"),
        (lambda a: np.where(a == a.max(), np.nan, a), "NaN"),
        (lambda a: np.full(a.shape, 1e300), "infinite"),
    ],
)
def test_numbers_that_are_no_weights(tmp_path, squeezenet, suffix, change, message):
    conv1 = squeezenet["conv1"]
    conv1 = {**conv1, "kernel": change(conv1["kernel"].astype(np.float64))}
    layers = {**squeezenet, "conv1": conv1}
    path = tmp_path / f"x.{suffix}"
    if suffix == "h5":
        weight_files.write_h5(path, layers)
    else:
        write_torch(path, weight_files.torch_names(layers))
    with pytest.raises(UserError, match=rf"conv1 in .*x\.{suffix}.*{message}"):
        pretrained.load(path, "squeezenet")


# Files that do not fit


def test_all_that_is_wrong_with_a_keras_file_is_listed(tmp_path, squeezenet):
    layers = {**squeezenet, "fire3/attention": {"kernel": np.ones((1, 1, 2, 2))}}
    layers["conv1"] = {**layers["conv1"], "kernel": np.ones((7, 7, 3, 64))}
    for fire in (2, 4, 5, 6):
        del layers[f"fire{fire}/squeeze1x1"]
    layers["fire9/expand3x3"] = {**layers["fire9/expand3x3"], "gamma": np.ones(256)}
    del layers["fire9/expand1x1"]["bias"]
    try:
        layers = dict(sorted(layers.items()))
        weight_files.write_h5(tmp_path / "x.h5", layers)
    finally:
        layers["fire9/expand1x1"]["bias"] = np.zeros(256, np.float32)
    message = refused(tmp_path / "x.h5", "squeezenet")
    assert "does not fit squeezenet: 9 missing: fire2/squeeze1x1/" in message
    assert "2 surplus: " in message
    assert "fire3/attention/kernel" in message
    assert "fire9/expand3x3/gamma" in message
    assert "1 misshapen: conv1/kernel (7, 7, 3, 64) instead of (3, 3, 3, 64)" in message


def test_all_that_is_wrong_with_a_state_dict_is_listed(tmp_path, squeezenet):
    state = weight_files.torch_names({**squeezenet, **weight_files.conv10()})
    del state["features.3.squeeze.bias"], state["features.0.weight"]
    state["features.13.weight"] = np.ones(3, np.float32)
    state["features.12.expand1x1.weight"] = np.ones((3, 64, 1, 1), np.float32)
    message = refused(write_torch(tmp_path / "x.safetensors", state), "squeezenet")
    assert "2 missing: features.0.weight (64, 3, 3, 3), features.3.squeeze" in message
    assert "1 surplus: features.13.weight;" in message
    assert "features.12.expand1x1.weight (3, 64, 1, 1) instead of (256, 64" in message


def test_a_layer_in_the_middle_is_surplus_wherever_it_is_dense(tmp_path):
    """As squeeze-and-excitation has them; the top is only what comes after."""
    layers = weight_files.convolutions(weight_files.SHALLOWNET)
    gate = {"kernel": np.ones((32, 32)), "bias": np.ones(32)}
    layers = {"conv1": layers.pop("conv1"), "dense_1": gate, **layers, "dense_2": gate}
    weight_files.write_h5(tmp_path / "x.h5", layers)
    message = refused(tmp_path / "x.h5", "shallownetv3")
    assert "2 surplus: dense_1/kernel, dense_1/bias;" in message


def test_an_input_normalisation_is_not_left_out(tmp_path):
    """In .weights.h5 its place is not known, but that it is no layer of a top."""
    model, *_ = own_keras("shallownetv3", str)
    norm = keras.layers.Normalization(name="to_range", mean=[1, 2, 3], variance=[1] * 3)
    adapted = keras.layers.Normalization(name="adapted")
    adapted.build((None, 64, 64, 3))
    inputs = keras.Input((64, 64, 3))
    model = keras.Model(inputs, model(adapted(norm(inputs))))
    path = save(model, tmp_path / "x.weights.h5")
    assert "3 surplus: adapted/0" in refused(path, "shallownetv3")


@pytest.mark.parametrize("suffix", ["h5", "weights.h5"])
def test_one_normalisation_fewer_is_missing(tmp_path, suffix):
    """As in the released code's Xception; no layer of the top takes its place."""
    layers = keras.layers
    model = application("xception")
    inner = keras.Model(model.inputs, model.get_layer("block14_sepconv1_act").output)
    x = layers.Conv2D(2048, 1, name="other")(inner.output)
    path = save(
        keras.Model(inner.inputs, layers.BatchNormalization()(x)),
        tmp_path / f"x.{suffix}",
    )
    message = refused(path, "xception")
    assert "6 missing: block14_sepconv2" in message
    assert "surplus" in message


def test_a_network_of_another_name_says_both(tmp_path):
    keras.utils.clear_session(free_memory=False)
    model = keras.applications.MobileNet(
        weights=None, include_top=False, alpha=0.25, input_shape=(32, 32, 3)
    )
    path = save(model, tmp_path / "x.keras")
    message = refused(path, "xception")
    assert "x.keras, the weights of 'mobilenet_0.25_32', does not fit" in message
    assert "234 missing: block1_conv1/kernel (3, 3, 3, 32), " in message
    assert "135 surplus: conv1/kernel, conv1_bn/gamma, " in message
    assert message.endswith("give weights of xception")


def test_the_network_that_does_fit_is_named(tmp_path, squeezenet):
    path = save(application("xception"), tmp_path / "x.weights.h5")
    message = refused(path, "resnet50v2")
    assert message.endswith("it fits xception")
    path = write_torch(tmp_path / "x.safetensors", weight_files.torch_names(squeezenet))
    assert refused(path, "xception").endswith("it fits squeezenet")
    assert "give a file of Keras" in refused(path, "resnet50v2")


def test_backbones_of_ones_own_have_no_weights_files(tmp_path):
    message = refused(tmp_path / "x.h5", "package.module:Network")
    assert "resnet50v2, shallownetv3, squeezenet, vit, xception" in message


# Files that cannot be read


def truncate(path):
    data = path.read_bytes()
    path.write_bytes(data[: 2 * len(data) // 3])


@pytest.mark.parametrize("suffix", ["h5", "weights.h5", "keras", "safetensors"])
def test_files_that_were_cut_short(tmp_path, squeezenet, suffix):
    path = tmp_path / f"x.{suffix}"
    if suffix == "safetensors":
        write_torch(path, weight_files.torch_names(squeezenet))
    else:
        save(own_keras("shallownetv3")[0], path)
    truncate(path)
    backbone = "squeezenet" if suffix == "safetensors" else "shallownetv3"
    assert "damaged" in refused(path, backbone)


def test_an_archive_with_a_changed_byte(tmp_path):
    path = save(own_keras("shallownetv3")[0], tmp_path / "x.keras")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert "CRC" in refused(path, "shallownetv3")


def test_a_compressed_tensor_with_changed_bytes(tmp_path, squeezenet):
    path = tmp_path / "x.h5"
    weight_files.write_h5(path, squeezenet, compression="gzip", chunks=True)
    with h5py.File(path) as file:
        chunk = file["fire9/expand3x3/fire9/expand3x3/kernel:0"].id.get_chunk_info(0)
    data = bytearray(path.read_bytes())
    middle = chunk.byte_offset + chunk.size // 2
    data[middle : middle + 8] = bytes(8)
    path.write_bytes(data)
    assert "cannot read fire9/expand3x3 in" in refused(path, "squeezenet")


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("x.h5", b"", "empty"),
        ("x.h5", b"\n<!DOCTYPE html><html><body>404</body></html>", "web page"),
        ("x.keras", b"<html lang=en>", "web page"),
        (
            "x.safetensors",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n",
            "git lfs pull",
        ),
        ("x.h5", b"something else altogether", "no .h5 file"),
        ("x.keras", b"PK\x03\x04" + bytes(100), "no .keras file"),
        ("x.safetensors", b"\x09\0\0\0\0\0\0\0something", "no .safetensors file"),
        ("x.safetensors", b"\x09\0\0\0\0\0\0\0{omething", "damaged"),
        ("x.onnx", b"\x08\x07\x12\x07pytorch", "expected Keras's .keras"),
    ],
)
def test_files_that_hold_something_else(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    assert message in refused(tmp_path / name, "squeezenet")


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was read",))


@pytest.mark.parametrize("name", ["x.pth", "x.ckpt", "weights"])
@pytest.mark.parametrize("zipped", [True, False])
def test_pickles_run_no_code(tmp_path, name, zipped):
    path = tmp_path / name
    if zipped:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(Bomb()))
    else:
        path.write_bytes(pickle.dumps(Bomb()))
    message = refused(path, "squeezenet")
    assert "it holds _pytest.outcomes" in message and "where you trust it" in message


@pytest.mark.parametrize("legacy", [True, False])
def test_weights_of_pytorch_s_own_files(tmp_path, squeezenet, legacy):
    state = {
        name: torch_saved.whole(name, array)
        for name, array in weight_files.torch_names(squeezenet).items()
    }
    path = torch_saved.save(tmp_path / "x.pth", state, legacy=legacy)
    assert_holds(pretrained.load(path, "squeezenet"), squeezenet)


def test_paths_that_are_no_files(tmp_path):
    assert "no such file" in refused(tmp_path / "x.h5", "squeezenet")
    assert "folder" in refused(tmp_path, "squeezenet")


def test_weights_files_are_told_from_workdirs(tmp_path):
    (tmp_path / "weights").write_bytes(b"\x89HDF")
    (tmp_path / "run.h5").mkdir()
    assert pretrained.is_weights_file(tmp_path / "weights")
    assert pretrained.is_weights_file(tmp_path / "not_there.keras")
    assert pretrained.is_weights_file(str(tmp_path / "not_there.PTH"))
    assert not pretrained.is_weights_file(tmp_path / "run.h5")
    assert not pretrained.is_weights_file(tmp_path / "not_there")
    assert not pretrained.is_weights_file(tmp_path)
