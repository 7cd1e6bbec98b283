"""The temperature and the threshold of a detector, from a scored split."""

import numpy as np
from scipy import optimize

from fdftnet_jax.errors import UserError
from fdftnet_jax.evaluation import metrics

# The temperature of a detector that ranks images worse than chance has no upper end.
TEMPERATURES = (0.01, 100.0)


def fit_temperature(
    truth: np.ndarray, ranking: np.ndarray, training_prior: float
) -> float:
    """The temperature T that makes probabilities of logits, 1 / (1 + exp(-z / T)).

    It minimises the cross entropy over the images, weighted so that fakes have the
    share that they have among the images of the training. (The two differ where equally
    many shots of each class are drawn from unequally many images.) The targets are not
    0 and 1 but 0.5 / (n_real + 1) and (n_fake + 0.5) / (n_fake + 1): the error rate
    that Jeffreys's prior expects after n images without an error, as Platt (1999) did
    with another prior. So T stays above 0 where the classes are separated, and errs on
    the side of doubt where images and errors are few. It is kept within `TEMPERATURES`.

    Args:
      truth: [n], real = 0 and fake = 1.
      ranking: [n], logits of the scores.
      training_prior: share of fakes among the images of the training, in (0, 1).
    """
    counts = np.bincount(truth, minlength=2)
    low, high = 0.5 / (counts[0] + 1), (counts[1] + 0.5) / (counts[1] + 1)
    target = np.where(truth == 1, high, low)
    weights = metrics.class_weights(truth, training_prior)

    # Convex in 1 / T, so that it has one minimum in log T, too.
    def loss(log_temperature: float) -> float:
        scaled = ranking * np.exp(-log_temperature)
        return float(weights @ (np.logaddexp(0, scaled) - target * scaled))

    found = optimize.minimize_scalar(
        loss,
        bounds=tuple(np.log(TEMPERATURES)),
        method="bounded",
        options={"xatol": 1e-9},
    )
    return float(np.exp(found.x))


def choose_threshold(
    truth: np.ndarray, ranking: np.ndarray, rule: str, fpr: float
) -> float:
    """The threshold on logits, by a rule.

    Both rules choose among the thresholds that validation's images attain; between that
    and the next lower logit validation does not choose, and the middle is taken.

    'eer': the false positive rate is nearest to the false negative rate; of several the
    one with the smaller sum of both. 'fpr': the largest true positive rate with a false
    positive rate of at most `fpr`; of several the highest threshold. Where no threshold
    within that calls any image fake, it lies just above the highest logit.

    Args:
      truth: [n], real = 0 and fake = 1.
      ranking: [n], logits of the scores.
      rule: 'eer' or 'fpr'.
      fpr: of the rule 'fpr'.
    """
    attained = np.unique(ranking)[::-1]
    # Called fake at each threshold, from +infinity, which calls none, to the lowest.
    thresholds = np.append(np.inf, attained)
    false_positive, true_positive = (
        (values.size - np.searchsorted(values, thresholds)) / values.size
        for values in (np.sort(ranking[truth == label]) for label in (0, 1))
    )
    if rule == "eer":
        miss = 1 - true_positive
        order = np.lexsort(
            (
                np.arange(thresholds.size),
                (false_positive + miss).round(12),
                np.abs(false_positive - miss).round(12),
            )
        )
        index = int(order[0])
    elif rule == "fpr":
        within = true_positive[false_positive <= fpr]
        index = int(np.argmax(within))
    else:
        raise UserError(
            f"expected calibration.rule to be 'eer' or 'fpr', found {rule!r}; choose "
            "one of them"
        )
    if index == 0:
        return float(np.nextafter(attained[0], np.inf))
    if index == attained.size:
        return float(attained[-1])
    return float((attained[index - 1] + attained[index]) / 2)
