import dataclasses
import json
import math
from fractions import Fraction

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
    assert made.thresholds.verdicts([5.0]) == ["real"]
    assert made.notes[-2:] == [
        "the threshold calls no image of validation fake",
        "validation has 1 real images, too few to tell a false positive rate of 0.1 "
        "from 0: the threshold allows none",
    ]


# The band.


def judged(labels, ranking, lower, upper, prior):
    """Exact (share decided, share of all wrong, false and missed), at a prior."""
    labels, ranking = labels.tolist(), ranking.tolist()
    num_fake = sum(labels)
    of_class = [(1 - prior) / (len(labels) - num_fake), prior / num_fake]
    decided = wrong = Fraction(0)
    errors = [0, 0]
    for label, logit in zip(labels, ranking, strict=True):
        if lower <= logit < upper:
            continue
        decided += of_class[label]
        if (logit >= upper) != bool(label):
            wrong += of_class[label]
            errors[label] += 1
    rates = Fraction(errors[0], len(labels) - num_fake), Fraction(errors[1], num_fake)
    return decided, wrong, rates


@pytest.mark.parametrize("seed", range(60))
def test_no_other_pair_of_thresholds_decides_more(seed):
    """All pairs are tried, in fractions."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(rng.integers(2, 26)) % 3 % 2)
    ranking = np.round(rng.normal(size=labels.size) + 2 * labels, seed % 3)
    prior = Fraction(int(rng.integers(1, 10)), 10)
    bound = Fraction(int(rng.choice([1, 5, 10, 25, 40])), 100)
    places = [*np.unique(ranking), np.inf]
    every = [
        judged(labels, ranking, lower, upper, prior)
        for number, lower in enumerate(places)
        for upper in places[number:]
    ]
    within = [found for found in every if found[1] <= bound * found[0]]
    found = calibration.choose_band(labels, ranking, float(prior), float(bound))
    assert found[0] <= found[1] and np.isfinite(found).all()
    chosen = judged(labels, ranking, *found, prior)
    assert chosen in within
    most = max(decided for decided, *_ in within)
    assert chosen[0] == most
    balance = min(
        (abs(false - missed), false + missed)
        for decided, _, (false, missed) in within
        if decided == most
    )
    assert (abs(chosen[2][0] - chosen[2][1]), sum(chosen[2])) == balance


@pytest.mark.parametrize("max_wrong", [0.001, 0.02, 0.1, 0.3])
@pytest.mark.parametrize("prior", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("spread", [0.0, 1.5, 2.0, 4.0])
def test_among_the_decided_no_more_than_the_bound_are_wrong(spread, prior, max_wrong):
    labels, ranking = simulated(1500, prior=0.3, spread=spread, seed=7)
    if not spread:  # Scores that mean nothing.
        ranking = np.random.default_rng(1).normal(size=labels.size)
    made = fit(labels, ranking, rule="band", max_wrong=max_wrong, prior=prior)
    real, fake = ranking < made.lower_logit, ranking >= made.threshold_logit
    assert not (real & fake).any()
    rates = [
        (share[labels == 0].mean(), share[labels == 1].mean()) for share in (real, fake)
    ]
    (right_real, missed), (alarms, right_fake) = rates
    wrong = (1 - prior) * alarms + prior * missed
    decided = wrong + (1 - prior) * right_real + prior * right_fake
    assert wrong <= max_wrong * decided + 1e-9
    assert made.validation["share_decided"] == pytest.approx(decided)
    if decided:
        share = wrong / decided
        assert made.validation["wrong_of_decided"] == pytest.approx(share)
    accuracy = np.mean(np.where(labels == 1, fake, real))
    assert made.validation["accuracy_at_threshold"] == pytest.approx(accuracy)
    few = any("validation is decided, the rest is too close" in n for n in made.notes)
    assert few == (decided < 0.5)


def test_the_band_is_empty_where_everything_may_be_decided():
    labels = np.array([0, 0, 1, 1] * 50)
    made = fit(labels, np.tile([-3, -2, 1, 4.0], 50), rule="band")
    assert made.lower_logit == made.threshold_logit == -0.5
    assert made.validation["share_decided"] == 1 and made.notes == []
    # Within the bound a twentieth of each class may be wrong.
    ranking = np.tile([-3, -2, 1, 4.0], 50)
    ranking[[0, 1, 2, 3]] *= -1
    made = fit(labels, ranking, rule="band", max_wrong=0.05)
    even = fit(labels, ranking, rule="eer")
    assert made.lower_logit == made.threshold_logit == even.threshold_logit


def test_between_the_thresholds_the_verdict_is_undecided():
    labels, ranking = simulated(500, spread=1.5)
    made = fit(labels, ranking, rule="band", max_wrong=0.05, prior=0.2)
    low, high = made.lower_logit, made.threshold_logit
    assert low < high
    places = [
        np.nextafter(low, -9),
        low,
        (low + high) / 2,
        np.nextafter(high, -9),
        high,
    ]
    expected = ["real", "undecided", "undecided", "undecided", "fake"]
    assert made.thresholds.verdicts(places).tolist() == expected
    for logit, probability in (
        (low, made.lower_probability),
        (high, made.threshold_probability),
    ):
        assert made.probability(logit) == pytest.approx(probability)
    assert made.rule_in_words == "at most 0.05 of the verdicts on validation wrong"


def test_validation_that_is_too_small_for_the_bound():
    labels = np.array([0, 1] * 20)
    ranking = np.linspace(-1, 1, 40) + labels
    made = fit(labels, ranking, rule="band")
    assert made.validation["wrong_of_decided"] == 0
    assert made.notes[-1] == (
        "validation has 40 images, too few to tell a share of 0.02 wrong verdicts from "
        "0: the thresholds allow none"
    )
    assert "too few" not in " ".join(
        fit(labels, ranking, rule="band", max_wrong=0.03).notes
    )


def test_a_detector_of_which_nothing_can_be_decided():
    labels = np.array([0, 1] * 200)
    made = fit(labels, -1.0 * labels, rule="band")
    assert set(made.thresholds.verdicts(-1.0 * labels)) == {"undecided"}
    assert made.validation["share_decided"] == 0
    assert "wrong_of_decided" not in made.validation


@pytest.mark.parametrize("rule", ["eer", "fpr", "band"])
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
    np.testing.assert_array_equal(made.thresholds.verdicts(ranking) == "fake", above)
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


@pytest.mark.parametrize("rule", ["fpr", "band"])
def test_a_file_gives_back_every_bit(rule):
    labels, ranking = simulated(100)
    made = fit(labels, ranking, rule=rule, max_wrong=0.1)
    text = json.dumps(made.to_dict(), allow_nan=False)
    assert records.Calibration.from_dict(json.loads(text)) == made


def test_a_file_from_before_the_band():
    labels, ranking = simulated(100)
    made = fit(labels, ranking)
    found = made.to_dict()
    for name in ("max_wrong", "lower_logit", "lower_probability"):
        del found[name]
    assert records.Calibration.from_dict(found) == made
    assert made.thresholds.lower == made.thresholds.upper == made.threshold_logit


@pytest.mark.parametrize("change", [{"schema_version": 0}, {"more": 1}, {"fpr": None}])
def test_another_version_is_not_read(change):
    labels, ranking = simulated(100)
    found = fit(labels, ranking).to_dict() | change
    if change == {"fpr": None}:
        del found["fpr"]
    assert records.Calibration.from_dict(found) is None
