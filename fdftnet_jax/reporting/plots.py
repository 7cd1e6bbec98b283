"""Draws the figures of a run in one style, to a path or as the text of an SVG.

The path's suffix (.svg or .png) is the format; `<what>_figure` gives a figure for
`svg` where `<what>_curves` writes one.

Figures are about 4 inches wide with text of 9 to 11 points, so that they can be read
at the width of a phone. The colours are those of Okabe and Ito, which colour-blind
readers can tell apart; where colours run out the line style changes.
"""

import functools
import io
import os
import pathlib
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib import font_manager, ft2font
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter
from sklearn import metrics as sklearn_metrics

from fdftnet_jax import errors, files
from fdftnet_jax.evaluation import metrics

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_LINE_STYLES = ("-", "--", ":", "-.")
GREY = "#767676"
_DPI = 200

# `Any`, because Matplotlib's stubs list the allowed keys differently by version.
STYLE: Any = {
    # An svg names both: a reader without the first font sees the second.
    "font.family": ["DejaVu Sans", "sans-serif"],
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.labelsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.8,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": "black",
    "ytick.labelcolor": "black",
    "lines.linewidth": 2.0,
    "legend.frameon": False,
    "legend.fontsize": 10,
    "figure.dpi": _DPI,
    "savefig.dpi": _DPI,
    # Names come from folders, where a dollar sign is no formula.
    "text.parse_math": False,
    # Text stays text: searchable, and small files.
    "svg.fonttype": "none",
    # With no date in the file, the same figure gives the same bytes.
    "svg.hashsalt": "fdftnet_jax",
}

# Training loss: lighter than the validation loss, which decides.
_TRAIN: dict[str, Any] = {"linewidth": 1.2, "linestyle": (0, (3, 2))}

# What curves are compared with: chance, the threshold and the like.
REFERENCE: dict[str, Any] = {
    "color": GREY,
    "linewidth": 1.2,
    "linestyle": (0, (4, 3)),
    "zorder": 1.5,
}
DOT: dict[str, Any] = {"color": GREY, "marker": "o", "linestyle": ""}

# Contact sheets, in pixels of the PNG.
_CELL = 128
_SHEET_WIDTH = 6 * _CELL
_GAP = 6
_MARGIN = 16
_TITLE_HEIGHT = 48


def roc_curves(
    path: str | os.PathLike[str],
    curves: Mapping[str, tuple[npt.ArrayLike, npt.ArrayLike]],
) -> None:
    """Draws ROC curves with their AUROC in the legend, and the diagonal of chance.

    Args:
      path: the file to write; its suffix chooses svg or png.
      curves: as for `roc_figure`.

    Raises:
      UserError: another suffix, or a curve without one of the classes.
      ValueError: no curves, or labels other than 0 and 1.
    """
    save(roc_figure(curves), path)


def roc_figure(
    curves: Mapping[str, tuple[npt.ArrayLike, npt.ArrayLike]],
    thresholds: Mapping[str, float] | None = None,
) -> Figure:
    """Draws the figure of `roc_curves`.

    Args:
      curves: for each name labels [n] (real = 0, fake = 1) and scores [n], higher
        for fake: P(fake), or the logit where the score saturates.
      thresholds: for some of the names the score from which an image is called fake,
        shown as a dot on the curve.
    """
    _require(curves, "curves")
    marked = thresholds or {}
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.2, 4.15 + 0.22 * len(curves)), layout="constrained")
        axes = figure.subplots()
        lines = []
        for i, (name, (labels, scores)) in enumerate(curves.items()):
            labels = metrics.check_labels(labels)
            false_positive, true_positive, _ = sklearn_metrics.roc_curve(labels, scores)
            area = sklearn_metrics.auc(false_positive, true_positive)
            lines += axes.plot(
                false_positive,
                true_positive,
                label=f"AUROC {area:.3f}  {name}",
                zorder=3,
                clip_on=False,
                **_line(i),
            )
            if name in marked:
                called = np.asarray(scores) >= marked[name]
                rates = [called[labels == label].mean() for label in (0, 1)]
                axes.plot(*rates, "o", color=_line(i)["color"], zorder=4, clip_on=False)
        if marked:
            lines.append(Line2D([], [], label="at the threshold", **DOT))
        lines += axes.plot([0, 1], [0, 1], label="AUROC 0.500  chance", **REFERENCE)
        axes.set(
            xlim=(0, 1),
            ylim=(0, 1),
            xticks=np.linspace(0, 1, 6),
            yticks=np.linspace(0, 1, 6),
            xlabel="real images called fake",
            ylabel="fake images called fake",
            aspect="equal",
        )
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(xmax=1))
        legend(figure, lines)
    return figure


def training_curves(
    path: str | os.PathLike[str],
    histories: Mapping[str, Sequence[Mapping[str, Any]]],
) -> None:
    """Draws losses (above) and validation accuracy (below) against the epoch.

    A dot marks the lowest validation loss.

    Args:
      path: the file to write; its suffix chooses svg or png.
      histories: as for `training_figure`.

    Raises:
      UserError: another suffix.
      ValueError: no histories.
    """
    save(training_figure(histories), path)


def training_figure(histories: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """Draws the figure of `training_curves`.

    Args:
      histories: for each run its epochs in order, as rows with `epoch`, `train_loss`
        and `validation_loss` (nats) and `validation_accuracy` (in [0, 1]). A value
        that is missing, None or NaN leaves a gap.
    """
    _require(histories, "histories")
    with mpl.rc_context(STYLE):
        figure = Figure(
            figsize=(4.2, 5.0 + 0.22 * len(histories)), layout="constrained"
        )
        above, below = figure.subplots(2, sharex=True)
        for i, rows in enumerate(histories.values()):
            epoch = _column(rows, "epoch")
            validation = _column(rows, "validation_loss")
            accuracy = _column(rows, "validation_accuracy")
            colour = _line(i)["color"]
            _curve(above, epoch, _column(rows, "train_loss"), color=colour, **_TRAIN)
            _curve(above, epoch, validation, color=colour)
            _curve(below, epoch, accuracy, color=colour)
            if np.isfinite(validation).any():
                best = np.nanargmin(validation)
                for axes, values in ((above, validation), (below, accuracy)):
                    axes.plot(epoch[best], values[best], "o", color=colour)
        above.set(title="Loss (nats)")
        below.set(title="Validation accuracy", xlabel="epoch")
        below.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        below.yaxis.set_major_formatter(PercentFormatter(xmax=1))
        grey: dict[str, Any] = {"color": GREY}
        keys = [
            Line2D([], [], label="training", **grey, **_TRAIN),
            Line2D([], [], label="validation", **grey),
            Line2D([], [], label="its lowest loss", marker="o", linestyle="", **grey),
        ]
        above.legend(handles=keys, fontsize=9)
        runs = [
            Line2D([], [], label=name, **_line(i)) for i, name in enumerate(histories)
        ]
        legend(figure, runs)
    return figure


def contact_sheet(
    path: str | os.PathLike[str], rows: Mapping[str, npt.ArrayLike]
) -> None:
    """Shows images in rows under their titles, small ones enlarged without smoothing.

    Args:
      path: the file to write; its suffix chooses svg or png.
      rows: for each title uint8 images [k, height, width, 3], k >= 1; as many as fit
        stand side by side, the others below. In a png each image pixel is a square of
        whole pixels.

    Raises:
      UserError: another suffix.
      ValueError: no rows, or an array that is not such images.
    """
    _require(rows, "rows")
    sheets = {title: _tile(title, np.asarray(images)) for title, images in rows.items()}
    width = 2 * _MARGIN + max(sheet.shape[1] for sheet in sheets.values())
    height = _MARGIN + sum(
        _TITLE_HEIGHT + sheet.shape[0] + _MARGIN for sheet in sheets.values()
    )
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width / _DPI, height / _DPI))
        top = height - _MARGIN
        for title, sheet in sheets.items():
            figure.text(
                _MARGIN / width,
                (top - _TITLE_HEIGHT / 2) / height,
                title,
                fontsize=11,
                verticalalignment="center",
            )
            rows_high, columns_wide, _ = sheet.shape
            top -= _TITLE_HEIGHT + rows_high
            axes = figure.add_axes(
                (
                    _MARGIN / width,
                    top / height,
                    columns_wide / width,
                    rows_high / height,
                )
            )
            axes.imshow(sheet, interpolation="none", aspect="auto")
            axes.set_axis_off()
            top -= _MARGIN
        save(figure, path)


def _tile(title: str, images: np.ndarray) -> np.ndarray:
    """Enlarges images and sets them side by side on white: [height, width, 3] uint8."""
    if (
        images.ndim != 4
        or images.dtype != np.uint8
        or images.shape[3] != 3
        or not images.size
    ):
        raise ValueError(
            f"{title!r} must be uint8 images [k, height, width, 3], k >= 1, "
            f"found {images.dtype} {images.shape}."
        )
    factor = max(1, round(_CELL / max(images.shape[1:3])))
    images = images.repeat(factor, axis=1).repeat(factor, axis=2)
    count, height, width, _ = images.shape
    columns = min(count, max(1, _SHEET_WIDTH // width))
    lines = -(-count // columns)
    step_y, step_x = height + _GAP, width + _GAP
    sheet = np.full((lines * step_y - _GAP, columns * step_x - _GAP, 3), 255, np.uint8)
    for i, image in enumerate(images):
        y, x = i // columns * step_y, i % columns * step_x
        sheet[y : y + height, x : x + width] = image
    return sheet


def _line(i: int) -> dict[str, Any]:
    """Colour and line style of the i-th curve."""
    return {
        "color": PALETTE[i % len(PALETTE)],
        "linestyle": _LINE_STYLES[i // len(PALETTE) % len(_LINE_STYLES)],
    }


def _column(rows: Sequence[Mapping[str, Any]], key: str) -> np.ndarray:
    """One field of all rows, [n] float64, NaN where there is no value."""
    values = (row.get(key) for row in rows)
    return np.array([np.nan if v is None else v for v in values], np.float64)


def _curve(axes: Axes, x: np.ndarray, y: np.ndarray, **style: Any) -> None:
    """Draws a line; a single epoch, which makes no line, is a small dot."""
    marker = "." if np.isfinite(y).sum() == 1 else ""
    axes.plot(x, y, marker=marker, **style)


def legend(figure: Figure, lines: Sequence[Artist]) -> None:
    """Adds a legend below the axes, where it hides no curve."""
    # Handles are passed, because Matplotlib drops automatic ones that begin with "_".
    labels = [textwrap.fill(str(line.get_label()), 44) for line in lines]
    figure.legend(lines, labels, loc="outside lower center")


def drawable(name: str, most: int | None = None) -> str:
    """Writes a name in characters that a figure's font has, '?' for others.

    Args:
      name: may hold any characters, line breaks and surrogates too.
      most: characters; a longer name loses its beginning.
    """
    known = _font()
    shown = "".join(c if c.isprintable() and ord(c) in known else "?" for c in name)
    if most is None or len(shown) <= most:
        return shown
    return f"...{shown[3 - most :]}"


@functools.cache
def _font() -> frozenset[int]:
    """The characters of the font of `STYLE`, which comes with Matplotlib."""
    return frozenset(
        ft2font.FT2Font(font_manager.findfont("DejaVu Sans")).get_charmap()
    )


def _require(mapping: Mapping[str, Any], name: str) -> None:
    if not mapping:
        raise ValueError(f"{name} must not be empty.")


def save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Writes a figure; makes its folder.

    Raises:
      UserError: another suffix than .svg and .png, or the disk refuses.
    """
    path = pathlib.Path(path)
    if path.suffix.lower() not in (".svg", ".png"):
        raise errors.UserError(
            f"A figure is written as .svg or .png, found {str(path)!r}; "
            "change the file's name."
        )
    metadata = {"Date": None} if path.suffix.lower() == ".svg" else None
    with files.writing(path.name, path.parent), mpl.rc_context(STYLE):
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata=metadata)


def svg(figure: Figure) -> str:
    """Draws a figure as the text of an SVG file."""
    file = io.StringIO()
    with mpl.rc_context(STYLE):
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()
