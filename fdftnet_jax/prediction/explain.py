"""Draws what a detector looked at: the face, its attention, a Grad-CAM.

Maps show which positions a score came from, not why, nor what is forged.
"""

import dataclasses
import functools
import os
import textwrap
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import cv2
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from fdftnet_jax.data import preprocess
from fdftnet_jax.models import explanation
from fdftnet_jax.models.fdftnet import FDFtNet
from fdftnet_jax.prediction.results import Row
from fdftnet_jax.reporting import plots

# Side of a panel in pixels.
_SIDE = 256
_COLUMNS = 3
_MAP = "inferno"
# Share of a map in the colours of its panel, over the grey face.
SHARE = 0.6
ATTENTION = "Attention: 1x is even, dark is 0."
CAM = "Grad-CAM: what adds to the log odds of fake, dark is 0."
# Of an attention, against even attention, at least.
_BRIGHT = 2.0
# In inches: a panel with its margin, what is above and below it, and a line of text.
_PANEL, _ABOVE, _BELOW, _LINE = 1.5, 0.22, 0.2, 0.16


class Panel(NamedTuple):
    """A square of the picture."""

    title: str
    # [h, w] float >= 0, of the whole face; None shows the face itself.
    heat: np.ndarray | None = None
    # The value of the brightest colour; that of 0 is dark.
    bright: float = 1.0
    below: str = ""


def draw(
    path: str | os.PathLike[str],
    name: str,
    image: np.ndarray,
    detector: Any,
    row: Row,
    *,
    threshold: float | None = None,
    lower: float | None = None,
) -> None:
    """Draws the explanation of a face; makes its folder.

    Of an FDFtNet, beside the face: the attention of the Fine-Tune Transformer, each
    stage and all of them weighted by |gamma|, as how often a position is attended to
    against even attention; and a Grad-CAM of the MBblockV3 branch (see
    `models.explanation`). What a network does not have is left out, and the caption
    says so. Where the detector looks at windows, the one that looks most fake.

    Args:
      path: the file to write; its suffix chooses svg or png.
      name: of the face, such as the path of its file, for the caption.
      image: [h, w, 3] uint8, what was scored: the crop, or the whole picture.
      detector: a `Detector`.
      row: the result of the face.
      threshold: that of the verdict, as P(fake); by default the detector's own.
      lower: that below which a face is called real; None is the threshold.

    Raises:
      UserError: the network cannot be rebuilt (see `Detector.model`), another suffix,
        or the disk refuses.
    """
    face, view, note = _shown_and_scored(image, detector)
    what = "picture" if row.width is None else "face"
    shown, left_out = panels(detector, view, what)
    caption = [*_caption(name, row, detector, threshold, lower), note, left_out]
    count = sum(map(len, shown))
    caption += [ATTENTION] * (count > 2) + [CAM] * (count > 1)
    with mpl.rc_context(plots.STYLE):
        plots.save(_figure(face, shown, caption), path)


def panels(
    detector: Any, view: np.ndarray, what: str = "face"
) -> tuple[list[list[Panel]], str]:
    """Computes the panels of a network, by rows; says in words what it does not have.

    Args:
      detector: a `Detector`.
      view: [size, size, 3] uint8.
      what: the view is of, the title of the first panel.
    """
    first = [Panel(what)]
    model = _model(detector)
    if not isinstance(model, FDFtNet):
        kind = detector.card["model"]["kind"]
        return [first], (
            f"network: {kind}, which has neither FTT nor MBblock branch: no maps"
        )
    variables = detector.variables
    images = preprocess.scale(jnp.asarray(view)[None], detector.preprocessing.scaling)
    gammas = explanation.gammas(variables)
    # How often each position is attended to, against even attention.
    maps = [
        np.asarray(attention[0]) * attention[0].size
        for attention in explanation.attention_maps(model, variables, images)
    ]
    used = [abs(gamma) for gamma in gammas]
    stages = [
        _attention(f"stage {m}, gamma {gamma:.2g}{': unused' * (not gamma)}", heat)
        for m, (gamma, heat) in enumerate(zip(gammas, maps, strict=True), 1)
    ]
    if len(stages) == 1:
        first.append(
            stages.pop()._replace(title=f"FTT attention, gamma {gammas[0]:.2g}")
        )
    elif any(used):
        enlarged = np.stack([_enlarged(heat) for heat in maps])
        weighted = np.average(enlarged, axis=0, weights=used)
        first.append(_attention("FTT attention", weighted, "by |gamma|, "))
    cam = np.asarray(explanation.grad_cam(model, variables, images)[0])
    rows, columns = cam.shape
    most = f"up to +{cam.max():.2g}" if cam.max() else "0 all over"
    below = f"{rows} x {columns}, {most}"
    first.append(Panel("Grad-CAM, MBblock", cam, float(cam.max()) or 1.0, below))
    shown = [
        first,
        *(stages[i : i + _COLUMNS] for i in range(0, len(stages), _COLUMNS)),
    ]
    notes = []
    if not maps:
        notes.append("network: FDFtNet with M = 0 stages: no attention")
    elif not any(used):
        notes.append("all gamma are 0: the attention is unused")
    added = explanation.regression_log_odds(model, variables, images)
    if added is not None:
        notes.append(
            f"the regression adds {added[0]:+.1f} to the log odds of this view, which "
            "no map shows"
        )
    return shown, "; ".join(notes)


@functools.lru_cache(maxsize=1)
def _model(detector: Any) -> Any:
    return detector.model()


def _attention(title: str, heat: np.ndarray, how: str = "") -> Panel:
    # Even attention is never bright.
    bright = max(_BRIGHT, float(heat.max()))
    times = f"{bright:.1f}" if bright < 10 else f"{bright:.0f}"
    return Panel(title, heat, bright, f"{how}up to {times}x even")


def _shown_and_scored(
    image: np.ndarray, detector: Any
) -> tuple[np.ndarray, np.ndarray, str]:
    """The face as it is shown and as the network sees it, and a note."""
    view, note = scored_view(image, detector.preprocessing, detector.logits)
    if note:
        return view, view, note
    larger = dataclasses.replace(detector.preprocessing, size=_SIDE, mirror=False)
    return larger(image), view, ""


def scored_view(
    image: np.ndarray,
    preprocessing: preprocess.Preprocessing,
    logits: Callable[[np.ndarray], np.ndarray],
) -> tuple[np.ndarray, str]:
    """Makes the view that is scored; of several windows, the most fake-looking one.

    Args:
      image: [h, w, 3] uint8, the crop of a face, or the whole picture.
      preprocessing: of the detector.
      logits: [b, size, size, 3] uint8 -> [b], log odds of fake.

    Returns:
      [size, size, 3] uint8, and which window it is: '' where there are none.
    """
    views = dataclasses.replace(preprocessing, mirror=False)(image)
    if views.ndim == 3:
        return views, ""
    if len(views) == 1:
        return views[0], "seen: the window in the middle"
    most = int(np.argmax(logits(views)))
    note = f"seen: window {most + 1} of {len(views)}, which looks most fake"
    return views[most], note


def _caption(
    name: str,
    row: Row,
    detector: Any,
    threshold: float | None,
    lower: float | None,
) -> Iterator[str]:
    """The lines below the panels, the verdict first."""
    fake = row.score if row.probability is None else row.probability
    if threshold is None:
        threshold = float(detector.card["threshold"]["probability"])
    what = "score" if row.probability is None else "P(fake)"
    score = "no score" if fake is None else f"{what} {fake:.3f}"
    real = ""
    if lower is not None and lower < threshold:
        real = f", real below {lower:.3f}"
    yield f"{row.verdict}: {score} (fake from {threshold:.3f}{real})"
    if row.probability is not None and row.score is not None:
        yield f"P(fake) is calibrated; raw score {row.score:.3f}"
    yield plots.drawable(name)


def _enlarged(heat: np.ndarray) -> np.ndarray:
    """Enlarges a map [h, w] to a panel, linearly between its positions."""
    size = (_SIDE, _SIDE)
    return cv2.resize(heat.astype(np.float32), size, interpolation=cv2.INTER_LINEAR)


def _figure(face: np.ndarray, shown: list[list[Panel]], caption: list[str]) -> Figure:
    width = max(2, *map(len, shown)) * _PANEL + 0.2
    verdict, *others = caption
    lines = [
        line
        for text in others
        for line in textwrap.wrap(text, round(width * 14), break_on_hyphens=False)
    ]
    row_height = _ABOVE + _PANEL + _BELOW
    text_height = 0.3 + _LINE * len(lines) + 0.08
    height = len(shown) * row_height + text_height
    figure = Figure(figsize=(width, height))
    side = _PANEL - 0.08
    for y, row in enumerate(shown):
        for x, panel in enumerate(row):
            top = height - y * row_height - _ABOVE
            left = 0.1 + x * _PANEL
            axes = figure.add_axes(
                (left / width, (top - side) / height, side / width, side / height)
            )
            pixels = face
            if panel.heat is not None:
                pixels = overlaid(face, coloured(panel))
            axes.imshow(pixels, aspect="auto", interpolation="none")
            axes.set_axis_off()
            axes.set_title(panel.title, fontsize=8, pad=3)
            axes.text(
                *(0, -0.02, panel.below),
                transform=axes.transAxes,
                fontsize=7,
                verticalalignment="top",
            )
    for text, place, size, weight in (
        (verdict, text_height, 10, "bold"),
        ("\n".join(lines), text_height - 0.24, 8, "normal"),
    ):
        figure.text(
            *(0.1 / width, place / height, text),
            fontsize=size,
            fontweight=weight,
            verticalalignment="top",
        )
    return figure


def overlaid(face: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Draws the colours of a map over a face, which becomes grey.

    Args:
      face: [h, w, 3] uint8.
      colours: [side, side, 3] uint8, see `coloured`.

    Returns:
      [side, side, 3] uint8.
    """
    grey = cv2.cvtColor(cv2.resize(face, (_SIDE, _SIDE)), cv2.COLOR_RGB2GRAY)
    mixed = SHARE * colours + (1 - SHARE) * grey[..., None]
    return np.rint(mixed).astype(np.uint8)


def coloured(panel: Panel) -> np.ndarray:
    """The colours of a panel's map, which must be there: [side, side, 3] uint8."""
    assert panel.heat is not None
    share = _enlarged(panel.heat) / panel.bright
    return mpl.colormaps[_MAP](share, bytes=True)[..., :3]
