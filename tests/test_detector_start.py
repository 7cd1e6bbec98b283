"""A detector's file as the start of a training."""

import chex
import numpy as np
import pytest
import small_runs
from safetensors.numpy import save_file

from fdftnet_jax.detector import detector, export, file
from fdftnet_jax.errors import UserError
from fdftnet_jax.run import Run
from fdftnet_jax.training import config_values, initialization, setup

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(tmp_path_factory, cache_dir):
    """(workdir of a fine-tuning, its detector's file)."""
    folder = tmp_path_factory.mktemp("start")
    base = small_runs.run(small_runs.config(cache_dir, epochs=1), folder / "base")
    config = small_runs.config(cache_dir, base, epochs=1)
    workdir = small_runs.run(config, folder / "tuned")
    path = folder / "tuned.safetensors"
    with Run(workdir) as run:
        export.write(run, path)
    return workdir, path


def _network(cache_dir, path, **changes):
    config = small_runs.config(cache_dir, path, **changes)
    return config, setup.network(config, None)


def test_all_layers_of_the_same_network_are_those_of_the_file(cache_dir, trained):
    workdir, path = trained
    with Run(workdir) as run:
        expected = run.variables
    for start in (path, workdir):
        _, net = _network(cache_dir, start, init_heads=True)
        chex.assert_trees_all_equal(net.variables, expected)


def test_without_asking_the_backbone_alone_is(cache_dir, trained):
    workdir, path = trained
    with Run(workdir) as run:
        expected = run.variables
    _, net = _network(cache_dir, path)
    for collection in ("params", "batch_stats"):
        chex.assert_trees_all_equal(
            net.variables[collection]["backbone"], expected[collection]["backbone"]
        )
    new, old = (tree["params"]["classifier"] for tree in (net.variables, expected))
    assert not np.array_equal(new["kernel"], old["kernel"])


def test_what_it_has_seen_is_known(cache_dir, trained):
    workdir, path = trained
    with Run(workdir) as run:
        expected = run.best.lineage
    _, net = _network(cache_dir, path)
    found = net.start.lineage
    assert [of.fingerprint for of in found] == [of.fingerprint for of in expected]
    assert [of.counts for of in found] == [of.counts for of in expected]
    assert [of.kind for of in found] == ["toy", "toy"]


def test_a_training_follows_its_teacher(cache_dir, trained, tmp_path):
    """(What it follows is tested with the step.)"""
    _, path = trained
    found = []
    for weight in (0.0, 1.0):
        config = small_runs.config(
            cache_dir, path, epochs=1, init_heads=True, distillation=weight
        )
        small_runs.run(config, tmp_path / f"{weight}")
        with Run(tmp_path / f"{weight}") as run:
            found.append(run.variables["params"]["classifier"]["kernel"])
    assert np.isfinite(found).all() and not np.array_equal(*found)


def test_the_teacher_is_the_network_of_the_file(cache_dir, trained, tmp_path):
    workdir, path = trained
    with Run(workdir) as run:
        expected = run.variables
    for weight, taught in ((0.0, None), (1.0, expected)):
        config = small_runs.config(
            cache_dir, path, init_heads=True, distillation=weight
        )
        with Run(tmp_path / f"{weight}") as run:
            found = setup.prepare(config, run, None).teacher
        chex.assert_trees_all_equal(found, taught)


def test_mistakes(cache_dir, trained, tmp_path):
    _, path = trained
    with pytest.raises(UserError, match="network that judges already"):
        config_values.check(small_runs.config(cache_dir, path, distillation=1.0))
    with pytest.raises(UserError, match="does not fit the network"):
        changes = {"init_heads": True, "model.num_blocks": 2}
        _network(cache_dir, path, **changes)
    with pytest.raises(UserError, match="is no run and no detector"):
        config = small_runs.config(cache_dir, "imagenet", init_heads=True)
        config.unlock()
        config.model.backbone = "efficientnet_lite0"
        initialization.start(config)
    damaged = tmp_path / "damaged.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    damaged.write_bytes(data)
    with pytest.raises(UserError, match="damaged or was changed"):
        _network(cache_dir, damaged)


def test_what_is_a_detector(trained, tmp_path):
    _, path = trained
    assert file.is_detector(path) and file.is_detector("toy")
    weights = tmp_path / "weights.safetensors"
    save_file({"kernel": np.zeros(3, np.float32)}, weights)
    for other in (weights, tmp_path, tmp_path / "nothing", __file__):
        assert not file.is_detector(other)
    assert detector.load(path).card["trained_on"]
