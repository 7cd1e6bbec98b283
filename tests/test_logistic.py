"""The probe of frozen features: logistic regression in the place of gradient steps."""

import signal

import chex
import jax.numpy as jnp
import numpy as np
import pytest
import small_runs
from sklearn import metrics

from fdftnet_jax.checkpoint import Checkpoints
from fdftnet_jax.data import corruptions, images, pipeline, preprocess
from fdftnet_jax.detector import detector, export
from fdftnet_jax.errors import Interrupted, UserError
from fdftnet_jax.evaluation import scoring
from fdftnet_jax.models import registry
from fdftnet_jax.run import Run
from fdftnet_jax.training import config_values, defaults, logistic, setup, steps


def probe_config(cache_dir, pretrained, **changes):
    changes = defaults.probe("small") | {"seed": 0} | changes
    return small_runs.config(cache_dir, pretrained, **changes)


@pytest.fixture(scope="module")
def probe(tmp_path_factory, cache_dir, pretrained):
    """The workdir of a probe of the two depths of a small backbone."""
    config = probe_config(cache_dir, pretrained)
    return small_runs.run(config, tmp_path_factory.mktemp("probe") / "run")


def best(workdir):
    with Checkpoints(workdir) as checkpoints:
        return checkpoints.load_variables()


def fitted(seed=0, n=60, k=20):
    """Features, labels and weights, and the solution."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    features = rng.normal(3, rng.uniform(0.1, 10, k), (n, k)) + labels[:, None]
    weights = np.where(labels == 1, 2.0, 0.5)
    return features, labels, weights, logistic.solve(features, labels, weights)


def test_the_solution_minimises_the_penalised_loss():
    """The gradient of the docstring's sum is zero, in float64."""
    features, labels, weights, alone = fitted()
    rng = np.random.default_rng(1)
    v = rng.normal(0, 1, 20)
    pulled = logistic.solve(features, labels, weights, (v, 5.0))
    for (w, b), centre in ((alone, 0), (pulled, v)):
        residual = weights * (1 / (1 + np.exp(-(features @ w + b))) - labels)
        deviation = features.std(0)
        standard = (features - features.mean(0)) / deviation
        of_loss = standard.T @ residual
        gradient = (w - centre) * deviation * features.shape[1] / 500 + of_loss
        assert np.abs(gradient).max() < 1e-3 < np.abs(of_loss).max()
        assert abs(residual.sum()) < 1e-3


def test_what_few_images_do_not_contradict_stays_known():
    """The first half of the features tells one forgery, the second half the other."""
    rng = np.random.default_rng(0)
    labels = np.arange(400) % 2
    old, new = rng.normal(0, 1, (2, 400, 600))
    old[:, :300] += 0.3 * labels[:, None]
    new[:, 300:] += 0.3 * labels[:, None]
    few, weights = np.arange(60), np.ones(400)
    before = logistic.solve(old[:200], labels[:200], weights[:200])
    found = {
        name: logistic.solve(new[few], labels[few], weights[few], *start)
        for name, start in (("pulled", [before]), ("anew", []))
    }

    def auc(solution, features):
        odds = features[200:] @ solution[0] + solution[1]
        return metrics.roc_auc_score(labels[200:], odds)

    assert auc(found["pulled"], new) > 0.8
    assert auc(found["anew"], old) < 0.6 < 0.9 < auc(found["pulled"], old)


def test_the_penalty_is_the_same_for_any_number_of_features():
    """Each feature twice, in any unit, says what it said once."""
    features, labels, weights, (w, b) = fitted()
    twice = np.concatenate([features, 1000 * features - 7], axis=1)
    w_twice, b_twice = logistic.solve(twice, labels, weights)
    np.testing.assert_allclose(twice @ w_twice + b_twice, features @ w + b, atol=0.01)


def test_a_feature_without_variance_has_no_weight():
    features, labels, weights, _ = fitted()
    features[:, 3] = 0.1
    w, _ = logistic.solve(features, labels, weights)
    assert w[3] == 0
    pulled, _ = logistic.solve(features, labels, weights, (np.full(20, 0.5), 0.0))
    assert pulled[3] == 0.5
    assert np.abs(w).min(where=np.arange(len(w)) != 3, initial=1) > 0


def test_the_layer_says_what_the_regression_does(
    cache_dir, pretrained, tmp_path, monkeypatch
):
    """The logits of the run's own features differ by the log odds."""
    solved = []
    solve = logistic.solve
    monkeypatch.setattr(
        logistic,
        "solve",
        lambda *args: solved.append((args, solve(*args))) or solved[0][1],
    )
    workdir = small_runs.run(probe_config(cache_dir, pretrained), tmp_path / "run")
    [((features, *_), (w, b))] = solved
    assert features.shape == (24, 2 * (8 + 16))
    layer = best(workdir)["params"]["classifier"]
    logits = features @ np.asarray(layer["kernel"], np.float64) + layer["bias"]
    np.testing.assert_allclose(logits[:, 1] - logits[:, 0], features @ w + b, atol=1e-4)


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
    # Fewer images, another view of them, or other taps are other features.
    for name, change in (
        ("shots", {"data.shots": 8}),
        ("view", {"data.view": "crops"}),
        ("taps", {"model.taps": False}),
    ):
        config = probe_config(cache_dir, pretrained, **change)
        small_runs.run(config, tmp_path / name)
    assert len(computed) == 3


def test_a_run_goes_on_from_the_coefficients_of_another(
    probe, cache_dir, pretrained, tmp_path, monkeypatch
):
    """As they stand in its layer; the layer of a pre-training has none."""
    starts = []
    solve = logistic.solve
    monkeypatch.setattr(
        logistic, "solve", lambda *args: starts.append(args[3]) or solve(*args)
    )
    config = probe_config(cache_dir, probe, init_heads=True)
    again = small_runs.run(config, tmp_path / "again")
    small_runs.run(probe_config(cache_dir, pretrained, seed=1), tmp_path / "other")
    [(v, intercept), without] = starts
    assert without is None
    layers = [best(workdir)["params"]["classifier"] for workdir in (probe, again)]
    kernel, bias = layers[0]["kernel"], layers[0]["bias"]
    np.testing.assert_array_equal(v, kernel[:, 1] - kernel[:, 0])
    assert intercept == bias[1] - bias[0] != 0
    # The same images once more say the same, more surely.
    before, after = (layer["kernel"][:, 1] for layer in layers)
    assert np.corrcoef(before, after)[0, 1] > 0.9
    assert np.linalg.norm(after) > 1.05 * np.linalg.norm(before)


def test_a_stop_in_the_validation_is_after_the_fit(
    probe, cache_dir, tmp_path, monkeypatch
):
    """The run that goes on is not pulled to its own coefficients."""
    config = probe_config(cache_dir, probe, init_heads=True, epochs=1)
    evaluate, calls = steps.evaluate, []

    def stopped(*args):
        calls.append(1)
        if len(calls) == 1:
            signal.raise_signal(signal.SIGTERM)
        return evaluate(*args)

    monkeypatch.setattr(steps, "evaluate", stopped)
    with pytest.raises(Interrupted):
        small_runs.run(config, tmp_path / "stopped")
    for name in ("stopped", "undisturbed"):
        small_runs.run(config, tmp_path / name)
    small_runs.assert_same(tmp_path / "stopped", tmp_path / "undisturbed")


def test_features_that_are_not_finite():
    features, labels, weights, _ = fitted()
    features[0, 0] = np.nan
    with pytest.raises(UserError, match="expected finite features"):
        logistic.solve(features, labels, weights)


def test_windows_weigh_as_much_as_the_image(
    cache_dir, pretrained, tmp_path, monkeypatch
):
    """Nine of each, as large as those that training would draw, and scaled as there."""
    monkeypatch.setattr(corruptions, "FACTORS", (0.5, 0.5))
    solved = []
    solve = logistic.solve
    monkeypatch.setattr(
        logistic, "solve", lambda *args: solved.append(args) or solve(*args)
    )
    side = small_runs.SIZE // 2
    fields = {"data.view": "crops", "data.crop_grid": 1, "data.train_size": side}
    fields |= {"class_balance": "weights", "augment.rescale": 1.0}
    config = probe_config(cache_dir, pretrained, **fields)
    training = setup.prepare(config, Run(tmp_path), None)
    logistic.fit(config, training, iter)
    [(features, labels, weights, _)] = solved
    # What is kept for another run are the features of the images, not of windows.
    sizes = [len(np.load(path)) for path in (cache_dir / "features").glob("*.npy")]
    assert len(features) == 240 and max(sizes) < 240
    # (They are whole where other views are drawn in training.)
    source = training.images.train
    pictures = np.stack([source[i]["image"] for i in range(len(source))])
    of_pictures = np.array([source[i]["label"] for i in range(len(source))])
    n, height = pictures.shape[:2]
    assert (n, height) == (24, 2 * small_runs.SIZE)
    places = (0, (height - side) // 2, height - side)
    windows = [
        corruptions.rescale(picture, 0.5)[y : y + side, x : x + side]
        for picture in pictures
        for y in places
        for x in places
    ]
    middle = slice((height - small_runs.SIZE) // 2, (height + small_runs.SIZE) // 2)
    module = registry.build(training.record.model).clone(num_classes=None)
    variables = {
        "params": {"backbone": training.state.params["backbone"]},
        "batch_stats": training.state.batch_stats,
    }
    expected = [
        module.apply(variables, preprocess.scale(np.float32(views)), train=False)
        for views in (pictures[:, middle, middle], np.stack(windows))
    ]
    np.testing.assert_allclose(features, np.concatenate(expected), atol=1e-4)
    of_each = np.repeat(of_pictures, 9)
    np.testing.assert_array_equal(labels, np.concatenate([of_pictures, of_each]))
    np.testing.assert_allclose(weights[:n].sum(), weights[n:].sum())
    np.testing.assert_allclose(weights[n:].reshape(n, 9).sum(1), weights[:n])
    # Beside a network there are windows, too; of more images than fit there are none.
    beside = fields | {"model.regression": True, "keep": "last", "seed": 0}
    beside = small_runs.config(cache_dir, pretrained, **beside)
    logistic.fit(beside, setup.prepare(beside, Run(tmp_path), None), iter)
    monkeypatch.setattr(logistic, "_MOST", 10 * n - 1)
    logistic.fit(config, training, iter)
    assert [len(rows) for rows, *_ in solved] == [10 * n, 10 * n, n]


def test_each_window_is_of_another_version(
    cache_dir, pretrained, tmp_path, monkeypatch
):
    """Compressed at random, and in the same way whenever it is fitted again."""
    fields = {"data.view": "crops", "data.crop_grid": 1}
    fields |= {"data.train_size": small_runs.SIZE // 2}

    def of_windows(**changes):
        """[pictures, 9, features] of the windows."""
        solved = []
        monkeypatch.setattr(
            logistic, "solve", lambda *args: solved.extend(args) or solve(*args)
        )
        config = probe_config(cache_dir, pretrained, **fields | changes)
        logistic.fit(config, setup.prepare(config, Run(tmp_path), None), iter)
        number = len(solved[0]) // 10
        return solved[0][number:].reshape(number, 9, -1)

    solve = logistic.solve
    plain = of_windows()
    found, again = (of_windows(**{"augment.jpeg": 0.5}) for _ in range(2))
    np.testing.assert_array_equal(found, again)
    same = np.isclose(found, plain, atol=1e-5).all(-1)
    assert 0.3 < same.mean() < 0.7
    assert (same.any(1) & ~same.all(1)).mean() > 0.9
    other = of_windows(**{"augment.jpeg": 0.5, "seed": 1})
    assert (np.isclose(other, plain, atol=1e-5).all(-1) != same).any()


@pytest.mark.slow
def test_a_regression_on_every_block_judges_pictures(cache_dir, tmp_path):
    """A file says what its run does."""
    changes = defaults.probe("efficientnet_lite0")
    assert changes["model.block_taps"]
    changes["model.backbone"] = "efficientnet_lite0"
    config = small_runs.config(cache_dir, "imagenet", **changes)
    run = Run(small_runs.run(config, tmp_path / "run"))
    path = tmp_path / "probe.safetensors"
    export.write(run, path)
    scores = scoring.score_split(run, "validation")
    records = scoring.open_data(run, "validation", None).source("validation")
    pictures = [images.decode_png(records[i]["image"]) for i in range(len(records))]
    expected = scores.logits[:, 1] - scores.logits[:, 0]
    said = detector.load(path).log_odds(pictures)
    np.testing.assert_allclose(said, expected, rtol=1e-3, atol=1e-3)
    assert said.std() > 0.1


def test_features_of_several_views_are_averaged():
    """On two devices, with a batch that is filled up, against NumPy."""
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (3, 2, 4, 4, 3), np.uint8)
    source = [
        {"image": image, "label": np.int32(0), "index": np.int32(i)}
        for i, image in enumerate(pictures)
    ]

    def apply(variables, images, *, train):
        assert not train
        return variables["w"] * jnp.max(images, axis=(1, 2))

    batches = pipeline.eval_batches(source, 4, threads=0)
    found = logistic.compute(apply, {"w": 2.0}, batches, "zero_one")[:3]
    expected = 2 * (pictures / 255).max((2, 3)).mean(1)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


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
