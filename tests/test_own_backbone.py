"""A network from outside the package as a backbone, and mistakes in it."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import own_cnn
import pytest
import small_runs

from configs import pretrain
from fdftnet_jax import models
from fdftnet_jax.checkpoint import Checkpoints
from fdftnet_jax.errors import UserError
from fdftnet_jax.evaluation import scoring
from fdftnet_jax.models import registry
from fdftnet_jax.run import Run

PATH = "own_cnn:OwnCNN"


@pytest.fixture(autouse=True)
def _registry_of_one_test(monkeypatch):
    monkeypatch.setattr(registry, "BACKBONES", dict(registry.BACKBONES))


def _init(backbone, **options):
    return jax.eval_shape(
        lambda: models.get_backbone(backbone, **options).init_with_output(
            jax.random.key(0), jnp.zeros((2, 32, 32, 3)), train=False
        )
    )


@pytest.mark.slow
def test_pretrain_finetune_evaluate(tmp_path, cache_dir):
    changes = {"model.backbone": PATH, "epochs": 1, **small_runs.NO_AUGMENTATION}
    base, fdft = tmp_path / "base", tmp_path / "fdft"
    small_runs.run(small_runs.config(cache_dir, **changes), base)
    small_runs.run(small_runs.config(cache_dir, base, **changes), fdft)
    for workdir in (base, fdft):
        scores = scoring.score_split(Run(workdir))
        assert scores.logits.shape == (18, 2)
        assert np.isfinite(scores.logits).all()
    with Checkpoints(base) as of_base, Checkpoints(fdft) as of_fdft:
        before, after = of_base.load_variables(), of_fdft.load_variables()
    assert before["params"].keys() == {"features", "predictions"}
    # The top is cut off, the rest kept.
    for collection in ("params", "batch_stats"):
        backbone = after[collection]["backbone"]
        assert backbone.keys() == {"features"}
        chex.assert_trees_all_equal(
            backbone["features"], before[collection]["features"]
        )


def test_an_import_path_in_the_argument_of_a_config():
    assert pretrain.get_config(f"{PATH},toy,paper").model.backbone == PATH


@pytest.mark.parametrize("own", [own_cnn.OwnCNN, lambda: own_cnn.OwnCNN()])
def test_registered_by_name(own):
    models.register_backbone("mine", own, l2=1e-3)
    features, _ = _init("mine")
    assert features.shape == (2, 8, 8, 16)
    logits, variables = _init("mine", num_classes=5)
    assert logits.shape == (2, 5)
    assert variables["params"]["predictions"]["kernel"].shape == (16, 5)
    model = {"kind": "classifier", "backbone": "mine"}
    assert registry.l2_weights(model) == {"": 1e-3}
    assert registry.l2_weights(model | {"backbone": PATH}) == {"": 0.0}
    # A second one takes its place.
    models.register_backbone("mine", lambda: nn.Conv(3, (1, 1)))
    with pytest.raises(UserError, match="mine cannot be called"):
        models.get_backbone("mine")


def test_the_logits_are_a_dense_layer_on_the_mean():
    model = models.get_backbone(PATH, 2)
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    variables = model.init(jax.random.key(0), images, train=False)
    features = models.get_backbone(PATH).apply(variables, images, train=False)
    top = variables["params"]["predictions"]
    expected = np.asarray(features).mean((1, 2)) @ top["kernel"] + top["bias"]
    logits = model.apply(variables, images, train=False)
    np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_it_gets_the_axis_of_the_batch():
    assert models.get_backbone(PATH, axis_name="batch").features.axis_name == "batch"


class Around(nn.Module):
    inner: nn.Module = own_cnn.OwnCNN()

    def __call__(self, images, *, train):
        return self.inner(images, train=train)


@pytest.mark.parametrize("instance", [own_cnn.OwnCNN(), Around()])
def test_two_backbones_of_one_instance_have_layers_of_their_own(instance):
    """FDFtNet's, and that of the regression beside it."""
    models.register_backbone("mine", lambda: instance)
    described = small_runs.model_config(backbone="mine") | {"regression": True}
    network = registry.build(described)
    images = jnp.zeros((1, 32, 32, 3))
    variables = jax.eval_shape(
        lambda: network.init(jax.random.key(0), images, train=False)
    )
    params = variables["params"]
    chex.assert_trees_all_equal(params["backbone"], params["regression"]["backbone"])
    assert jax.tree.leaves(params["backbone"])


class PooledNet(nn.Module):
    @nn.compact
    def __call__(self, images, *, train):
        return jnp.mean(nn.Conv(4, (3, 3))(images), (1, 2))


class TwoOutputs(nn.Module):
    @nn.compact
    def __call__(self, images, *, train):
        return images, train


class NoTrain(nn.Module):
    @nn.compact
    def __call__(self, images):
        return nn.Conv(4, (3, 3))(images)


class OtherBatch(nn.Module):
    @nn.compact
    def __call__(self, images, *, train):
        return images.reshape(-1, 8, 8, 3)


class Raises(nn.Module):
    @nn.compact
    def __call__(self, images, *, train):
        return jnp.dot(images, jnp.zeros((5, 5)))


class NeedsWidth(nn.Module):
    width: int

    @nn.compact
    def __call__(self, images, *, train):
        return nn.Conv(self.width, (3, 3))(images)


CONTRACT = r"`module\(images, train=\.\.\.\)`.*feature map \[batch, height, width, ch"


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (PooledNet, r"mine returned the shape \[2, 4\] for .*\[2, 32, 32, 3\].*"),
        (TwoOutputs, "mine returned tuple.*"),
        (OtherBatch, r"mine returned the shape \[32, 8, 8, 3\].*"),
        (NoTrain, "mine cannot be called so.*'train'.*"),
        (Raises, "mine failed on images .*TypeError: dot_general.*"),
        (dict, r"mine\(\) is a dict.*"),
        (lambda: own_cnn.OwnCNN, r"mine\(\) is a type.*"),
    ],
)
def test_breaches_of_the_contract(own, message):
    models.register_backbone("mine", own)
    with pytest.raises(UserError, match=message + CONTRACT) as error:
        _init("mine")
    assert "\n" not in str(error.value)


def test_a_breach_shows_before_the_data_is_made(tmp_path):
    models.register_backbone("mine", PooledNet)
    config = small_runs.config(tmp_path / "cache", **{"model.backbone": "mine"})
    with pytest.raises(UserError, match=CONTRACT):
        small_runs.run(config, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no_such_module:Net", "No module named 'no_such_module'; expected MODULE:"),
        ("own_cnn:Net", "no attribute 'Net'; expected MODULE:ATTRIBUTE"),
        (":Net", "expected MODULE:ATTRIBUTE"),
        ("own_cnn:", "expected MODULE:ATTRIBUTE"),
        ("test_own_backbone:NeedsWidth", r"NeedsWidth\(\) failed.*without arguments"),
    ],
)
def test_mistakes_in_an_import_path(path, message):
    with pytest.raises(UserError, match=message) as error:
        models.get_backbone(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["squeezenet", "", "a,b", "a:b", "a b"])
def test_names_that_cannot_be_registered(name):
    with pytest.raises(UserError, match="cannot be registered as"):
        models.register_backbone(name, own_cnn.OwnCNN)


def test_an_unknown_name_says_how_to_give_your_own():
    with pytest.raises(UserError, match="MODULE:ATTRIBUTE"):
        models.get_backbone("mine")


def test_it_has_no_other_variant():
    with pytest.raises(UserError, match="no variant 'torch': it has keras"):
        models.get_backbone(PATH, variant="torch")
