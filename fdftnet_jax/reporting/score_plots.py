"""Figures of a scored split: DET curve, histograms, reliability; style of `plots`."""

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, PercentFormatter
from scipy import special, stats
from sklearn import metrics as sklearn_metrics

from fdftnet_jax.evaluation import metrics
from fdftnet_jax.reporting import plots

REAL, FAKE = plots.PALETTE[:2]
# Error rates and probabilities that axes name, where they are within them.
_RATES = (0.0001, 0.001, 0.01, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.95, 0.99)
_ODDS = (1e-6, 1e-4, 0.01, 0.1, 0.5, 0.9, 0.99, 1 - 1e-4, 1 - 1e-6)
_NEAR = (0.3, 0.4, 0.45, 0.5, 0.55, 0.6, 0.7)
# The least distance of two of them, as a share of the axis: their names have room.
_APART = 0.17
# Log odds further out stand in the outermost bin.
_FURTHEST = 16.0
_BINS = 40


def det_figure(
    labels: npt.ArrayLike, ranking: npt.ArrayLike, threshold: float
) -> Figure:
    """The detection error trade-off, on axes of normal deviates.

    Scores that are normal in each class, with equal variances, make a straight line.
    A rate of 0, which has no place on such an axis, stands at half an image.

    Args:
      labels: [n], real = 0 and fake = 1; both must occur.
      ranking: [n], higher for fake.
      threshold: from which an image is called fake, a dot.

    Raises:
      ValueError: labels other than 0 and 1.
      UserError: a class is missing.
    """
    labels, values = metrics.check_labels(labels), np.asarray(ranking, np.float64)
    false_positive, missed, _ = sklearn_metrics.det_curve(
        labels, values, drop_intermediate=True
    )
    called = values >= threshold
    point = (called[labels == 0].mean(), 1 - called[labels == 1].mean())
    # The curve of scikit-learn leaves out its ends, where a rate is 0.
    false_positive = np.concatenate([[1.0], false_positive, [0.0]])
    missed = np.concatenate([[0.0], missed, [1.0]])
    half = 0.5 / np.bincount(labels)

    def place(rates: npt.ArrayLike, label: int) -> np.ndarray:
        return stats.norm.ppf(np.clip(rates, half[label], 1 - half[label]))

    with mpl.rc_context(plots.STYLE):
        figure = Figure(figsize=(4.2, 4.4), layout="constrained")
        axes = figure.subplots()
        curve = axes.plot(
            place(false_positive, 0),
            place(missed, 1),
            color=plots.PALETTE[0],
            label="all images",
            zorder=3,
        )
        dot = axes.plot(
            place(point[0], 0),
            place(point[1], 1),
            label="at the threshold",
            color=plots.PALETTE[0],
            marker="o",
            linestyle="",
            zorder=4,
            clip_on=False,
        )
        equal = axes.plot(
            [-9, 9], [-9, 9], label="equal error rates", **plots.REFERENCE
        )
        low = stats.norm.ppf(half.min())
        for axis in (axes.xaxis, axes.yaxis):
            shown = [rate for rate in _RATES if stats.norm.ppf(rate) >= low]
            axis.set_ticks(
                stats.norm.ppf(shown), [f"{100 * rate:g}%" for rate in shown]
            )
        high = max(stats.norm.ppf(0.6), *place(point[:1], 0), *place(point[1:], 1))
        axes.set(
            xlim=(low, high),
            ylim=(low, high),
            xlabel="real images called fake",
            ylabel="fake images called real",
            aspect="equal",
        )
        plots.legend(figure, [*curve, *dot, *equal])
    return figure


def histogram_figure(
    labels: npt.ArrayLike, log_odds: npt.ArrayLike, threshold: float
) -> Figure:
    """Histograms of the scores of both classes, each as shares of its images.

    Args:
      labels: [n], real = 0 and fake = 1; both must occur.
      log_odds: [n] of fake, logits of P(fake); the axis is linear in them and names
        probabilities.
      threshold: from which an image is called fake, as log odds.

    Raises:
      ValueError: labels other than 0 and 1.
      UserError: a class is missing.
    """
    labels = metrics.check_labels(labels)
    values = np.clip(np.asarray(log_odds, np.float64), -_FURTHEST, _FURTHEST)
    line = float(np.clip(threshold, -_FURTHEST, _FURTHEST))
    low, high = (f(np.append(values, line)) for f in (np.min, np.max))
    margin = max(0.05, 0.03 * (high - low))
    # The threshold is an edge, so that no bar has verdicts of both kinds.
    width = (high - low + 2 * margin) / _BINS
    first = line - width * np.ceil((line - low + margin) / width)
    edges = first + width * np.arange(_BINS + 2)
    with mpl.rc_context(plots.STYLE):
        figure = Figure(figsize=(4.2, 3.6), layout="constrained")
        axes = figure.subplots()
        keys: list[Artist] = []
        for label, (name, colour, hatch) in enumerate(
            (("real", REAL, ""), ("fake", FAKE, "////"))
        ):
            share, _ = np.histogram(values[labels == label], edges)
            keys.append(
                axes.stairs(
                    share / share.sum(),
                    edges,
                    fill=True,
                    # An SVG draws a hatch as faintly as the face below it.
                    facecolor="none" if hatch else (colour, 0.35),
                    edgecolor=colour,
                    hatch=hatch,
                    linewidth=1.2,
                    label=f"{name} images",
                )
            )
        keys.append(
            axes.axvline(line, color="black", linestyle=(0, (4, 2)), label="threshold")
        )
        _probability_axis(axes, edges[0], edges[-1])
        axes.set(xlabel="P(fake)", ylabel="share of the class's images", ylim=(0, None))
        whole = 0 if axes.get_ylim()[1] > 0.05 else None
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=whole))
        plots.legend(figure, keys)
    return figure


def _probability_axis(axes: Axes, low: float, high: float) -> None:
    """Names probabilities along an axis of log odds."""
    ticks = max(_ticks(_ODDS, low, high), _ticks(_NEAR, low, high), key=len)
    axes.set_xlim(low, high)
    axes.xaxis.set_minor_locator(NullLocator())
    names = [f"{100 * p:.{_decimals(p)}f}%" for p in ticks]
    axes.set_xticks(special.logit(ticks), names)


def _ticks(probabilities: Sequence[float], low: float, high: float) -> list[float]:
    """Those within an axis of log odds, from the middle outwards, that have room."""
    ticks: list[float] = []
    for p in sorted(probabilities, key=lambda p: abs(p - 0.5)):
        place = special.logit(p)
        near = any(abs(place - special.logit(t)) < _APART * (high - low) for t in ticks)
        if low <= place <= high and not near:
            ticks.append(p)
    return ticks


def _decimals(probability: float) -> int:
    """Decimals that tell a probability in percent from 0 and 100."""
    nearest = min(probability, 1 - probability)
    return max(0, round(-np.log10(nearest)) - 2) if nearest < 0.01 else 0


def verdict_figure(hits: float, alarms: float) -> Figure:
    """Draws how many of 100 fake and of 100 real pictures are called fake, as squares.

    Args:
      hits: share of the fakes that is called fake, in [0, 1].
      alarms: share of the real images.
    """
    with mpl.rc_context(plots.STYLE):
        figure = Figure(figsize=(4.2, 2.4), layout="constrained")
        places = np.arange(100)
        for axes, title, share, colour in zip(
            figure.subplots(1, 2),
            ("100 fake pictures", "100 real pictures"),
            (hits, alarms),
            (FAKE, REAL),
            strict=True,
        ):
            # None and all are kept for shares that are just that.
            number = np.clip(round(100 * share), share > 0, 100 - (share < 1))
            called = places < number
            axes.scatter(
                places % 10,
                -(places // 10),
                marker="s",
                s=62,
                facecolors=np.where(called, colour, "white"),
                edgecolors=colour,
                linewidths=1,
            )
            axes.set(title=title, xlim=(-0.6, 9.6), ylim=(-9.6, 0.6), aspect="equal")
            axes.set_axis_off()
    return figure


def reliability_figure(
    series: Mapping[str, metrics.Bins],
) -> Figure:
    """How often images of each P(fake) are fake, and how many there are.

    Args:
      series: for each name of a P(fake) its bins; the last stands in front.

    Raises:
      ValueError: there is none.
    """
    if not series:
        raise ValueError("series must not be empty.")
    with mpl.rc_context(plots.STYLE):
        figure = Figure(figsize=(4.2, 5.4), layout="constrained")
        above, below = figure.subplots(2, sharex=True, height_ratios=(4, 1))
        keys = above.plot(
            [0, 1], [0, 1], label="as often as it says", **plots.REFERENCE
        )
        last = len(series) - 1
        for index, (name, bins) in enumerate(series.items()):
            front = index == last
            colour = plots.PALETTE[0 if front else 1]
            keys += above.plot(
                bins.predicted,
                bins.observed,
                color=colour,
                marker="o" if front else "s",
                markersize=5 if front else 4,
                linestyle="-" if front else ":",
                linewidth=1.5,
                label=name,
                zorder=3,
                clip_on=False,
            )
            below.vlines(
                bins.predicted,
                0,
                bins.count,
                color=colour,
                linewidth=3 if front else 1.5,
                clip_on=False,
                zorder=2 + front,
            )
        above.set(
            xlim=(0, 1),
            ylim=(0, 1),
            xticks=np.linspace(0, 1, 6),
            yticks=np.linspace(0, 1, 6),
            ylabel="share that is fake",
        )
        below.set(xlabel="P(fake), mean of a bin", ylabel="images", ylim=(0, None))
        for axis in (above.xaxis, above.yaxis):
            axis.set_major_formatter(PercentFormatter(xmax=1))
        plots.legend(figure, keys)
    return figure
