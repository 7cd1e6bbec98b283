"""Metrics of the forgery decision: real = 0, fake = 1, score = P(fake).

scikit-learn computes what it has, over all images of a split at once. `ranking` is the
logit of the score, `logit(logits)`: it orders images as the score does and does not
saturate.
"""

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import special
from sklearn import metrics

from fdftnet_jax import errors

# The false positive rates at which the true positive rate is told.
FPR_BOUNDS = (0.01, 0.001)
# Bins of the calibration error, and how many images each has at least.
ECE_BINS = 15
ECE_IMAGES = 20


def logit(logits: npt.ArrayLike) -> np.ndarray:
    """The one number that decides: log(P(fake) / P(real)).

    Args:
      logits: [..., 2], the model's outputs for real and fake.

    Returns:
      [...] float64, `logits[..., 1] - logits[..., 0]`; 0 is undecided.
    """
    values = np.asarray(logits, np.float64)
    return values[..., 1] - values[..., 0]


def score(logits: npt.ArrayLike) -> np.ndarray:
    """P(fake), `softmax(logits)[..., 1]`.

    Args:
      logits: [..., 2], the model's outputs for real and fake.

    Returns:
      [...] float64 in [0, 1].
    """
    return special.expit(logit(logits))


def check_labels(labels: npt.ArrayLike) -> np.ndarray:
    """Checks that labels are a vector of zeros and ones with both present.

    Args:
      labels: [n], real = 0 and fake = 1.

    Returns:
      [n] int64.

    Raises:
      ValueError: not a vector, or a value other than 0 and 1.
      UserError: a class is missing.
    """
    array = np.asarray(labels)
    if array.ndim != 1 or not np.isin(array, (0, 1)).all():
        raise ValueError(f"Labels must be a vector of 0 and 1, found {labels!r}.")
    counts = np.bincount(array.astype(np.int64), minlength=2)
    if not counts.all():
        raise errors.UserError(
            f"Evaluation needs real and fake images, found {counts[0]} real and "
            f"{counts[1]} fake; choose a split or folder that has both."
        )
    return array.astype(np.int64)


def ranking(labels: npt.ArrayLike, logits: npt.ArrayLike) -> np.ndarray:
    """Checks the outputs for a split, and reduces them to what decides.

    Args:
      labels: [n], real = 0 and fake = 1.
      logits: [n, 2], the model's outputs for real and fake.

    Returns:
      [n] float64, finite (see `logit`).

    Raises:
      ValueError: shapes do not fit, or a label is neither 0 nor 1.
      UserError: a class is missing, or a logit is not finite.
    """
    labels = check_labels(labels)
    values = np.asarray(logits, np.float64)
    if values.shape != (labels.size, 2):
        raise ValueError(
            f"Logits must have shape {(labels.size, 2)}, found {values.shape}."
        )
    broken = int((~np.isfinite(values)).any(axis=1).sum())
    if broken:
        raise errors.UserError(
            f"Expected finite logits, found NaN or infinity for {broken} of "
            f"{labels.size} images; the training probably diverged: train again with a "
            "lower learning rate."
        )
    return logit(values)


def binary_metrics(labels: npt.ArrayLike, logits: npt.ArrayLike) -> dict[str, Any]:
    """Scores the predictions for a whole split.

    An image is called fake when its score is at least 0.5, that is `logit >= 0`: a tie
    is called fake. Ranks are taken from `logit`; images with equal logits count half in
    the AUROC.

    Args:
      labels: [n], real = 0 and fake = 1; both must occur.
      logits: [n, 2], the model's outputs for real and fake.

    Returns:
      Plain Python numbers, ready for JSON:
        num_examples: n.
        accuracy: share of images called what they are, at score 0.5.
        auc: area under the ROC curve.
        average_precision: of fake, without interpolation.
        eer: equal error rate, where the ROC curve, linear between its points, has
          equal false positive and false negative rates.
        tpr_at_fpr_0.01, tpr_at_fpr_0.001: see `tpr_at_fpr`.
        loss: mean cross entropy, nats.
        confusion: see `confusion`.

    Raises:
      ValueError: shapes do not fit, or a label is neither 0 nor 1.
      UserError: a class is missing, or a logit is not finite.
    """
    values = ranking(labels, logits)
    labels = check_labels(labels)
    called_fake = values >= 0
    false_positive, true_positive, _ = metrics.roc_curve(
        labels, values, drop_intermediate=False
    )
    # Strictly increasing along the curve, from -1 to 1.
    excess = false_positive - (1 - true_positive)
    return {
        "num_examples": labels.size,
        "accuracy": float(metrics.accuracy_score(labels, called_fake)),
        "auc": float(metrics.roc_auc_score(labels, values)),
        "average_precision": float(metrics.average_precision_score(labels, values)),
        "eer": float(np.interp(0.0, excess, false_positive)),
        **{
            f"tpr_at_fpr_{bound}": tpr_at_fpr(labels, values, bound)
            for bound in FPR_BOUNDS
        },
        "loss": float(losses(labels, values).mean()),
        "confusion": confusion(labels, called_fake),
    }


def tpr_at_fpr(labels: npt.ArrayLike, ranking: npt.ArrayLike, bound: float) -> float:
    """The largest true positive rate whose false positive rate is within a bound.

    Over the thresholds that the images attain, an image being called fake where its
    ranking is at least the threshold, and +infinity, which calls none fake. There is no
    interpolation: with fewer than 1 / bound real images no false positive is allowed,
    and the bound cannot be told from 0.

    Args:
      labels: [n], real = 0 and fake = 1; both must occur.
      ranking: [n], higher for fake.
      bound: of the false positive rate, inclusive, in [0, 1].
    """
    false_positive, true_positive, _ = metrics.roc_curve(
        check_labels(labels), ranking, drop_intermediate=False
    )
    return float(true_positive[false_positive <= bound].max())


def confusion(labels: npt.ArrayLike, called_fake: npt.ArrayLike) -> dict[str, int]:
    """Counts images by what they are and what they were called.

    Args:
      labels: [n], real = 0 and fake = 1.
      called_fake: [n] bool.

    Returns:
      `true_real` (real, called real), `false_fake` (real, called fake), `false_real`
      (fake, called real), `true_fake` (fake, called fake).
    """
    counts = metrics.confusion_matrix(labels, called_fake, labels=[0, 1])
    names = ("true_real", "false_fake", "false_real", "true_fake")
    return {name: int(count) for name, count in zip(names, counts.ravel(), strict=True)}


def losses(labels: np.ndarray, ranking: np.ndarray) -> np.ndarray:
    """The cross entropy of each image, [n], in nats."""
    return np.logaddexp(0, np.where(labels == 1, -ranking, ranking))


def class_weights(labels: npt.ArrayLike, share_of_fake: float) -> np.ndarray:
    """Weights of mean 1 under which fakes have a given share of the images.

    Args:
      labels: [n], real = 0 and fake = 1; both must occur.
      share_of_fake: in (0, 1).

    Returns:
      [n] float64: share_of_fake / (share of fakes) for a fake image, and likewise for a
      real one.
    """
    labels = check_labels(labels)
    found = labels.mean()
    of_real, of_fake = (1 - share_of_fake) / (1 - found), share_of_fake / found
    return np.where(labels == 1, of_fake, of_real)


@dataclasses.dataclass(frozen=True)
class Bins:
    """Images by their P(fake), [bins] each.

    Attributes:
      predicted: mean P(fake).
      observed: share of fakes.
      weight: sum of the images' weights, under which both are means.
      count: number of images.
    """

    predicted: np.ndarray
    observed: np.ndarray
    weight: np.ndarray
    count: np.ndarray


def calibration_bins(
    labels: npt.ArrayLike,
    probability: npt.ArrayLike,
    weights: npt.ArrayLike | None = None,
    bins: int = ECE_BINS,
) -> Bins:
    """Bins of P(fake) of equal mass, from the lowest to the highest.

    The images, in order of P(fake), are cut into at most `bins` of equally many, at
    least `ECE_IMAGES`; images of equal probability are never parted, so that bins may
    be fewer and unequal.

    Args:
      labels: [n], real = 0 and fake = 1.
      probability: [n], P(fake).
      weights: [n], above 0, of the images in the means; None is 1 each.
      bins: at most this many.
    """
    labels = np.asarray(labels, np.float64)
    found = np.asarray(probability, np.float64)
    weight = np.ones_like(found) if weights is None else np.asarray(weights, np.float64)
    # The last image of every bin but the last bin's.
    bins = max(1, min(bins, found.size // ECE_IMAGES))
    last = -(-np.arange(1, bins) * found.size // bins) - 1
    edges = np.unique(np.sort(found)[last])
    of_bin = np.searchsorted(edges, found)
    count = np.bincount(of_bin)
    total, predicted, observed = (
        np.bincount(of_bin, weights=values)
        for values in (weight, weight * found, weight * labels)
    )
    return Bins(predicted / total, observed / total, total, count)


def calibration_error(
    labels: npt.ArrayLike,
    probability: npt.ArrayLike,
    weights: npt.ArrayLike | None = None,
) -> float:
    """Expected calibration error of P(fake), in bins of equal mass.

    With w_b the weight of a bin b (see `calibration_bins`), the error is

      sum_b w_b |mean label in b - mean P(fake) in b| / sum_b w_b

    Even of a calibrated detector it is above 0, by chance, and more so the fewer images
    there are.

    Args:
      labels: as for `calibration_bins`, and so are the others.
      probability: see there.
      weights: see there.
    """
    found = calibration_bins(labels, probability, weights)
    excess = found.weight * np.abs(found.observed - found.predicted)
    return float(excess.sum() / found.weight.sum())
