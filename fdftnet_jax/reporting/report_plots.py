"""The plots of a report, with what they show in words."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fdftnet_jax.evaluation import metrics, split_metrics
from fdftnet_jax.records import Calibration
from fdftnet_jax.reporting import (
    page,
    plots,
    robustness_plot,
    score_plots,
    wording,
)
from fdftnet_jax.run import Run


def of_scores(
    report: Mapping[str, Any],
    rows: split_metrics.Rows,
    calibration: Calibration | None,
) -> Iterator[page.Part]:
    """ROC and DET curve, histograms and reliability diagram.

    Args:
      report: of `results.report`.
      rows: the images.
      calibration: by which probabilities and threshold were made.
    """
    found, threshold = report["figures"], float(report["threshold"]["logit"])
    hits, alarms = (
        f"{100 * found[name]['value']:.1f} %"
        for name in ("tpr_at_threshold", "fpr_at_threshold")
    )
    name = f"{report['dataset']}, {report['split']}"
    curves = {name: (rows.labels, rows.ranking)}
    log_odds, at, which = rows.ranking, threshold, "raw"
    if calibration:
        log_odds = rows.ranking / calibration.temperature + calibration.shift
        at = threshold / calibration.temperature + calibration.shift
        which = "calibrated"
    series = {
        which: metrics.calibration_bins(rows.labels, probability, weights)
        for which, (probability, weights) in split_metrics.probabilities(
            rows, calibration
        ).items()
    }
    error = found[f"ece_{which}"]["value"]
    drawn = [
        page.Figure(
            plots.svg(plots.roc_figure(curves, {name: threshold})),
            f"ROC curve with an area of {found['auc']['value']:.3f}; at the threshold "
            f"{hits} of the fakes are found and {alarms} of the real images called "
            "fake.",
            "ROC: the fakes that are found, against the false alarms that it takes, "
            "for every threshold. The nearer to the upper left corner, the better.",
        ),
        page.Figure(
            plots.svg(score_plots.det_figure(rows.labels, rows.ranking, threshold)),
            f"DET curve through the equal error rate of {found['eer']['value']:.3f}; "
            f"at the threshold {alarms} of the real images are called fake.",
            "DET: both errors against each other, on axes of normal deviates, which "
            "spread small rates; the nearer to the lower left corner, the better. A "
            "rate of 0 stands at half an image.",
        ),
        page.Figure(
            plots.svg(score_plots.histogram_figure(rows.labels, log_odds, at)),
            f"Histograms of the {which} P(fake) of real and of fake images; {hits} of "
            f"the fake and {alarms} of the real ones lie at or above the threshold.",
            f"Scores: the {which} P(fake) of both classes, on an axis of log odds. "
            "Where the two overlap, the detector cannot tell them apart.",
        ),
        page.Figure(
            plots.svg(score_plots.reliability_figure(series)),
            f"Reliability diagram of {', '.join(series)} P(fake) in bins of equally "
            f"many images; the calibration error of the {which} one is {error:.3f}.",
            "Reliability: of the images with this P(fake), the share that is fake, "
            "weighted to the share of fakes that the probability assumes, as Brier "
            "score and calibration error are. On the dashed line it says what it is. "
            "Below: how many images each bin holds.",
        ),
    ]
    yield page.Figures(drawn)


def robustness(report: Mapping[str, Any]) -> Iterator[page.Part]:
    """Figures after image processing; nothing where the report has none."""
    found = report.get("robustness")
    if not found:
        return
    names = ("auc", "tpr_at_threshold", "fpr_at_threshold")
    rows = [("as they are", "", *_cells(found["clean"], names))]
    worst = ("", found["clean"]["auc"]["value"])
    for operation in found["operations"].values():
        for row in operation["strengths"]:
            strength = f"{operation['unit']} {row['strength']:g}"
            cells = _cells(row["figures"], names)
            rows.append((operation["title"], strength, *cells))
            value = row["figures"]["auc"]["value"]
            if value < worst[1]:
                worst = (f"{operation['title']}, {strength}", value)
    alt = f"AUROC of the images as they are: {found['clean']['auc']['value']:.3f}"
    if worst[0]:
        alt += f"; the lowest is {worst[1]:.3f}, after {worst[0]}"
    yield page.Figure(
        plots.svg(robustness_plot.figure(found)),
        f"{alt}. The table below has all values.",
        "The same images, the same detector and threshold, after ordinary image "
        "processing, from mild (left) to strong.",
    )
    heads = (
        "processing",
        "strength",
        *(wording.METRICS[name][0] for name in names),
    )
    yield page.Table("Values with their intervals.", heads, rows, text_columns=2)


def _cells(found: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """Figures with their intervals, a cell each."""
    return ["{} ({})".format(*wording.figure(found[name])) for name in names]


def training(run: Run) -> Iterator[page.Part]:
    """Losses and accuracy over the epochs; nothing where the run has no history."""
    history = run.history()
    if not history:
        return
    losses = [row["validation_loss"] for row in history if "validation_loss" in row]
    tested = "The checkpoint of the lowest validation loss"
    if run.config.get("keep") == "last":
        tested = (
            "Validation was scored by one window in the middle of each image. The last "
            "checkpoint"
        )
    lowest = f"; the lowest validation loss is {min(losses):.3f}" if losses else ""
    yield page.Figure(
        plots.svg(plots.training_figure({run.directory.name: history})),
        f"Training and validation loss and validation accuracy over {len(history)} "
        f"epochs{lowest}.",
        f"{tested} is the one that is tested here.",
    )
