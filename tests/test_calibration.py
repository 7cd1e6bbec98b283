import dataclasses
import json
import math

import numpy as np
import pytest
from scipy import optimize, special, stats
from sklearn.metrics import log_loss

from configs import base
from fdftnet_jax import records
from fdftnet_jax.errors import UserError
from fdftnet_jax.evaluation import calibration
from fdftnet_jax.evaluation.calibration import Options


def logits_of(ranking):
    ranking = np.asarray(ranking, np.float64)
    return np.stack([-ranking / 2, ranking / 2], axis=1)


def simulated(number, prior=0.5, seed=0, spread=3.0):
    """Labels and their true log odds: real and fake are normal, `spread` apart."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(number) < prior).astype(int)
    evidence = rng.normal(size=number) + spread * labels
    # log N(x; spread, 1) - log N(x; 0, 1)
    log_odds = spread * evidence - spread**2 / 2
    return labels, log_odds + special.logit(prior)


def fit(labels, ranking, training_prior=0.5, **options):
    return calibration.fit(
        labels, logits_of(ranking), Options(**options), training_prior=training_prior
    )


def test_defaults_are_those_of_the_configs():
    """Runs of earlier versions have no such section."""
    assert Options.of(base.get_config().to_dict()) == Options() == Options.of({})


# Temperature.


@pytest.mark.parametrize("scale", [0.1, 1.0, 7.0])
def test_a_known_scale_is_found(scale):
    labels, log_odds = simulated(20_000)
    made = fit(labels, scale * log_odds)
    assert made.temperature == pytest.approx(scale, rel=0.03)
    expected = special.expit(log_odds)
    found = made.probability(scale * log_odds)
    assert np.abs(found - expected).max() < 0.02


@pytest.mark.parametrize("training_prior", [0.5, 0.95])
def test_it_minimises_the_loss(training_prior):
    """Against another optimiser, on the loss of scikit-learn over soft targets."""
    labels, log_odds = simulated(300)
    ranking = 4 * log_odds
    counts = np.bincount(labels)
    low, high = 0.5 / (counts[0] + 1), (counts[1] + 0.5) / (counts[1] + 1)
    target = np.where(labels == 1, high, low)
    often = np.where(labels == 1, training_prior, 1 - training_prior) / counts[labels]

    def loss(inverse):
        probability = special.expit(inverse * ranking)
        # Every image once as fake and once as real.
        return log_loss(
            np.repeat([1, 0], 300),
            np.tile(probability, 2),
            sample_weight=np.concatenate([target, 1 - target]) * np.tile(often, 2),
        )

    found = calibration.fit_temperature(labels, ranking, training_prior)
    best = optimize.brute(loss, [(0.05, 1.0)], Ns=400)
    assert 1 / found == pytest.approx(float(best[0]), rel=1e-3)


@pytest.mark.parametrize("number", [1, 10, 1000])
@pytest.mark.parametrize("margin", [0.3, 5.0])
def test_separated_classes_are_as_sure_as_their_number_allows(number, margin):
    """Of logits +-m: 1 / (1 + exp(-m / T)) = (n + 1/2) / (n + 1)."""
    labels = np.repeat([0, 1], number)
    made = fit(labels, margin * (2 * labels - 1))
    assert made.temperature == pytest.approx(
        margin / math.log(2 * number + 1), rel=1e-5
    )
    assert made.probability(margin) == pytest.approx((number + 0.5) / (number + 1))
    assert made.threshold_logit == 0
    assert made.validation["accuracy_at_threshold"] == 1
    assert made.notes == []


def test_scores_that_mean_nothing_have_the_highest_temperature():
    labels, log_odds = simulated(500)
    made = fit(labels, -log_odds)
    assert made.temperature == pytest.approx(calibration.TEMPERATURES[1], rel=0.02)
    assert "temperature is at the end of its range" in made.notes[0]
    assert np.ptp(made.probability(-log_odds)) < 0.1


def test_raising_the_scale_raises_the_temperature_alone():
    labels, log_odds = simulated(400)
    one, three = fit(labels, log_odds), fit(labels, 3 * log_odds)
    assert three.temperature == pytest.approx(3 * one.temperature, rel=1e-6)
    assert three.threshold_logit == pytest.approx(3 * one.threshold_logit)
    for name in ("threshold_probability", "shift"):
        assert getattr(three, name) == pytest.approx(getattr(one, name), rel=1e-6)
    assert three.validation["loss_calibrated"] == pytest.approx(
        one.validation["loss_calibrated"], rel=1e-6
    )


# Prior.


@pytest.mark.parametrize("prior", [0.01, 0.3, 0.9])
def test_a_prior_is_that_of_pictures_drawn_anew(prior):
    """Of pictures with P(fake) near p, a share p is fake, under that prior."""
    labels, log_odds = simulated(40_000, spread=2.0)
    made = fit(labels, 2 * log_odds, prior=prior)
    others, odds = simulated(400_000, prior, seed=1, spread=2.0)
    # What the network says of them: its training had as many of each class.
    seen = 2 * (odds - special.logit(prior))
    probability = made.probability(seen)
    parts = np.array_split(np.argsort(probability), 20)
    for part in parts:
        rate = others[part].mean()
        noise = math.sqrt(max(rate * (1 - rate), 1e-4) / part.size)
        assert probability[part].mean() == pytest.approx(rate, abs=5 * noise + 0.012)
    assert made.shift == pytest.approx(math.log(prior / (1 - prior)))


def test_validation_of_other_proportions_than_the_training():
    """Shots are drawn evenly from a folder with one fake in ten."""
    labels, log_odds = simulated(40_000, prior=0.1)
    even = log_odds - special.logit(0.1)
    made = fit(labels, 3 * even, prior=0.1)
    assert made.temperature == pytest.approx(3, rel=0.05)
    np.testing.assert_allclose(
        made.probability(3 * even), special.expit(log_odds), atol=0.03
    )
    for name in ("brier", "loss", "ece"):
        found = made.validation
        assert found[f"{name}_calibrated"] < found[f"{name}_raw"]
    assert made.validation["ece_calibrated"] < 0.005


def test_prior_0_is_that_of_the_training():
    labels, log_odds = simulated(500, prior=0.2)
    made = fit(labels, log_odds, training_prior=0.2, prior=0)
    assert (made.prior, made.training_prior, made.shift) == (0.2, 0.2, 0)


def test_figures_by_reweighting():
    """Weights are as good as pictures that come several times."""
    labels = np.array([0, 0, 0, 0, 1, 1])
    ranking = np.array([-3.0, -1.0, 0.5, -2.0, 2.0, -0.2])
    made = fit(labels, ranking, prior=0.8)
    often = np.repeat(np.arange(6), [1, 1, 1, 1, 8, 8])
    assert labels[often].mean() == 0.8
    probability = made.probability(ranking)[often]
    expected = np.mean((probability - labels[often]) ** 2)
    assert made.validation["brier_calibrated"] == pytest.approx(expected)
    assert made.validation["loss_calibrated"] == pytest.approx(
        log_loss(labels[often], probability)
    )
    even = np.repeat(np.arange(6), [1, 1, 1, 1, 2, 2])
    assert made.validation["loss_raw"] == pytest.approx(
        log_loss(labels[even], special.expit(ranking[even]))
    )


# Threshold.


def rates(labels, ranking, threshold):
    called = ranking >= threshold
    return called[labels == 0].mean(), called[labels == 1].mean()


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("fpr", [0.0, 0.01, 0.1, 1.0])
def test_rule_fpr(fpr, ties):
    labels, ranking = simulated(357)
    ranking = np.round(ranking, 0) if ties else ranking
    threshold = calibration.choose_threshold(labels, ranking, "fpr", fpr)
    found = rates(labels, ranking, threshold)
    every = [rates(labels, ranking, t) for t in [*np.unique(ranking), np.inf]]
    within = [(tpr, -false) for false, tpr in every if false <= fpr]
    # The most fakes, and with them the fewest real ones.
    assert (found[1], -found[0]) == max(within)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("number", [11, 300])
def test_rule_eer(number, ties):
    labels, ranking = simulated(number, spread=1.0, prior=0.3)
    ranking = np.round(ranking, 0) if ties else ranking
    threshold = calibration.choose_threshold(labels, ranking, "eer", 0.01)
    false, tpr = rates(labels, ranking, threshold)
    every = [rates(labels, ranking, t) for t in [*np.unique(ranking), np.inf]]
    assert abs(false - (1 - tpr)) == pytest.approx(
        min(abs(f - 1 + t) for f, t in every)
    )


@pytest.mark.parametrize("rule", ["eer", "fpr"])
def test_threshold_is_halfway_between_neighbours(rule):
    labels = np.array([0, 0, 1, 1])
    assert (
        calibration.choose_threshold(labels, np.array([-3, -2, 1, 4.0]), rule, 0)
        == -0.5
    )


def test_nothing_within_the_rate_is_fake():
    labels = np.array([1, 1, 0])
    made = fit(labels, [0.0, 1.0, 5.0], rule="fpr", fpr=0.1)
    assert made.threshold_logit > 5
    assert math.isfinite(made.threshold_logit)
    assert not made.called_fake([5.0]).any()
    assert made.notes[-2:] == [
        "the threshold calls no image of validation fake",
        "validation has 1 real images, too few to tell a false positive rate of 0.1 "
        "from 0: the threshold allows none",
    ]


@pytest.mark.parametrize("rule", ["eer", "fpr"])
@pytest.mark.parametrize("value", [0.0, -4.0])
def test_scores_that_are_all_equal(rule, value):
    made = fit([0, 1, 0, 1], [value] * 4, rule=rule)
    numbers = dataclasses.asdict(made)
    assert np.isfinite([v for v in numbers.values() if isinstance(v, float)]).all()


def test_a_rule_that_is_none():
    with pytest.raises(UserError, match=r"expected calibration.rule to be 'eer'"):
        fit([0, 1], [0, 1], rule="best")


def test_verdict_and_probability_agree():
    labels, ranking = simulated(200)
    made = fit(labels, ranking, rule="fpr", fpr=0.05, prior=0.1)
    above = made.probability(ranking) >= made.threshold_probability
    np.testing.assert_array_equal(made.called_fake(ranking), above)
    expected = stats.logistic.cdf(made.threshold_logit / made.temperature + made.shift)
    assert made.threshold_probability == pytest.approx(expected)


@pytest.mark.parametrize(
    ("labels", "logits", "message"),
    [
        ([0, 0], np.zeros((2, 2)), "2 real and 0 fake"),
        ([], np.zeros((0, 2)), "0 real and 0 fake"),
        ([0, 1], np.full((2, 2), np.nan), "NaN or infinity for 2 of 2"),
    ],
)
def test_what_cannot_be_calibrated(labels, logits, message):
    with pytest.raises(UserError, match=message):
        calibration.fit(labels, logits, Options(), training_prior=0.5)


# In a file.


def test_a_file_gives_back_every_bit():
    labels, ranking = simulated(100)
    made = fit(labels, ranking, rule="fpr")
    text = json.dumps(made.to_dict(), allow_nan=False)
    assert records.Calibration.from_dict(json.loads(text)) == made


@pytest.mark.parametrize("change", [{"schema_version": 0}, {"more": 1}, {"fpr": None}])
def test_another_version_is_not_read(change):
    labels, ranking = simulated(100)
    found = fit(labels, ranking).to_dict() | change
    if change == {"fpr": None}:
        del found["fpr"]
    assert records.Calibration.from_dict(found) is None
