"""FDFtNet with a regression on its frozen features beside it."""

import signal

import chex
import numpy as np
import pytest
import small_runs

from fdftnet_jax.data import images, preprocess
from fdftnet_jax.detector import card, detector, export
from fdftnet_jax.errors import Interrupted, UserError
from fdftnet_jax.evaluation import scoring
from fdftnet_jax.models import registry
from fdftnet_jax.prediction import explain
from fdftnet_jax.run import Run
from fdftnet_jax.training import config_values, defaults, logistic, setup

pytestmark = pytest.mark.slow


def sum_config(cache_dir, start, **changes):
    """All of the network is trained, so that its backbone is no longer the frozen."""
    fields = {"model.regression": True, "trainable": "all", "keep": "last"}
    return small_runs.config(cache_dir, start, **(fields | changes))


@pytest.fixture(scope="module")
def both(tmp_path_factory, cache_dir, pretrained):
    """The workdir of FDFtNet with its regression."""
    config = sum_config(cache_dir, pretrained)
    return small_runs.run(config, tmp_path_factory.mktemp("both") / "run")


@pytest.fixture(scope="module")
def exported(both, tmp_path_factory):
    """Its detector's file."""
    path = tmp_path_factory.mktemp("exported") / "both.safetensors"
    with Run(both) as run:
        export.write(run, path)
    return path


def odds(workdir):
    logits = scoring.score_split(Run(workdir), "validation").logits
    return logits[:, 1] - logits[:, 0]


def test_its_log_odds_are_those_of_the_network_and_of_the_probe(
    both, cache_dir, pretrained, tmp_path
):
    """Of two runs of their own: each learns as if it were alone."""
    alone = small_runs.run(
        sum_config(cache_dir, pretrained, **{"model.regression": False}),
        tmp_path / "alone",
    )
    fields = defaults.probe(small_runs.BACKBONE)
    probe = small_runs.run(
        small_runs.config(cache_dir, pretrained, **fields), tmp_path / "probe"
    )
    parts = odds(alone), odds(probe)
    assert min(part.std() for part in parts) > 0.01
    np.testing.assert_allclose(odds(both), sum(parts), rtol=1e-4, atol=1e-4)
    trained, expected = (Run(workdir).variables for workdir in (both, alone))
    for collection in ("params", "batch_stats"):
        found = dict(trained[collection])
        assert found.pop("regression")
        chex.assert_trees_all_equal(found, expected[collection])
    assert small_runs.history(both) == small_runs.history(alone)
    # What each trains is counted without what is fitted.
    counts = {Run(w).best.trained_parameters for w in (both, alone)}
    assert len(counts) == 1


def test_its_file_says_what_its_run_does(both, exported):
    records = scoring.open_data(Run(both), "validation", None).source("validation")
    pictures = [images.decode_png(records[i]["image"]) for i in range(len(records))]
    found = detector.load(exported).log_odds(pictures)
    np.testing.assert_allclose(found, odds(both), rtol=1e-3, atol=1e-3)


def test_an_explanation_tells_what_it_adds(exported):
    """As a number: the difference of the detector to the network without it."""
    known = detector.load(exported)
    view = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    images_ = preprocess.scale(np.float32(view)[None], known.preprocessing.scaling)
    model = registry.build({**known.card["model"], "regression": False})
    network = np.asarray(model.apply(known.variables, images_, train=False))[0]
    added = known.log_odds([view])[0] - (network[1] - network[0])
    assert abs(added) > 0.1
    _, note = explain.panels(known, view)
    assert f"adds {added:+.1f} to the log odds" in note
    assert "and a regression beside it" in " ".join(card.text(known.card, "0").split())


def test_a_stop_while_it_is_fitted_loses_nothing(
    cache_dir, pretrained, tmp_path, monkeypatch
):
    # (No other test has computed these features.)
    config = sum_config(cache_dir, pretrained, epochs=1, **{"data.shots": 6})
    fit, calls, returned = logistic.fit, [], []

    def stopped(*args):
        calls.append(1)
        if len(calls) == 1:
            signal.raise_signal(signal.SIGTERM)
        returned.append(fit(*args))
        return returned[-1]

    monkeypatch.setattr(logistic, "fit", stopped)
    with pytest.raises(Interrupted, match="same command goes on"):
        small_runs.run(config, tmp_path / "stopped")
    assert small_runs.history(tmp_path / "stopped") == []
    for name in ("stopped", "undisturbed"):
        small_runs.run(config, tmp_path / name)
    # The signal stopped the fit itself, not the first step after it.
    assert (len(calls), len(returned)) == (3, 2)
    small_runs.assert_same(tmp_path / "stopped", tmp_path / "undisturbed")


def test_its_detector_is_trained_on(exported, both, cache_dir, tmp_path, monkeypatch):
    """The regression is pulled to what it was; without it the rest goes on."""
    starts = []
    solve = logistic.solve
    monkeypatch.setattr(
        logistic, "solve", lambda *args: starts.append(args[3]) or solve(*args)
    )
    fields = {"init_heads": True, "epochs": 1}
    config = sum_config(cache_dir, exported, **fields)
    network = setup.network(config, None)
    chex.assert_trees_all_equal(network.variables, Run(both).variables)
    small_runs.run(config, tmp_path / "run")
    [(v, _)] = starts
    kernel = Run(both).variables["params"]["regression"]["classifier"]["kernel"]
    np.testing.assert_array_equal(v, kernel[:, 1] - kernel[:, 0])

    config = sum_config(cache_dir, exported, **fields, **{"model.regression": False})
    network = setup.network(config, None)
    expected = {
        collection: {k: v for k, v in tree.items() if k != "regression"}
        for collection, tree in Run(both).variables.items()
    }
    chex.assert_trees_all_equal(network.variables, expected)


def test_both_go_on_without_old_pictures(exported, both, cache_dir, tmp_path):
    """Both are fitted further; the features of the regression stay as they are."""
    fields = {"init_heads": True, "epochs": 1, "seed": 3}
    config = sum_config(cache_dir, exported, distillation=1.0, **fields)
    run = Run(small_runs.run(config, tmp_path))
    before, after = (Run(w).variables["params"] for w in (both, run.directory))
    for part in ("classifier", "mobilenet_head"):
        with pytest.raises(AssertionError):
            chex.assert_trees_all_close(before[part], after[part])
    layers = [tree["regression"]["classifier"] for tree in (before, after)]
    assert not np.array_equal(layers[0]["kernel"], layers[1]["kernel"])
    chex.assert_trees_all_equal(
        *(tree["regression"]["backbone"] for tree in (before, after))
    )


def test_a_network_without_one_has_none_to_go_on_with(cache_dir, pretrained, tmp_path):
    """A detector from before there was a regression, for example."""
    config = sum_config(cache_dir, pretrained, epochs=1, **{"model.regression": False})
    start = small_runs.run(config, tmp_path / "run")
    with pytest.raises(UserError, match=r"give --config\.model\.regression=False"):
        setup.network(sum_config(cache_dir, start, init_heads=True), None)


def test_its_features_stay_those_of_before(both, pretrained, exported, cache_dir):
    """Where the training goes on from its detector, too."""
    before = Run(pretrained).variables
    net = setup.network(sum_config(cache_dir, exported, init_heads=True), None)
    for variables in (Run(both).variables, net.variables):
        for collection in ("params", "batch_stats"):
            found = variables[collection]["regression"]["backbone"]
            expected = {name: before[collection][name] for name in found}
            chex.assert_trees_all_equal(found, expected)
    trained = Run(both).variables["params"]["backbone"]["conv1"]["kernel"]
    assert not np.array_equal(trained, before["params"]["conv1"]["kernel"])


def test_of_many_images_some_are_fitted(cache_dir, pretrained, tmp_path, monkeypatch):
    """They are drawn by the seed; each has its own label."""
    solved = []
    solve = logistic.solve
    monkeypatch.setattr(
        logistic, "solve", lambda *args: solved.append(args) or solve(*args)
    )
    most = {}
    for name, number, seed in (("all", 99, 0), ("some", 10, 0), ("other", 10, 1)):
        monkeypatch.setattr(logistic, "_MOST", number)
        config = sum_config(cache_dir, pretrained, epochs=1, seed=seed)
        training = setup.prepare(config, Run(tmp_path / name), None)
        logistic.fit(config, training, iter)
        most[name] = solved[-1][:2]
        if name == "all":
            source = training.images.train
            labels = [source[i]["label"] for i in range(len(source))]
            np.testing.assert_array_equal(most[name][1], labels)
    assert {name: len(labels) for name, (_, labels) in most.items()} == {
        "all": 24,
        "some": 10,
        "other": 10,
    }
    features, labels = most["all"]
    label_of = {
        row.tobytes(): label for row, label in zip(features, labels, strict=True)
    }
    assert len(label_of) == 24
    for row, label in zip(*most["some"], strict=True):
        assert label_of[row.tobytes()] == label
    assert not np.array_equal(most["some"][0], most["other"][0])


@pytest.mark.parametrize(
    "change", [{"model.kind": "linear"}, {"new_weights": True, "trainable": "all"}]
)
def test_it_is_for_fdftnet_on_a_known_backbone(change, cache_dir):
    config = sum_config(cache_dir, "base", **change)
    with pytest.raises(UserError, match=r"expected --config\.model\.regression=False"):
        config_values.check(config)
