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
