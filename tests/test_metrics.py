import itertools
import json
import math

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from fdftnet_jax import errors
from fdftnet_jax.evaluation import metrics


def logits_of(margins):
    """Logits whose difference is `margins`, with an offset that must not matter."""
    margins = np.asarray(margins, np.float64)
    # Small integers, so that equal margins stay exactly equal.
    offset = np.arange(margins.size) % 7 - 3.0
    return np.column_stack([offset, offset + margins])


def random_case(n=300, seed=0, ties=False):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    margins = rng.normal(size=n) + labels
    return labels, np.round(margins * 2) / 2 if ties else margins


def test_hand_computed_example():
    # Ranked from fake to real: fake, real, fake, fake, real.
    labels = np.array([1, 0, 1, 1, 0])
    margins = np.array([2.0, 1.0, 0.5, -0.5, -2.0])
    actual = metrics.binary_metrics(labels, logits_of(margins))
    assert actual["num_examples"] == 5
    assert actual["accuracy"] == pytest.approx(3 / 5)
    assert actual["auc"] == pytest.approx(4 / 6)
    # Precision 1, 2/3, 3/4 at recall 1/3, 2/3, 1.
    assert actual["average_precision"] == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)
    # FPR 1/2 is constant while TPR goes 1/3, 2/3: FPR = 1 - TPR at TPR = 1/2.
    assert actual["eer"] == pytest.approx(1 / 2)
    assert actual["confusion"] == {
        "true_real": 1,
        "false_fake": 1,
        "false_real": 1,
        "true_fake": 2,
    }
    wrongness = [-2.0, 1.0, -0.5, 0.5, -2.0]
    loss = sum(math.log(1 + math.exp(value)) for value in wrongness) / 5
    assert actual["loss"] == pytest.approx(loss, rel=1e-12)


def test_logit_and_score_are_those_of_softmax():
    logits = np.random.default_rng(1).normal(scale=4, size=(3, 5, 2))
    exponentials = np.exp(logits)
    expected = exponentials[..., 1] / exponentials.sum(axis=-1)
    np.testing.assert_allclose(metrics.score(logits), expected, rtol=1e-12)
    np.testing.assert_allclose(
        metrics.logit(logits), np.log(expected / (1 - expected)), atol=1e-9
    )
    extreme = metrics.score([[0.0, 1e4], [1e4, 0.0]])
    np.testing.assert_array_equal(extreme, [1, 0])


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_auc_is_the_mann_whitney_statistic(seed, ties):
    labels, margins = random_case(seed=seed, ties=ties)
    fake, real = margins[labels == 1], margins[labels == 0]
    u = stats.mannwhitneyu(fake, real).statistic
    actual = metrics.binary_metrics(labels, logits_of(margins))["auc"]
    assert actual == pytest.approx(u / (fake.size * real.size), abs=1e-12)


@pytest.mark.parametrize("ties", [False, True])
def test_eer_is_where_the_error_rates_cross(ties):
    labels, margins = random_case(seed=3, ties=ties)
    # Both rates at every threshold, and bisection on the line through the two
    # thresholds between which their difference changes sign.
    thresholds = np.concatenate([[np.inf], np.unique(margins)[::-1]])
    rates = [
        ((margins[labels == 0] >= t).mean(), (margins[labels == 1] < t).mean())
        for t in thresholds
    ]
    after = next(i for i, (fpr, fnr) in enumerate(rates) if fpr >= fnr)
    (fpr0, fnr0), (fpr1, fnr1) = rates[after - 1], rates[after]
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        difference = (fpr0 - fnr0) * (1 - middle) + (fpr1 - fnr1) * middle
        low, high = (middle, high) if difference < 0 else (low, middle)
    expected = fpr0 * (1 - low) + fpr1 * low
    actual = metrics.binary_metrics(labels, logits_of(margins))["eer"]
    assert actual == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    "margins, accuracy, auc, precision, eer",
    [
        ([-2, -1, 1, 2], 1.0, 1.0, 1.0, 0.0),
        ([2, 1, -1, -2], 0.0, 0.0, (1 / 3 + 2 / 4) / 2, 1.0),
        ([0, 0, 0, 0], 0.5, 0.5, 0.5, 0.5),
    ],
    ids=["perfect", "reversed", "constant"],
)
def test_extreme_detectors(margins, accuracy, auc, precision, eer):
    actual = metrics.binary_metrics([0, 0, 1, 1], logits_of(margins))
    assert actual["accuracy"] == accuracy
    assert actual["auc"] == pytest.approx(auc)
    assert actual["average_precision"] == pytest.approx(precision)
    assert actual["eer"] == pytest.approx(eer)


def test_tie_at_one_half_is_called_fake():
    actual = metrics.binary_metrics([0, 1], [[1.5, 1.5], [-3.0, -3.0]])
    assert actual["confusion"] == {
        "true_real": 0,
        "false_fake": 1,
        "false_real": 0,
        "true_fake": 1,
    }
    assert actual["loss"] == pytest.approx(math.log(2))


def test_saturated_scores_keep_their_order_and_a_finite_loss():
    # All scores round to exactly 1, and softmax would overflow.
    actual = metrics.binary_metrics([0, 1, 1], [[0, 1e3], [0, 2e3], [0, 3e3]])
    assert actual["auc"] == 1.0
    assert actual["loss"] == pytest.approx(1e3 / 3)


def test_result_is_plain_json_from_low_precision_arrays():
    labels, margins = random_case(20)
    actual = metrics.binary_metrics(
        jnp.asarray(labels), jnp.asarray(logits_of(margins), jnp.bfloat16)
    )
    assert json.loads(json.dumps(actual)) == actual
    assert sum(actual["confusion"].values()) == actual["num_examples"] == 20


@pytest.mark.parametrize("label, found", [(0, "3 real and 0"), (1, "0 real and 3")])
def test_one_class_is_a_user_error(label, found):
    with pytest.raises(errors.UserError, match=found):
        metrics.binary_metrics([label] * 3, np.zeros((3, 2)))


def test_no_images_are_a_user_error():
    with pytest.raises(errors.UserError, match="0 real and 0 fake"):
        metrics.binary_metrics([], np.zeros((0, 2)))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_a_user_error(value):
    logits = np.zeros((4, 2))
    logits[1] = value
    with pytest.raises(errors.UserError, match="1 of 4"):
        metrics.binary_metrics([0, 1, 0, 1], logits)


@pytest.mark.parametrize(
    "labels, shape",
    [([0, 1, 2], (3, 2)), ([[0, 1]], (2, 2)), ([0, 1], (3, 2)), ([0, 1], (2,))],
)
def test_malformed_arrays_are_refused(labels, shape):
    with pytest.raises(ValueError, match="must"):
        metrics.binary_metrics(labels, np.zeros(shape))


# Rates within a bound, and probabilities.


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("bound", [0.0, 0.001, 0.01, 0.05, 0.3, 1.0])
def test_tpr_within_a_bound_of_the_fpr(bound, ties):
    labels, margins = random_case(400, seed=5, ties=ties)
    # Every threshold by brute force, in whole numbers: k of n <= bound.
    real, fake = margins[labels == 0], margins[labels == 1]
    allowed = [
        (fake >= t).sum() / fake.size
        for t in [*np.unique(margins), np.inf]
        if (real >= t).sum() <= round(bound * real.size, 9)
    ]
    assert metrics.tpr_at_fpr(labels, margins, bound) == max(allowed)
    found = metrics.binary_metrics(labels, logits_of(margins))
    if f"tpr_at_fpr_{bound}" in found:
        assert found[f"tpr_at_fpr_{bound}"] == max(allowed)


def test_a_bound_is_inclusive_whatever_its_float():
    """One false positive of 100 is within 1 %, 3 of 300 and 7 of 700 are, too."""
    for number in (100, 300, 700):
        # 1 % of the real images above every fake but one half, the others below.
        above, fake = number // 100, 10
        margins = [*[2.0] * above, *[-2.0] * (number - above), *[1.0] * 5, *[3.0] * 5]
        labels = [0] * number + [1] * fake
        assert metrics.tpr_at_fpr(labels, margins, 0.01) == 1
        assert metrics.tpr_at_fpr(labels, margins, 0.009) == 0.5


def test_class_weights_give_fakes_their_share():
    labels = np.array([0, 0, 0, 1])
    weights = metrics.class_weights(labels, 0.4)
    assert weights.mean() == pytest.approx(1)
    assert weights[labels == 1].sum() / weights.sum() == pytest.approx(0.4)
    np.testing.assert_allclose(metrics.class_weights(labels, 0.25), 1)


@pytest.mark.parametrize(("number", "bins"), [(4, 1), (157, 7), (300, 15), (1003, 15)])
@pytest.mark.parametrize("weighted", [False, True])
def test_calibration_error_by_hand(number, bins, weighted):
    rng = np.random.default_rng(number)
    labels, probability = rng.integers(0, 2, number), rng.random(number)
    weights = rng.random(number) if weighted else np.ones(number)
    order = np.argsort(probability)
    # Parts of equally many, one by one.
    ends = [math.ceil(k * number / bins) for k in range(bins + 1)]
    total = 0.0
    for start, end in itertools.pairwise(ends):
        part = order[start:end]
        of_labels = sum(weights[i] * labels[i] for i in part)
        of_probability = sum(weights[i] * probability[i] for i in part)
        total += abs(of_labels - of_probability)
    found = metrics.calibration_error(
        labels, probability, weights if weighted else None
    )
    assert found == pytest.approx(total / weights.sum(), rel=1e-12)


def test_calibration_error_parts_no_ties():
    """Its value must not depend on the order of the images."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 200)
    probability = rng.choice([0.1, 0.4, 0.8], 200)
    expected = sum(
        abs(np.sum(labels[probability == p] - p)) for p in np.unique(probability)
    )
    for order in (np.arange(200), rng.permutation(200)):
        found = metrics.calibration_error(labels[order], probability[order])
        assert found == pytest.approx(expected / 200)


def test_calibration_error_of_the_right_probability_vanishes():
    rng = np.random.default_rng(0)
    probability = rng.random(100_000)
    labels = (rng.random(100_000) < probability).astype(int)
    assert metrics.calibration_error(labels, probability) < 0.01
    wrong = metrics.calibration_error(labels, probability**2)
    # E|p - p^2|
    assert wrong == pytest.approx(1 / 2 - 1 / 3, abs=0.01)
