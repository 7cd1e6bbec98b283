"""The probe of frozen features: logistic regression in the place of gradient steps."""

import chex
import jax.numpy as jnp
import numpy as np
import pytest
import small_runs

from configs import feature_probe
from fdftnet_jax.checkpoint import Checkpoints
from fdftnet_jax.data import pipeline
from fdftnet_jax.errors import UserError
from fdftnet_jax.evaluation import scoring
from fdftnet_jax.run import Run
from fdftnet_jax.training import config_values, logistic


def probe_config(cache_dir, pretrained, **changes):
    changes = feature_probe.CHANGES | {"seed": 0} | changes
    return small_runs.config(cache_dir, pretrained, **changes)


@pytest.fixture(scope="module")
def probe(tmp_path_factory, cache_dir, pretrained):
    """The workdir of a probe of the two depths of a small backbone."""
    config = probe_config(cache_dir, pretrained)
    return small_runs.run(config, tmp_path_factory.mktemp("probe") / "run")


def best(workdir):
    with Checkpoints(workdir) as checkpoints:
        return checkpoints.load_variables()


def test_the_fitted_layer_minimises_the_penalised_loss(
    probe, cache_dir, pretrained, tmp_path, monkeypatch
):
    """Its gradient is zero, in float64, on the features as they were computed."""
    kept = {}

    def keep(standard, labels, weights, groups, seed):
        kept.update(standard=standard, labels=labels)
        return 0.1, []

    monkeypatch.setattr(logistic, "choose_strength", keep)
    pooled = []
    read = logistic.cached_features
    monkeypatch.setattr(
        logistic, "cached_features", lambda *a: pooled.append(read(*a)) or pooled[0]
    )
    workdir = small_runs.run(probe_config(cache_dir, pretrained), tmp_path / "run")
    layer = best(workdir)["params"]["classifier"]
    kernel, bias = (np.asarray(layer[name], np.float64) for name in ("kernel", "bias"))
    features, labels = pooled[0], kept["labels"]
    assert features.shape == (24, 2 * (8 + 16))
    odds = features @ (kernel[:, 1] - kernel[:, 0]) + bias[1] - bias[0]
    residual = 1 / (1 + np.exp(-odds)) - labels
    # In the units of the standardised features.
    w = (kernel[:, 1] - kernel[:, 0]) * features.std(0)
    gradient = w / 0.1 + kept["standard"].T @ residual
    assert np.abs(gradient).max() < 0.02 < np.abs(kept["standard"].T @ residual).max()
    assert abs(residual.sum()) < 0.02


def test_a_probe_is_a_run_like_any_other(probe, pretrained):
    """It is recorded, scored and exported; its backbone is that of the pre-training."""
    run = Run(probe)
    (row,) = run.history()
    assert row["epoch"] == 1
    scores = scoring.score_split(run, "validation")
    odds = scores.logits[:, 1] - scores.logits[:, 0]
    loss = np.logaddexp(0, np.where(scores.labels == 1, -odds, odds))
    assert row["validation_loss"] == pytest.approx(loss.mean(), rel=1e-4)
    backbone = best(probe)["params"]["backbone"]
    before = {k: v for k, v in best(pretrained)["params"].items() if k != "top"}
    chex.assert_trees_all_equal(backbone, before)


def test_features_are_computed_once(
    probe, cache_dir, pretrained, tmp_path, monkeypatch
):
    computed = []
    compute = logistic.compute
    monkeypatch.setattr(
        logistic, "compute", lambda *args: computed.append(1) or compute(*args)
    )
    again = small_runs.run(probe_config(cache_dir, pretrained), tmp_path / "again")
    assert not computed
    small_runs.assert_same(probe, again)
    # Fewer images, or another view of them, are other features.
    for name, change in (
        ("shots", {"data.shots": 8}),
        ("view", {"data.view": "crops"}),
    ):
        config = probe_config(cache_dir, pretrained, **change)
        small_runs.run(config, tmp_path / name)
    assert len(computed) == 2


def test_features_of_several_views_are_averaged():
    """On two devices, with a batch that is filled up, against NumPy."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 2, 4, 4, 3), np.uint8)
    source = [
        {"image": image, "label": np.int32(0), "index": np.int32(i)}
        for i, image in enumerate(images)
    ]

    def apply(variables, images, *, train):
        assert not train
        return variables["w"] * jnp.max(images, axis=(1, 2))

    batches = pipeline.eval_batches(source, 4, threads=0)
    found = logistic.compute(apply, {"w": 2.0}, batches, "zero_one")[:3]
    expected = 2 * (images / 255).max((2, 3)).mean(1)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def data_of(kind, seed=0, n=120, features=60):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    x = rng.normal(size=(n, features))
    groups = np.arange(n)
    if kind == "signal":
        x[:, :30] += 0.8 * labels[:, None]
    if kind == "copies":
        # Twelve groups of ten equal pictures: what is learned by heart is of no use.
        groups = np.arange(n) // 10
        labels = groups % 2
        x = rng.normal(size=(12, features))[groups]
    return x, labels, np.ones(n), groups


def test_the_penalty_is_chosen_by_what_was_left_out():
    noise, losses = logistic.choose_strength(*data_of("noise"), 0)
    assert noise == logistic.STRENGTHS[0]
    assert losses == sorted(losses)
    signal, losses = logistic.choose_strength(*data_of("signal"), 0)
    assert signal > noise
    assert min(losses) < 0.5
    assert losses[0] > 0.69


def test_a_group_is_not_split_between_folds():
    x, labels, weights, groups = data_of("copies")
    apart, losses = logistic.choose_strength(x, labels, weights, groups, 0)
    assert min(losses) > 0.6
    mixed, losses = logistic.choose_strength(x, labels, weights, np.arange(120), 0)
    assert min(losses) < 0.1
    assert apart < mixed


def test_weights_count_as_copies_do():
    x, labels, weights, _ = data_of("signal")
    weights[labels == 1] = 2
    twice = np.concatenate([x, x[labels == 1]])
    copied = np.concatenate([labels, labels[labels == 1]])
    weighted = logistic._model(0.1).fit(x, labels, weights)
    expected = logistic._model(0.1).fit(twice, copied)
    np.testing.assert_allclose(weighted.coef_, expected.coef_, atol=1e-3)


def test_one_image_of_a_class_leaves_no_choice():
    x, labels = np.eye(3), np.array([0, 1, 1])
    found, losses = logistic.choose_strength(x, labels, np.ones(3), np.arange(3), 0)
    assert found in logistic.STRENGTHS
    assert losses == []


@pytest.mark.parametrize(
    "change",
    [
        {"model.kind": "fdftnet"},
        {"trainable": "all"},
        {"release_epoch": 2},
        {"epochs": 3},
    ],
)
def test_only_a_dense_layer_on_a_frozen_backbone_is_fitted(change, cache_dir):
    config = probe_config(cache_dir, "base", **change)
    with pytest.raises(UserError, match="'logistic', which fits one dense layer"):
        config_values.check(config)
