"""The figure of an ablation: scores against what it varies, with their spread."""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter
from matplotlib.transforms import ScaledTranslation

from fdftnet_jax.reporting import plots, tables

# A panel each.
_METRICS = {"accuracy": "Accuracy", "auc": "AUROC"}
_MEAN: dict[str, Any] = {"color": plots.PALETTE[0], "marker": "o", "linewidth": 1.5}
_SEED: dict[str, Any] = {
    "color": plots.PALETTE[1],
    "marker": ".",
    "markersize": 5,
    "linestyle": "",
}
# Of the single seeds from the mean, to the right, in points.
_BESIDE = 6

# What the evaluation of each seed holds (see `evaluation.results`).
Scores = Sequence[Mapping[str, Any]]


def draw(
    path: str | os.PathLike[str],
    label: str,
    values: Mapping[str, Scores],
    before: Scores,
    *,
    log_axis: bool = False,
) -> None:
    """Writes the figure of an ablation.

    Args:
      path: the file to write; its suffix chooses svg or png.
      label: as for `figure`, and so are the others.
      values: see there.
      before: see there.
      log_axis: see there.

    Raises:
      UserError: another suffix.
      ValueError: no values.
    """
    plots.save(figure(label, values, before, log_axis=log_axis), path)


def figure(
    label: str,
    values: Mapping[str, Scores],
    before: Scores,
    *,
    log_axis: bool = False,
) -> Figure:
    """Draws accuracy (above) and AUROC (below) against what an ablation varies.

    A point is the mean over seeds with its 95 % interval (see `tables.interval`); where
    there are several, the seeds are small dots beside it. Names that are numbers stand
    at these, joined.

    Args:
      label: of what varies.
      values: for the name of each value its scores; none leaves a gap.
      before: the scores before fine-tuning, a dashed line; may be none.
      log_axis: whether numbers stand on a logarithmic axis; all are above 0.

    Raises:
      ValueError: no values.
    """
    if not values:
        raise ValueError("values must not be empty.")
    numbers = _numbers(values)
    x = np.arange(len(values)) if numbers is None else numbers
    seeds = list(values.values())
    with mpl.rc_context(plots.STYLE):
        drawn = Figure(figsize=(4.2, 5.6), layout="constrained")
        panels = drawn.subplots(2, sharex=True)
        for axes, (metric, title) in zip(panels, _METRICS.items(), strict=True):
            if before:
                mean = np.mean([tables.figure(scores, metric)[0] for scores in before])
                axes.axhline(float(mean), **plots.REFERENCE)
            _draw_means(
                drawn,
                axes,
                x,
                [[tables.figure(s, metric)[0] for s in found] for found in seeds],
                [tables.interval(found, metric) for found in seeds],
                joined=numbers is not None,
            )
            low, high = axes.get_ylim()
            # An interval of few seeds may reach beyond what a score can be.
            axes.set_ylim(max(low, -0.02), min(high, 1.02))
            axes.set(title=title)
            axes.yaxis.set_major_formatter(PercentFormatter(xmax=1))
        axis = panels[1]
        if log_axis and numbers is not None:
            axis.set_xscale("log")
        axis.minorticks_off()
        axis.set_xticks(x, list(values))
        axis.set(xlabel=label)
        if numbers is None:
            axis.set_xlim(-0.5, len(values) - 0.5)
        several = any(len(found) > 1 for found in seeds)
        over = "over the seeds" if several else "over test images"
        what = f"FDFtNet, 95 % interval {over}"
        keys = [Line2D([], [], label=what, **_MEAN | {"linestyle": ""})]
        if several:
            keys.append(Line2D([], [], label="single seeds", **_SEED))
        if before:
            keys.append(
                Line2D([], [], label="before fine-tuning, mean", **plots.REFERENCE)
            )
        plots.legend(drawn, keys)
    return drawn


def _numbers(names: Iterable[str]) -> np.ndarray | None:
    """The names as numbers, None where one is none."""
    try:
        return np.array([float(name) for name in names])
    except ValueError:
        return None


def _draw_means(
    figure: Figure,
    axes: Axes,
    x: np.ndarray,
    seeds: Sequence[Sequence[float]],
    intervals: Sequence[tuple[float, float, str] | None],
    *,
    joined: bool,
) -> None:
    """Means of each position's values with their intervals, and the values."""
    there = [i for i, values in enumerate(seeds) if values]
    if not there:
        return
    mean = np.array([np.mean(seeds[i]) for i in there])
    ends = [intervals[i] or (np.nan, np.nan, "") for i in there]
    low, high = (np.array([end[side] for end in ends], float) for side in (0, 1))
    axes.errorbar(
        x[there],
        mean,
        # A bootstrap interval of skewed values need not hold the value itself.
        [np.maximum(0, mean - low), np.maximum(0, high - mean)],
        linestyle="-" if joined else "",
        capsize=4,
        zorder=3,
        **_MEAN,
    )
    beside = ScaledTranslation(_BESIDE / 72, 0, figure.dpi_scale_trans)
    for i in there:
        if len(seeds[i]) > 1:
            axes.plot(
                np.full(len(seeds[i]), x[i]),
                seeds[i],
                transform=axes.transData + beside,
                zorder=4,
                **_SEED,
            )
