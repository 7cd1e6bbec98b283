"""The figure of a detector's robustness: AUROC against image processing."""

import math
import os
from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fdftnet_jax.reporting import plots

_COLUMNS = 2
_POINT: dict[str, Any] = {
    "color": plots.PALETTE[0],
    "marker": "o",
    "markersize": 4,
    "linewidth": 1.5,
}
_CLEAN = plots.REFERENCE | {"color": plots.PALETTE[2], "zorder": 2}
_CHANCE = plots.REFERENCE | {"linestyle": (0, (1, 1.5))}


def draw(path: str | os.PathLike[str], robustness: Mapping[str, Any]) -> None:
    """Writes the figure of a detector's robustness.

    Args:
      path: the file to write; its suffix chooses svg or png.
      robustness: as for `figure`.

    Raises:
      UserError: another suffix.
      ValueError: no operations.
    """
    plots.save(figure(robustness), path)


def figure(robustness: Mapping[str, Any]) -> Figure:
    """Draws a panel for each operation, from mild strengths on the left to strong.

    A point is the AUROC with its interval; lines show that of the pictures as they are
    and chance.

    Args:
      robustness: of a report (see `evaluation.results`).

    Raises:
      ValueError: no operations.
    """
    operations = list(robustness["operations"].values())
    if not operations:
        raise ValueError("operations must not be empty.")
    clean = robustness["clean"]["auc"]
    lines = math.ceil(len(operations) / _COLUMNS)
    with mpl.rc_context(plots.STYLE):
        drawn = Figure(figsize=(4.2, 0.7 + 1.95 * lines), layout="constrained")
        panels = drawn.subplots(lines, _COLUMNS, sharey=True, squeeze=False)
        for i, axes in enumerate(panels.flat):
            if i >= len(operations):
                axes.set_visible(False)
                continue
            axes.axhline(0.5, **_CHANCE)
            axes.axhline(clean["value"], **_CLEAN)
            _panel(axes, operations[i])
            if i % _COLUMNS == 0:
                axes.set_ylabel("AUROC")
        low, high = axes.get_ylim()
        axes.set_ylim(max(-0.02, low), min(1.02, high))
        keys = [
            Line2D([], [], label="AUROC, 95 % interval", **_POINT),
            Line2D([], [], label=f"images as they are, {clean['value']:.3f}", **_CLEAN),
            Line2D([], [], label="chance", **_CHANCE),
        ]
        drawn.legend(
            handles=keys, loc="outside lower center", ncols=_COLUMNS, fontsize=9
        )
    return drawn


def _panel(axes: Axes, operation: Mapping[str, Any]) -> None:
    found = [row["figures"]["auc"] for row in operation["strengths"]]
    value = np.array([auc["value"] for auc in found])
    ends = [auc["interval"] or (np.nan, np.nan) for auc in found]
    low, high = np.array(ends, float).T
    # Strengths stand side by side: their steps have no common scale.
    places = np.arange(len(found))
    axes.errorbar(
        places,
        value,
        # A bootstrap interval need not hold the value itself.
        [np.maximum(0, value - low), np.maximum(0, high - value)],
        capsize=3,
        zorder=3,
        **_POINT,
    )
    axes.set(title=operation["title"], xlabel=operation["unit"])
    axes.set_xlim(-0.4, len(found) - 0.6)
    axes.set_xticks(places, [f"{row['strength']:g}" for row in operation["strengths"]])
