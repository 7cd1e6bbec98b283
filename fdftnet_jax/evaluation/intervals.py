"""Bootstrap intervals of metrics over a split.

A figure's interval is between percentiles of its values in resamples of the images.
What is drawn, with replacement, are images where every group is a single one, as many
of each class as there are; and whole groups, as many as there are and whatever their
classes, where a group has several images: frames of one video are no independent
evidence. Such a resample may lack a class; it is left out, and counted.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fdftnet_jax.evaluation import metrics

RESAMPLES = 2000
LEVEL = 0.95
SEED = 0
# Counts of images in memory at a time.
_BLOCK = 2**20

# How often each image was drawn, [r, n], -> metrics of each resample, [r].
Metrics = Callable[[np.ndarray], Mapping[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Bootstrap:
    """Metrics in resamples.

    Attributes:
      values: [resamples] of each figure, NaN in resamples without one of the classes.
      unit: what was drawn, 'image' or 'group'.
      num_units: how many of them there are.
      without_a_class: the number of resamples left out.
    """

    values: dict[str, np.ndarray]
    unit: str
    num_units: int
    without_a_class: int

    def interval(self, name: str, level: float = LEVEL) -> list[float] | None:
        """[low, high], None where every resample lacks a class."""
        values = self.values[name]
        values = values[np.isfinite(values)]
        if not values.size:
            return None
        tail = (1 - level) / 2
        return [float(v) for v in np.quantile(values, [tail, 1 - tail])]

    def describe(self) -> dict[str, Any]:
        """How it was made, ready for JSON."""
        return {
            "resamples": len(next(iter(self.values.values()))),
            "level": LEVEL,
            "unit": self.unit,
            "num_units": self.num_units,
            "stratified_by_class": self.unit == "image",
            "without_a_class": self.without_a_class,
        }


def bootstrap(
    labels: npt.ArrayLike,
    compute: Metrics,
    groups: Sequence[str] | np.ndarray | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Bootstrap:
    """Computes metrics in resamples of a split.

    Args:
      labels: [n], real = 0 and fake = 1; both must occur.
      compute: of many resamples at once.
      groups: [n], of each image; None is a group each.
      resamples: how many.
      seed: of the draws: the same labels, groups, number and seed give the same ones.
    """
    labels = metrics.check_labels(labels)
    units = _units(groups)
    parts: list[dict[str, np.ndarray]] = []
    lacking = 0
    for counts in _draw(labels, units, resamples, seed):
        fakes = counts @ labels
        without = (fakes == 0) | (fakes == counts.sum(axis=1))
        lacking += int(without.sum())
        with np.errstate(divide="ignore", invalid="ignore"):
            drawn = compute(counts)
        parts.append({k: np.where(without, np.nan, v) for k, v in drawn.items()})
    values = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
    if units is None:
        return Bootstrap(values, "image", labels.size, lacking)
    return Bootstrap(values, "group", int(units.max()) + 1, lacking)


def paired_bootstrap(
    labels: npt.ArrayLike,
    logits_a: npt.ArrayLike,
    logits_b: npt.ArrayLike,
    groups: Sequence[str] | np.ndarray | None = None,
    metric: str = "auc",
    *,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> dict[str, Any]:
    """The difference of two detectors on the same images, in the same resamples.

    Args:
      labels: [n], real = 0 and fake = 1; both must occur.
      logits_a: [n, 2], the outputs of one detector for real and fake; or [s, n, 2], of
        its s seeds, whose metrics are averaged in every resample.
      logits_b: those of the other in the same shape, the images in the same order.
      groups: [n], of each image; None is a group each.
      metric: 'auc', 'average_precision', 'eer', 'tpr_at_fpr_0.01', 'tpr_at_fpr_0.001',
        or 'accuracy' at score 0.5 (see `metrics.binary_metrics`).
      resamples: how many.
      seed: of the draws.

    Returns:
      Ready for JSON: `metric`, its value for `a` and `b`, `difference` (a minus b), its
      `interval` [low, high], and the `bootstrap` (see `Bootstrap.describe`).

    Raises:
      ValueError: shapes do not fit, or there is no such metric.
      UserError: a class is missing, or a logit is not finite.
    """
    labels = metrics.check_labels(labels)
    if metric not in ("accuracy", *RANK_FIGURES):
        raise ValueError(f"Metric must be accuracy or of {RANK_FIGURES}: {metric!r}.")
    seeds = [
        logits[None] if logits.ndim == 2 else logits
        for logits in (np.asarray(logits_a), np.asarray(logits_b))
    ]

    def of_seed(logits: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        ranking = metrics.ranking(labels, logits)
        if metric == "accuracy":
            right = ((ranking >= 0) == labels).astype(np.float64)
            return lambda counts: counts @ right / counts.sum(axis=1)
        ranks = Ranks(labels, ranking)
        return lambda counts: ranks(counts, (metric,))[metric]

    of_a, of_b = ([of_seed(logits) for logits in found] for found in seeds)

    def difference(counts: np.ndarray) -> dict[str, np.ndarray]:
        a, b = (
            np.mean([one(counts) for one in found], axis=0) for found in (of_a, of_b)
        )
        return {"difference": a - b}

    found = [
        float(np.mean([metrics.binary_metrics(labels, logits)[metric] for logits in s]))
        for s in seeds
    ]
    drawn = bootstrap(labels, difference, groups, resamples=resamples, seed=seed)
    return {
        "metric": metric,
        "a": found[0],
        "b": found[1],
        "difference": found[0] - found[1],
        "interval": drawn.interval("difference"),
        "bootstrap": {**drawn.describe(), "seed": seed},
    }


class Curve(NamedTuple):
    """ROC curves, in images: [r, k + 1] from the threshold that calls none fake."""

    false_fake: np.ndarray
    true_fake: np.ndarray


class Ranks:
    """The metrics that depend on the order of the images, in many resamples at once.

    They are those of `metrics.binary_metrics` for the images as often as they were
    drawn.
    """

    def __init__(self, labels: np.ndarray, ranking: np.ndarray):
        """Sorts the images.

        Args:
          labels: [n], real = 0 and fake = 1.
          ranking: [n], higher for fake.
        """
        self._order = np.argsort(-ranking, kind="stable")
        ordered = ranking[self._order]
        self._fake = labels[self._order] == 1
        # The last of those that are equal: a threshold parts no tie.
        self._ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))

    def curve(self, counts: np.ndarray) -> Curve:
        """The curves of resamples, [r, n]."""
        drawn = counts[:, self._order]

        def called_fake(which: np.ndarray) -> np.ndarray:
            total = np.cumsum(drawn * which, axis=1, dtype=np.float64)
            if len(self._ends) < total.shape[1]:
                total = total[:, self._ends]
            return np.pad(total, ((0, 0), (1, 0)))

        return Curve(called_fake(~self._fake), called_fake(self._fake))

    def __call__(
        self, counts: np.ndarray, names: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        """[r] of each figure of `names`, by default of all, for counts [r, n]."""
        curve = self.curve(counts)
        chosen = RANK_FIGURES if names is None else names
        return {name: _RANK_FIGURES[name](curve) for name in chosen}


def _auc(curve: Curve) -> np.ndarray:
    real, fake = curve
    # Trapezoids: a tie counts half.
    area = np.sum(np.diff(real) * (fake[:, 1:] + fake[:, :-1]), axis=1) / 2
    return area / (real[:, -1] * fake[:, -1])


def _average_precision(curve: Curve) -> np.ndarray:
    real, fake = curve[0][:, 1:], curve[1]
    # 0 of 0 where nothing was drawn yet, with a step of 0.
    precision = fake[:, 1:] / np.maximum(fake[:, 1:] + real, 1)
    return np.sum(np.diff(fake) * precision, axis=1) / fake[:, -1]


def _eer(curve: Curve) -> np.ndarray:
    false_positive = curve.false_fake / curve.false_fake[:, -1:]
    excess = false_positive + curve.true_fake / curve.true_fake[:, -1:] - 1
    after = np.argmax(excess >= 0, axis=1)[:, None]
    # (Without a class, it is nowhere.)
    before = np.maximum(after - 1, 0)

    def at(rates: np.ndarray, index: np.ndarray) -> np.ndarray:
        return np.take_along_axis(rates, index, axis=1)[:, 0]

    low, high = at(false_positive, before), at(false_positive, after)
    below, above = at(excess, before), at(excess, after)
    return low - (high - low) * below / (above - below)


def _tpr_at_fpr(bound: float) -> Callable[[Curve], np.ndarray]:
    def figure(curve: Curve) -> np.ndarray:
        within = curve.false_fake / curve.false_fake[:, -1:] <= bound
        last = np.maximum(within.sum(axis=1) - 1, 0)[:, None]
        found = np.take_along_axis(curve.true_fake, last, axis=1)[:, 0]
        return found / curve.true_fake[:, -1]

    return figure


_RANK_FIGURES: dict[str, Callable[[Curve], np.ndarray]] = {
    "auc": _auc,
    "average_precision": _average_precision,
    "eer": _eer,
    **{f"tpr_at_fpr_{bound}": _tpr_at_fpr(bound) for bound in metrics.FPR_BOUNDS},
}
RANK_FIGURES = tuple(_RANK_FIGURES)


def _units(groups: Sequence[str] | np.ndarray | None) -> np.ndarray | None:
    """The number of each image's group, [n]; None where every group is one image."""
    if groups is None:
        return None
    names, numbers = np.unique(np.asarray(groups), return_inverse=True)
    return None if len(names) == len(numbers) else numbers


def _draw(
    labels: np.ndarray, units: np.ndarray | None, resamples: int, seed: int
) -> Iterator[np.ndarray]:
    """Yields how often each image was drawn, [r, n] int64, of all resamples."""
    rng = np.random.default_rng(seed)
    for start in range(0, resamples, step := max(1, _BLOCK // labels.size)):
        rows = min(step, resamples - start)
        if units is not None:
            yield _counts(rng, rows, int(units.max()) + 1)[:, units]
            continue
        counts = np.empty((rows, labels.size), np.int64)
        for label in (0, 1):
            of_class = np.flatnonzero(labels == label)
            counts[:, of_class] = _counts(rng, rows, of_class.size)
        yield counts


def _counts(rng: np.random.Generator, rows: int, number: int) -> np.ndarray:
    """How often each of a number is among as many draws with replacement."""
    drawn = rng.integers(0, number, (rows, number))
    flat = (drawn + number * np.arange(rows)[:, None]).ravel()
    return np.bincount(flat, minlength=rows * number).reshape(rows, number)
