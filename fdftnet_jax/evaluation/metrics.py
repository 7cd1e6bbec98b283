"""Metrics of the forgery decision: real = 0, fake = 1, score = P(fake).

scikit-learn computes them, over all images of a split at once.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import special
from sklearn import metrics

from fdftnet_jax import errors


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


def binary_metrics(labels: npt.ArrayLike, logits: npt.ArrayLike) -> dict[str, Any]:
    """Scores the predictions for a whole split.

    An image is called fake when its score is at least 0.5, that is `logit >= 0`: a tie
    is called fake. Ranks are taken from `logit`, which orders images as the score does
    but does not saturate; images with equal logits count half in the AUROC.

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
        loss: mean cross entropy, nats.
        confusion: counts of images: `true_real` (real, called real), `false_fake`
          (real, called fake), `false_real` (fake, called real), `true_fake` (fake,
          called fake).

    Raises:
      ValueError: shapes do not fit, or a label is neither 0 nor 1.
      UserError: a class is missing, or a logit is not finite.
    """
    truth = check_labels(labels)
    values = np.asarray(logits, np.float64)
    if values.shape != (truth.size, 2):
        raise ValueError(
            f"Logits must have shape {(truth.size, 2)}, found {values.shape}."
        )
    broken = int((~np.isfinite(values)).any(axis=1).sum())
    if broken:
        raise errors.UserError(
            f"Expected finite logits, found NaN or infinity for {broken} of "
            f"{truth.size} images; the training probably diverged: train again with a "
            "lower learning rate."
        )
    ranking = logit(values)
    called_fake = ranking >= 0
    confusion = metrics.confusion_matrix(truth, called_fake, labels=[0, 1])
    false_positive, true_positive, _ = metrics.roc_curve(
        truth, ranking, drop_intermediate=False
    )
    # Strictly increasing along the curve, from -1 to 1.
    excess = false_positive - (1 - true_positive)
    return {
        "num_examples": truth.size,
        "accuracy": float(metrics.accuracy_score(truth, called_fake)),
        "auc": float(metrics.roc_auc_score(truth, ranking)),
        "average_precision": float(metrics.average_precision_score(truth, ranking)),
        "eer": float(np.interp(0.0, excess, false_positive)),
        "loss": float(np.logaddexp(0, np.where(truth == 1, -ranking, ranking)).mean()),
        "confusion": {
            "true_real": int(confusion[0, 0]),
            "false_fake": int(confusion[0, 1]),
            "false_real": int(confusion[1, 0]),
            "true_fake": int(confusion[1, 1]),
        },
    }
