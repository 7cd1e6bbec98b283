"""The metrics of images or videos with their intervals, as plain numbers for JSON."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy import special

from fdftnet_jax.evaluation import intervals, metrics, scoring
from fdftnet_jax.records import Calibration
from fdftnet_jax.verdicts import FAKE, REAL, UNDECIDED, Thresholds

# With fewer images a share is known to no better than about +-0.14.
FEW = 50


@dataclasses.dataclass(frozen=True)
class Rows:
    """Images, or videos.

    Attributes:
      labels: [n] int64, real = 0 and fake = 1.
      ranking: [n] float64, logits of the scores.
      groups: [n] str.
      generators: [n] str, '' for real ones.
      sizes: [n] int64, number of images.
    """

    labels: np.ndarray
    ranking: np.ndarray
    groups: np.ndarray
    generators: np.ndarray
    sizes: np.ndarray

    @classmethod
    def of(cls, scores: scoring.Scores) -> "Rows":
        """The images of a split.

        Raises:
          UserError: a class is missing, or a logit is not finite.
        """
        ranking = metrics.ranking(scores.labels, scores.logits)
        groups, generators = (
            np.array([record[name] for record in scores.records])
            for name in ("group", "generator")
        )
        labels = metrics.check_labels(scores.labels)
        return cls(labels, ranking, groups, generators, np.ones_like(labels))

    def pooled(self) -> "Rows":
        """One row for all of a group, class and generator, in order of appearance."""
        keys = zip(self.groups, self.labels, self.generators, strict=True)
        numbers: dict[tuple[str, int, str], int] = {}
        of_row = np.array([numbers.setdefault(key, len(numbers)) for key in keys])
        sizes = np.bincount(of_row, weights=self.sizes).astype(np.int64)
        total = np.bincount(of_row, weights=self.ranking * self.sizes)
        groups, labels, generators = (
            np.array(column) for column in zip(*numbers, strict=True)
        )
        return Rows(labels, total / sizes, groups, generators, sizes)

    def where(self, chosen: np.ndarray) -> "Rows":
        """The rows of a mask, [n] bool."""
        return Rows(*(getattr(self, f.name)[chosen] for f in dataclasses.fields(self)))


def probabilities(
    rows: Rows, calibration: Calibration | None
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """P(fake) of each row and the weights under which it is judged, by its name."""
    raw = special.expit(rows.ranking)
    if calibration is None:
        return {"raw": (raw, np.ones_like(raw))}
    return {
        "raw": (raw, metrics.class_weights(rows.labels, calibration.training_prior)),
        "calibrated": (
            calibration.probability(rows.ranking),
            metrics.class_weights(rows.labels, calibration.prior),
        ),
    }


def decisions(
    rows: Rows, calibration: Calibration | None
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """What the verdicts of the rule 'band' come to: values and weights by metric.

    Returns:
      {} for another rule and without a calibration; else `accuracy_at_threshold`, where
      an undecided row is not called what it is; and, weighted to the prior of the
      calibration, `share_decided` and `wrong_of_decided`, the second only where a row
      is decided.
    """
    if calibration is None or calibration.rule != "band":
        return {}
    verdicts = calibration.thresholds.verdicts(rows.ranking)
    decided = verdicts != UNDECIDED
    right = verdicts == np.where(rows.labels == 1, FAKE, REAL)
    weights = metrics.class_weights(rows.labels, calibration.prior)
    found = {
        "accuracy_at_threshold": (right, np.ones_like(weights)),
        "share_decided": (decided, weights),
    }
    if decided.any():
        found["wrong_of_decided"] = (~right, weights * decided)
    return found


def verdicts(rows: Rows, calibration: Calibration | None) -> dict[str, int]:
    """Counts rows by what they are and what they were called.

    Returns:
      See `metrics.confusion`, of the decided rows; by the rule 'band', which does not
      decide all of them, also `undecided_real` and `undecided_fake`.
    """
    thresholds = calibration.thresholds if calibration else Thresholds(0.0, 0.0)
    found = thresholds.verdicts(rows.ranking)
    names = {
        "true_real": (0, REAL),
        "false_fake": (0, FAKE),
        "false_real": (1, REAL),
        "true_fake": (1, FAKE),
    }
    if calibration is not None and calibration.rule == "band":
        names |= {"undecided_real": (0, UNDECIDED), "undecided_fake": (1, UNDECIDED)}
    return {
        name: int(np.sum((rows.labels == label) & (found == verdict)))
        for name, (label, verdict) in names.items()
    }


def compute(
    rows: Rows,
    threshold: float,
    probabilities: dict[str, tuple[np.ndarray, np.ndarray]],
    *,
    decisions: Mapping[str, tuple[np.ndarray, np.ndarray]] | None = None,
    resamples: int,
    seed: int,
    only: tuple[str, ...] = (),
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Figures with their intervals, and how these were made.

    Args:
      rows: images or videos.
      threshold: on logits.
      probabilities: see `probabilities`.
      decisions: see `decisions`.
      resamples: how many.
      seed: of the draws.
      only: the names of the metrics, by default all.
    """
    labels, ranking = rows.labels, rows.ranking
    real, fake = labels == 0, labels == 1
    called = ranking >= threshold
    every = np.ones(labels.size)
    # Means over the images: values and weights.
    means = {
        "accuracy": ((ranking >= 0) == labels, every),
        "accuracy_at_threshold": (called == labels, every),
        "tpr_at_threshold": (called, fake),
        "fpr_at_threshold": (called, real),
        "loss": (metrics.losses(labels, ranking), every),
    }
    for name, (probability, weights) in probabilities.items():
        means[f"brier_{name}"] = ((probability - labels) ** 2, weights)
    means |= decisions or {}
    means = {k: v for k, v in means.items() if not only or k in only}
    ranked = tuple(k for k in intervals.RANK_FIGURES if not only or k in only)
    ranks = intervals.Ranks(labels, ranking)
    weight = np.stack([np.asarray(w, np.float64) for _, w in means.values()], axis=1)
    weighted = weight * np.stack([v for v, _ in means.values()], axis=1)

    def resampled(counts: np.ndarray) -> dict[str, np.ndarray]:
        drawn = counts.astype(np.float64)
        averages = (drawn @ weighted) / (drawn @ weight)
        found = dict(zip(means, averages.T, strict=True))
        return found | ranks(counts, ranked)

    drawn = intervals.bootstrap(
        labels, resampled, rows.groups, resamples=resamples, seed=seed
    )
    logits = np.stack([np.zeros_like(ranking), ranking], axis=1)
    points = metrics.binary_metrics(labels, logits)
    values = {name: points[name] for name in ranked}
    averages = weighted.sum(axis=0) / weight.sum(axis=0)
    values |= zip(means, averages.tolist(), strict=True)
    values = {
        name: {"value": value, "interval": drawn.interval(name)}
        for name, value in values.items()
    }
    for name, (probability, weights) in probabilities.items():
        error = metrics.calibration_error(labels, probability, weights)
        values[f"ece_{name}"] = {"value": error, "interval": None}
    return values, {**drawn.describe(), "seed": seed}


def by_generator(
    rows: Rows, threshold: float, *, resamples: int, seed: int
) -> dict[str, Any]:
    """Each generator's fakes against all real images.

    Args:
      rows: images or videos.
      threshold: on logits.
      resamples: how many.
      seed: of the draws.

    Returns:
      By name: num_fake, few (fewer than `FEW`), `auc` and `tpr_at_threshold` with their
      intervals, and the number of resamples `without_a_class`.
    """
    found = {}
    for name in sorted(set(rows.generators[rows.labels == 1])):
        part = rows.where((rows.labels == 0) | (rows.generators == name))
        number = int(part.labels.sum())
        only = ("auc", "tpr_at_threshold")
        computed, bootstrap = compute(
            part, threshold, {}, only=only, resamples=resamples, seed=seed
        )
        found[str(name)] = {
            "num_fake": number,
            "few": number < FEW,
            **computed,
            "without_a_class": bootstrap["without_a_class"],
        }
    return found
