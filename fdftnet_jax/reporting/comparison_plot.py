"""The figures of a comparison: what methods learn of a new forgery, and keep of an old.

In the first, the further up, the more is learned; the further to the right, the more is
kept. The second shows what is learned from how many images.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from fdftnet_jax.reporting import plots, tables

_MARKERS = "osD^vP*X"


class Point(NamedTuple):
    """A method, with the AUROC of each of its seeds on both forgeries."""

    method: str
    replayed: bool  # Whether old images were in the training; filled in the figure.
    old: Sequence[float]
    new: Sequence[float]  # As many as `old`, and in their order.


def figure(points: Sequence[Point]) -> Figure:
    """Draws AUROC on the new forgery against that on the old.

    A point is the mean over seeds; where there are several, they are small dots.

    Args:
      points: at least one; those of one method have one colour and marker.

    Raises:
      ValueError: there is none, or one has no seed.
    """
    if not points or not all(len(point.old) == len(point.new) > 0 for point in points):
        raise ValueError("points must not be empty, each with the seeds of both.")
    methods = list(dict.fromkeys(point.method for point in points))
    with mpl.rc_context(plots.STYLE):
        drawn = Figure(figsize=(4.2, 3.9 + 0.21 * len(points)), layout="constrained")
        axes = drawn.subplots()
        keys = []
        for point in points:
            number = methods.index(point.method)
            colour = plots.PALETTE[number % len(plots.PALETTE)]
            if len(point.old) > 1:
                axes.plot(
                    point.old,
                    point.new,
                    marker=".",
                    linestyle="",
                    color=colour,
                    markersize=4,
                    alpha=0.6,
                    zorder=3,
                )
            keys += axes.plot(
                np.mean(point.old),
                np.mean(point.new),
                marker=_MARKERS[number % len(_MARKERS)],
                linestyle="",
                color=colour,
                markerfacecolor=colour if point.replayed else "white",
                markersize=7,
                label=_name(point),
                zorder=4,
                clip_on=False,
            )
        for draw in (axes.axhline, axes.axvline):
            draw(0.5, **plots.REFERENCE)
        axes.set(xlabel="AUROC on the old forgery", ylabel="AUROC on the new forgery")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
        keys += axes.plot([], [], label="chance", **plots.REFERENCE)
        plots.legend(drawn, keys)
    return drawn


def in_words(points: Sequence[Point]) -> str:
    """Text alternative of `figure`."""
    told = [
        f"{_name(point)}: {np.mean(point.new):.3f} new, {np.mean(point.old):.3f} old"
        for point in points
    ]
    return f"AUROC, mean over the seeds. {'; '.join(told)}."


class Curve(NamedTuple):
    """A method, with what it learns from how many images."""

    method: str
    replayed: bool  # Whether old images were in the training.
    # Images of each class -> what each seed's evaluation of the new forgery holds.
    scores: Mapping[int, Sequence[Mapping[str, Any]]]


def curves(lines: Sequence[Curve]) -> Figure:
    """Draws AUROC on the new forgery against the number of images of each class.

    A point is the mean over seeds with its 95 % interval, see `tables.interval`.

    Args:
      lines: at least one; those of one method have one colour and marker. Where there
        is replay, lines without it are broken.

    Raises:
      ValueError: there is none, or one has a number without scores.
    """
    if not lines or not all(all(line.scores.values()) for line in lines):
        raise ValueError("lines must not be empty, each with scores of every number.")
    methods = list(dict.fromkeys(line.method for line in lines))
    replayed = any(line.replayed for line in lines)
    with mpl.rc_context(plots.STYLE):
        drawn = Figure(figsize=(4.2, 3.6 + 0.21 * len(lines)), layout="constrained")
        axes = drawn.subplots()
        keys: list[Any] = []
        for k, line in enumerate(lines):
            number = methods.index(line.method)
            images = np.array(sorted(line.scores))
            found = [line.scores[int(n)] for n in images]
            mean = np.array([_mean(scores) for scores in found])
            ends = [tables.interval(scores, "auc") for scores in found]
            low, high = (
                np.array([np.nan if end is None else end[side] for end in ends])
                for side in (0, 1)
            )
            # (Beside each other, so that no interval hides another.)
            x = images * 1.03 ** (k - (len(lines) - 1) / 2)
            keys.append(
                axes.errorbar(
                    x,
                    mean,
                    [np.maximum(0, mean - low), np.maximum(0, high - mean)],
                    marker=_MARKERS[number % len(_MARKERS)],
                    color=plots.PALETTE[number % len(plots.PALETTE)],
                    linestyle="--" if replayed and not line.replayed else "-",
                    linewidth=1.2,
                    markersize=6,
                    capsize=3,
                    label=_name(line),
                )
            )
        axes.axhline(0.5, **plots.REFERENCE)
        axes.set_xscale("log")
        axes.minorticks_off()
        every = sorted({n for line in lines for n in line.scores})
        axes.set_xticks(every, [str(n) for n in every])
        axes.set(
            xlabel="new images of each class, at most",
            ylabel="AUROC on the new forgery",
        )
        axes.set_ylim(top=min(axes.get_ylim()[1], 1.01))
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
        keys += axes.plot([], [], label="chance", **plots.REFERENCE)
        plots.legend(drawn, keys)
    return drawn


def curves_in_words(lines: Sequence[Curve]) -> str:
    """Text alternative of `curves`."""
    told = []
    for line in lines:
        values = ", ".join(
            f"{_mean(line.scores[n]):.3f} with {n}" for n in sorted(line.scores)
        )
        told.append(f"{_name(line)}: {values}")
    return f"AUROC on the new forgery by images of each class. {'; '.join(told)}."


def _mean(scores: Sequence[Mapping[str, Any]]) -> float:
    return float(np.mean([tables.figure(found, "auc")[0] for found in scores]))


def _name(point: Point | Curve) -> str:
    return f"{point.method}, with replay" if point.replayed else point.method
