"""Draws how fake each face of a video looks, against time."""

import os
import textwrap
from collections.abc import Callable
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from scipy import special

from fdftnet_jax.errors import counted
from fdftnet_jax.prediction.video import VideoResult, describe_frames
from fdftnet_jax.reporting import plots

# Tracks that have a colour of their own; the others, which look less fake, are grey.
_COLOURED = 5
_THRESHOLD = plots.REFERENCE | {"color": "#000000"}
_OTHERS: dict[str, Any] = {
    "color": plots.GREY,
    "linewidth": 1.0,
    "markersize": 4,
}
_DOTS: dict[str, Any] = {"marker": ".", "markersize": 6, "linewidth": 1.5}
# Steps of this many usual ones without a crop are gaps in a line.
_GAP = 1.5
# Characters of a file's name in the title.
_TITLE = 38


def draw(
    path: str | os.PathLike[str],
    result: VideoResult,
    threshold: float,
    *,
    lower: float | None = None,
    probability: Callable[[np.ndarray], np.ndarray | None] = lambda logits: None,
    name: str = "",
    first: int = 0,
) -> None:
    """Draws P(fake) of each sampled frame, a line for each face, and the thresholds.

    A dot is the crop of one frame; a line breaks where the face is not found. What
    decides is the mean of a face's log odds: in the legend, as P(fake).

    Args:
      path: the file to write; its suffix chooses svg or png.
      result: of the video; one without faces gives an empty figure with the reason.
      threshold: P(fake) from which a face is called fake, in [0, 1].
      lower: that below which it is called real; None is the threshold.
      probability: log odds -> calibrated P(fake); where it gives None, P(fake) is the
        raw score. The thresholds are about the same.
      name: of the video, the title.
      first: the number that the first face has.

    Raises:
      UserError: another suffix, or the disk refuses.
    """

    def fake(logits: np.ndarray) -> np.ndarray:
        calibrated = probability(logits)
        return special.expit(logits) if calibrated is None else calibrated

    calibrated = probability(np.zeros(1)) is not None
    kind = "calibrated P(fake)" if calibrated else "score, P(fake)"
    pooled = [float(fake(np.array([track.logit]))[0]) for track in result.tracks]
    # Those that may decide first, the most fake-looking one of them before the others.
    order = sorted(
        range(len(pooled)), key=lambda i: (not result.counts(i), -pooled[i], i)
    )
    labels = [_label(result, i, fake, first) for i in order]
    with mpl.rc_context(plots.STYLE):
        rows = min(len(order), _COLOURED + 1) + 1
        figure = Figure(figsize=(4.2, 2.8 + 0.2 * rows), layout="constrained")
        axes = figure.subplots()
        lines: list[Line2D] = []
        # The most fake-looking one is drawn last, over the others.
        for rank in reversed(range(len(order))):
            track = result.tracks[order[rank]]
            style = {"color": plots.PALETTE[rank]} if rank < _COLOURED else _OTHERS
            x, y = _with_gaps(result, track.times, fake(track.logits))
            (line,) = axes.plot(x, y, label=labels[rank], **_DOTS | style)
            if rank < _COLOURED:
                lines.insert(0, line)
        if (others := len(order) - _COLOURED) > 0:
            named = counted(others, "more face")
            lines.append(Line2D([], [], label=named, **_DOTS | _OTHERS))
        marks = {f"threshold: {threshold:.2f}": threshold}
        if lower is not None and lower < threshold:
            marks = {f"fake from {threshold:.2f}": threshold}
            marks[f"real below {lower:.2f}"] = lower
        for label, height in marks.items():
            axes.axhline(height, **_THRESHOLD)
            lines.append(Line2D([], [], label=label, **_THRESHOLD))
        if not order:
            reason = textwrap.fill(result.reason, 40)
            axes.text(0.5, 0.7, reason, transform=axes.transAxes, ha="center")
        # Dots at the edges are whole.
        axes.set(ylim=(-0.03, 1.03), xlabel="time in the video (s)", ylabel=kind)
        end = max(result.seconds, 1.0)
        axes.set_xlim(-0.02 * end, 1.02 * end)
        axes.set_yticks(np.linspace(0, 1, 6))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
        axes.set_title(plots.drawable(name, _TITLE))
        plots.legend(figure, lines)
        plots.save(figure, path)


def _label(
    result: VideoResult,
    number: int,
    fake: Callable[[np.ndarray], np.ndarray],
    first: int,
) -> str:
    """A face, its pooled P(fake), and the frames that it is of."""
    track = result.tracks[number]
    pooled = float(fake(np.array([track.logit]))[0])
    frames = describe_frames(track.logits.size, track.deviation)
    few = "" if result.counts(number) else ", too few"
    what = f"face {number + first}" if result.faces else "whole frames"
    return f"{what}: {pooled:.2f}, {frames}{few}"


def _with_gaps(
    result: VideoResult, times: np.ndarray, values: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Times and values, with NaN between those that are not neighbours."""
    usual = result.seconds / max(result.frames - 1, 1)
    breaks = np.flatnonzero(np.diff(times) > _GAP * usual) + 1
    return np.insert(times, breaks, np.nan), np.insert(values, breaks, np.nan)
