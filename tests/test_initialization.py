"""Runs that start from a file of weights, and runs that start from those runs."""

import jax
import numpy as np
import pytest
import safetensors.numpy
import small_runs
import weight_files

from fdftnet_jax import datasets
from fdftnet_jax.checkpoint import Checkpoints
from fdftnet_jax.data import images, preprocess
from fdftnet_jax.errors import UserError
from fdftnet_jax.evaluation import scoring
from fdftnet_jax.models import registry
from fdftnet_jax.run import Run

SIZE = 40
LAYERS = weight_files.convolutions(weight_files.SQUEEZENET)
# ImageNet's, as PyTorch's model zoo states them.
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A state dict of torchvision's SqueezeNet, with its 1000-way top."""
    path = tmp_path_factory.mktemp("weights") / "squeezenet1_1.safetensors"
    layers = {**LAYERS, **weight_files.conv10()}
    safetensors.numpy.save_file(weight_files.torch_names(layers), path)
    return path


def config(cache_dir, init_from, *, pretrain=False, **changes):
    made = small_runs.config(
        cache_dir,
        "" if pretrain else init_from,
        **{
            "model.kind": "classifier" if pretrain else "linear",
            "model.backbone": "squeezenet",
            "data.size": SIZE,
            "epochs": 1,
            "init_from": str(init_from),
            **changes,
        },
    )
    return made


@pytest.fixture(scope="module")
def probe(cache_dir, weights, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "probe"
    return small_runs.run(config(cache_dir, weights), workdir)


def load(workdir):
    with Checkpoints(workdir) as checkpoints:
        return checkpoints.load_meta(), checkpoints.load_variables()


def test_the_frozen_backbone_is_that_of_the_file(probe, weights):
    meta, variables = load(probe)
    backbone = variables["params"]["backbone"]
    assert "conv10" not in backbone
    for name, tensors in LAYERS.items():
        layer = backbone
        for part in name.split("/"):
            layer = layer[part]
        np.testing.assert_array_equal(layer["kernel"], tensors["kernel"])
        np.testing.assert_array_equal(layer["bias"], tensors["bias"])
    assert meta["model"]["variant"] == "torch"
    assert meta["preprocessing"]["scaling"] == "imagenet"
    assert meta["weights"]["path"] == str(weights)
    assert meta["trained_on"][1:] == []


def test_evaluation_scales_as_the_weights_expect(probe, cache_dir):
    meta, variables = load(probe)
    records = datasets.prepare(config(cache_dir, "x").data).source("test")
    views = np.stack(
        [
            preprocess.Preprocessing(size=SIZE)(images.decode(record["image"]))
            for record in records
        ]
    )
    model = registry.build(meta["model"])
    scaled = np.float32((views / 255 - MEAN) / STD)
    logits = jax.jit(lambda x: model.apply(variables, x, train=False))(scaled)
    found = scoring.score_split(Run(probe)).logits
    np.testing.assert_allclose(found, logits, rtol=1e-4, atol=1e-5)
    others = jax.jit(lambda x: model.apply(variables, x, train=False))(
        np.float32(views / 127.5 - 1)
    )
    assert np.abs(found - others).max() > 1e-3


def test_variant_and_scaling_travel_on(probe, cache_dir, weights, tmp_path):
    """Into a fine-tuning that starts from the run, and when it goes on."""
    second = config(cache_dir, probe)
    small_runs.run(second, tmp_path)
    meta, variables = load(tmp_path)
    assert meta["model"]["variant"] == "torch"
    assert meta["preprocessing"]["scaling"] == "imagenet"
    assert meta["weights"]["path"] == str(weights)
    assert len(meta["trained_on"]) == 2
    np.testing.assert_array_equal(
        variables["params"]["backbone"]["conv1"]["kernel"], LAYERS["conv1"]["kernel"]
    )
    with pytest.raises(UserError, match=r"'imagenet', .*asks for 'zero_one'"):
        small_runs.run(
            config(cache_dir, probe, **{"data.scaling": "zero_one"}),
            tmp_path / "other",
        )


@pytest.mark.slow
def test_pre_training_from_a_file(weights, cache_dir, tmp_path, capsys):
    """All layers but the top are the file's; an own scaling replaces the usual one."""
    changes = {"optimizer.learning_rate": 0.0, "data.scaling": "zero_one"}
    small_runs.run(config(cache_dir, weights, pretrain=True, **changes), tmp_path)
    meta, variables = load(tmp_path)
    params = variables["params"]
    np.testing.assert_array_equal(
        params["fire9"]["expand3x3"]["kernel"],
        LAYERS["fire9/expand3x3"]["kernel"],
    )
    assert params["conv10"]["kernel"].shape == (1, 1, 512, 2)
    assert meta["preprocessing"]["scaling"] == "zero_one"
    said = capsys.readouterr().err
    assert "images scaled as zero_one; left out of the file: classifier.1.bias" in said


def test_mistakes(weights, cache_dir, tmp_path):
    other = {"model.backbone": "xception"}
    with pytest.raises(UserError, match="safetensors does not fit xception"):
        small_runs.run(config(cache_dir, weights, **other), tmp_path / "run")
    with pytest.raises(UserError, match="there is no such file"):
        small_runs.run(config(cache_dir, tmp_path / "x.keras"), tmp_path / "run")
    with pytest.raises(UserError, match="file of PyTorch, it seems to be damaged"):
        (tmp_path / "x.pth").write_bytes(b"\x80\x02")
        small_runs.run(config(cache_dir, tmp_path / "x.pth"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
