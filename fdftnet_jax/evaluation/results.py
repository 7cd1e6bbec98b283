"""What a scored split comes to: metrics with intervals, in JSON, and rows in CSV.

`report` returns, and `write` stores as `WORKDIR/evaluation/<name>-<split>.json`:

  schema_version     3
  dataset, split, data_directory, checkpoint_step    what was scored, and with what
  num_examples, num_real, num_fake, num_groups       of the split
  threshold          `logit` and `probability` from which an image is called fake, and
                     their `source`: 'calibration', or 'score 0.5' without one (the
                     probability is that of `probability_of`: 'calibrated' or 'raw').
                     By the rule 'band' also `lower_logit` and `lower_probability`,
                     below which an image is called real; between, it is undecided
  calibration        see `records.Calibration`; null without one
  figures            name -> {value, interval}: [low, high] of `bootstrap.level`, or
                     null where there is none
    accuracy                 of calling fake what has a score of 0.5 or more
    auc, average_precision, eer, tpr_at_fpr_0.01, tpr_at_fpr_0.001, loss
                             see `metrics.binary_metrics`
    accuracy_at_threshold, tpr_at_threshold, fpr_at_threshold
                             shares of all images that are called what they are, of
                             all fake ones called fake, and of all real ones called
                             fake; an undecided image is called neither
    share_decided, wrong_of_decided
                             by the rule 'band' alone: the share of the images that is
                             decided, and of these the share called what they are not
                             (left out where none is decided)
    brier_raw, ece_raw       Brier score, mean (P(fake) - label)^2, and expected
                             calibration error (`metrics.calibration_error`), of the
                             score
    brier_calibrated, ece_calibrated     of the calibrated P(fake)
  confusion          counts at score 0.5 (`metrics.confusion`)
  verdicts           counts at the threshold (`split_metrics.verdicts`)
  bootstrap          how the intervals were made (`intervals.Bootstrap.describe`), seed
  generators         name -> its fakes against all real images: num_fake, few (fewer
                     than `split_metrics.FEW`), and as in `figures` `auc` and
                     `tpr_at_threshold`
  pooled             null, or the same by group: num_rows, num_real, num_fake, figures
                     (without probabilities), verdicts, bootstrap, generators
  robustness         null, or the metrics under image processing (`robustness`)
    clean                    of the images as they are: as in `figures` `auc`,
                             `tpr_at_threshold` and `fpr_at_threshold`
    operations               name -> {title, unit, strengths}: from mild to strong,
                             {strength, figures}, the same metrics in the same resamples
  notes              what a reader should know before trusting them
  environment        see `scoring.environment`

Brier score and ECE are over images weighted so that fakes have the share that the
probability assumes: `calibration.training_prior` for the score and `calibration.prior`
for the calibrated one. Without a calibration all images weigh the same. ECE has no
interval, because it grows with chance: it is larger in a resample than in the split.
`share_decided` and `wrong_of_decided` are weighted to `calibration.prior`, too: the
second can be compared with `calibration.max_wrong`, which validation kept to.

**Pooled**: the images of one group, class and generator are one row, with the mean of
their logits. Log odds are what independent evidence adds up to, and what calibration
scales; a mean of scores would be decided by how many of them are saturated. The
threshold is that of single images.

`..._scores.csv` has a row for each image: path, group, generator, label, logit, score
(raw), calibrated (P(fake), empty without a calibration), and verdict, 'real', 'fake' or
(by the rule 'band') 'undecided'. `..._groups.csv` has the pooled rows.
"""

import csv
import io
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from scipy import special

from fdftnet_jax.evaluation import (
    intervals,
    metrics,
    robustness,
    scoring,
    split_metrics,
)
from fdftnet_jax.records import Calibration
from fdftnet_jax.run import Run
from fdftnet_jax.verdicts import Thresholds

SCHEMA_VERSION = 3
# With fewer groups their bootstrap finds intervals that are too narrow.
_FEW_GROUPS = 30


def report(
    scores: scoring.Scores,
    calibration: Calibration | None,
    *,
    pool: bool = False,
    conditions: robustness.Conditions | None = None,
    resamples: int = intervals.RESAMPLES,
    seed: int = intervals.SEED,
) -> dict[str, Any]:
    """The metrics of a scored split, ready for JSON (see the module).

    Args:
      scores: the split.
      calibration: of the checkpoint that scored it.
      pool: whether to add metrics by video.
      conditions: the logits of the same images under processing (`robustness.score`),
        to add their metrics.
      resamples: for the intervals.
      seed: of the resamples.

    Raises:
      UserError: a class is missing, or a logit is not finite.
    """
    rows = split_metrics.Rows.of(scores)
    threshold = calibration.threshold_logit if calibration else 0.0
    computed, bootstrap = split_metrics.compute(
        rows,
        threshold,
        split_metrics.probabilities(rows, calibration),
        decisions=split_metrics.decisions(rows, calibration),
        resamples=resamples,
        seed=seed,
    )
    by_generator = split_metrics.by_generator(
        rows, threshold, resamples=resamples, seed=seed
    )
    return {
        "schema_version": SCHEMA_VERSION,
        "dataset": scores.dataset,
        "split": scores.split,
        "data_directory": scores.directory,
        "checkpoint_step": scores.step,
        "num_examples": int(rows.labels.size),
        "num_real": int(np.sum(rows.labels == 0)),
        "num_fake": int(np.sum(rows.labels == 1)),
        "num_groups": len(set(rows.groups)),
        "threshold": _threshold(calibration),
        "calibration": calibration.to_dict() if calibration else None,
        "figures": computed,
        "confusion": metrics.confusion(rows.labels, rows.ranking >= 0),
        "verdicts": split_metrics.verdicts(rows, calibration),
        "bootstrap": bootstrap,
        "generators": by_generator,
        "pooled": _pooled(rows, calibration, resamples, seed) if pool else None,
        "robustness": conditions
        and robustness.report(
            scores, conditions, threshold, resamples=resamples, seed=seed
        ),
        "notes": [
            *_never_seen(scores, by_generator),
            *_notes(scores, calibration, rows, computed, bootstrap, pool=pool),
        ],
        "environment": scoring.environment(),
    }


def write(
    report: dict[str, Any],
    scores: scoring.Scores,
    calibration: Calibration | None,
    run: Run,
) -> list[Path]:
    """Writes a report and its rows below `WORKDIR/evaluation`.

    Returns:
      The paths of `<name>-<split>.json`, `..._scores.csv` and, where the report is
      pooled, `..._groups.csv`.

    Raises:
      UserError: the disk is full or read-only.
    """
    stem = run.evaluation_path(
        scores.dataset, scores.directory, scores.split, own=scores.own
    ).stem
    rows = split_metrics.Rows.of(scores)
    described = [
        [record[k] for k in ("path", "group", "generator", "label")]
        for record in scores.records
    ]
    texts = {
        f"{stem}.json": json.dumps(report, indent=2) + "\n",
        f"{stem}_scores.csv": _table(
            ["path", "group", "generator", "label"], described, rows, calibration
        ),
    }
    if report["pooled"] is not None:
        rows = rows.pooled()
        described = [
            list(row)
            for row in zip(
                rows.groups, rows.generators, rows.labels, rows.sizes, strict=True
            )
        ]
        texts[f"{stem}_groups.csv"] = _table(
            ["group", "generator", "label", "num_images"], described, rows, calibration
        )
    return run.write_evaluation(texts)


def _threshold(calibration: Calibration | None) -> dict[str, Any]:
    if calibration is None:
        return {
            "source": "score 0.5",
            "logit": 0.0,
            "probability": 0.5,
            "probability_of": "raw",
        }
    return {"source": "calibration", **calibration.described_thresholds()}


def _table(
    names: list[str],
    described: list[list[Any]],
    rows: split_metrics.Rows,
    calibration: Calibration | None,
) -> str:
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow([*names, "logit", "score", "calibrated", "verdict"])
    thresholds = calibration.thresholds if calibration else Thresholds(0.0, 0.0)
    verdicts = thresholds.verdicts(rows.ranking)
    calibrated = [""] * len(described)
    if calibration:
        calibrated = [f"{p:.9g}" for p in calibration.probability(rows.ranking)]
    for columns, logit, probability, verdict in zip(
        described, rows.ranking, calibrated, verdicts, strict=True
    ):
        score = special.expit(logit)
        writer.writerow(
            [*columns, f"{logit:.9g}", f"{score:.9g}", probability, verdict]
        )
    return file.getvalue()


def _pooled(
    rows: split_metrics.Rows,
    calibration: Calibration | None,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    videos = rows.pooled()
    threshold = calibration.threshold_logit if calibration else 0.0
    computed, bootstrap = split_metrics.compute(
        videos,
        threshold,
        {},
        decisions=split_metrics.decisions(videos, calibration),
        resamples=resamples,
        seed=seed,
    )
    return {
        "num_rows": int(videos.labels.size),
        "num_real": int(np.sum(videos.labels == 0)),
        "num_fake": int(np.sum(videos.labels == 1)),
        "figures": computed,
        "verdicts": split_metrics.verdicts(videos, calibration),
        "bootstrap": bootstrap,
        "generators": split_metrics.by_generator(
            videos, threshold, resamples=resamples, seed=seed
        ),
    }


def _never_seen(scores: scoring.Scores, generators: dict[str, Any]) -> Iterator[str]:
    """How generators fare that were held out of the training, against the others."""
    others = [
        of["auc"]["value"]
        for name, of in generators.items()
        if name not in scores.held_out
    ]
    for name in scores.held_out:
        if name not in generators or not others:
            continue
        found, of_others = generators[name]["auc"], sum(others) / len(others)
        low, high = found["interval"] or (math.nan, math.nan)
        apart = found["value"] - of_others
        worse = "a drop of" if apart < 0 else "a gain of"
        yield (
            f"never trained on: fakes of {name}, whose AUROC is {found['value']:.3f} "
            f"({low:.3f} to {high:.3f}), {worse} {abs(apart):.3f} against the "
            f"generators that were trained on ({of_others:.3f} in the mean)"
        )


def _notes(
    scores: scoring.Scores,
    calibration: Calibration | None,
    rows: split_metrics.Rows,
    computed: dict[str, Any],
    bootstrap: dict[str, Any],
    *,
    pool: bool,
) -> list[str]:
    notes = []
    real = int(np.sum(rows.labels == 0))
    for bound in metrics.FPR_BOUNDS:
        if real * bound < 1:
            notes.append(
                f"{real} real images are too few to tell a false positive rate of "
                f"{bound:g} from 0: tpr_at_fpr_{bound} allows none"
            )
    exact = [
        name
        for name, figure in computed.items()
        if figure["value"] in (0, 1) and figure["interval"] == [figure["value"]] * 2
    ]
    if exact:
        fewer = min(real, rows.labels.size - real)
        notes.append(
            f"the same in every resample: {', '.join(exact)}; an interval without "
            f"width is no certainty, {fewer} images of a class do not show an error "
            f"rate below about {3 / fewer:.2g}"
        )
    if bootstrap["unit"] == "group" and bootstrap["num_units"] < _FEW_GROUPS:
        number = bootstrap["num_units"]
        notes.append(f"only {number} groups: the intervals are too narrow")
    if lacking := bootstrap["without_a_class"]:
        notes.append(
            f"{lacking} of {bootstrap['resamples']} resamples lack a class and are "
            "left out of the intervals"
        )
    if calibration is None:
        notes.append("not calibrated: verdicts are at score 0.5")
    else:
        notes += [f"calibration: {note}" for note in calibration.notes]
    if scores.own and scores.split in ("validation", "all"):
        notes.append(
            "validation chose the checkpoint and the threshold: on it both look better "
            "than they are"
        )
    if pool and rows.pooled().labels.size == rows.labels.size:
        notes.append("no group holds several images: pooled metrics are the same")
    return notes
