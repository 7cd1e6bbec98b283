"""The figure of a comparison: what methods learn of a new forgery, and keep of an old.

The further up, the more is learned; the further to the right, the more is kept.
"""

from collections.abc import Sequence
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from fdftnet_jax.reporting import plots

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


def _name(point: Point) -> str:
    return f"{point.method}, with replay" if point.replayed else point.method
