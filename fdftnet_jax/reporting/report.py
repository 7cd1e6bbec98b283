"""`WORKDIR/report.html`: what an evaluation found, for those it must convince.

One page (see `page`) on the split that was evaluated last: the verdict in a sentence,
figures with their intervals, plots, the most wrong images, what the Fine-Tune
Transformer attends to, definitions, and what is needed to make all of it again. It
holds small copies of test images and the paths of the data.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fdftnet_jax.evaluation import calibration as calibrating
from fdftnet_jax.evaluation import figures, scoring
from fdftnet_jax.reporting import (
    definitions,
    page,
    plots,
    report_images,
    report_plots,
    score_plots,
    wording,
)
from fdftnet_jax.training.checkpoint import Checkpoints

FILE = "report.html"
_NETWORKS = {
    "classifier": "{backbone}",
    "fdftnet": "FDFtNet on {backbone}",
    "linear": "a linear layer on {backbone}",
}
# Shares of fakes among pictures, for what a verdict is worth.
_SHARES = (0.5, 0.1, 0.01)


def write(
    workdir: str | os.PathLike[str],
    report: Mapping[str, Any],
    scores: scoring.Scores,
    calibration: calibrating.Calibration | None,
) -> Path:
    """Writes the page of a scored split.

    Args:
      workdir: of the run.
      report: of `results.report`.
      scores: the split; its images are shown where it has them.
      calibration: of the checkpoint that scored it.

    Returns:
      Its path.

    Raises:
      UserError: the disk is full or read-only.
    """
    directory = Path(workdir)
    with Checkpoints(workdir) as checkpoints:
        meta, variables = checkpoints.load_meta(), checkpoints.load_variables()
    rows = figures.Rows.of(scores)
    network = _network(meta)
    threshold = float(report["threshold"]["logit"])
    temperature = calibration.temperature if calibration else 1.0
    shown = report_images.Shown(scores, rows, calibration, threshold, temperature)
    sections = [
        page.Section("Figures", list(_figures(report))),
        page.Section("What a verdict is worth", list(_worth(report))),
        page.Section("Plots", list(report_plots.of_scores(report, rows, calibration))),
        page.Section("After image processing", list(report_plots.robustness(report))),
        page.Section(
            "The most wrong images",
            report_images.most_wrong(shown, meta["preprocessing"]),
        ),
        page.Section(
            "What the network attends to",
            report_images.attention(shown, meta, variables),
        ),
        page.Section("Training", list(report_plots.training(directory))),
        page.Section("The detector", [_detector(meta, network, report, calibration)]),
        page.Section("Definitions", [page.Definitions(_words(report, calibration))]),
        page.Section("To make it again", list(_records(directory, report))),
    ]
    new = _is_new(scores, meta)
    opening = list(_opening(report, network, calibration, new=new))
    environment = report["environment"]
    foot = (
        f"Made by the evaluation of fdftnet_jax, commit {environment['git_commit']}. "
        "This file loads nothing from elsewhere."
    )
    text = page.render("Report on a forgery detector", opening, sections, foot)
    return page.write(directory / FILE, text)


def _network(meta: Mapping[str, Any]) -> str:
    model = meta["model"]
    return _NETWORKS[model["kind"]].format(backbone=model["backbone"])


def _opening(
    report: Mapping[str, Any],
    network: str,
    calibration: calibrating.Calibration | None,
    *,
    new: bool,
) -> Iterator[page.Part]:
    found, bootstrap = report["figures"], report["bootstrap"]
    hits, alarms = found["tpr_at_threshold"], found["fpr_at_threshold"]
    seen = "that it had not seen before" if new else "that it may have learned from"
    yield page.Text(
        f"{network[0].upper()}{network[1:]}, tested on {report['num_examples']:,} "
        f"pictures {seen}: {report['num_real']:,} real and {report['num_fake']:,} fake "
        f"({report['dataset']}, split '{report['split']}')."
    )
    yield page.Text(wording.verdict(hits, alarms), weight="lead")
    svg = plots.svg(score_plots.verdict_figure(hits["value"], alarms["value"]))
    yield page.Figure(
        svg,
        wording.verdict(hits, alarms),
        "Each square is one of 100 pictures; filled ones are called fake. Tossing a "
        "coin would fill 50 of both.",
    )
    yield page.Text(
        "How sure is that? The numbers in brackets are "
        f"{bootstrap['level']:.0%} intervals: had other pictures of the same kind been "
        "taken for the test, the number would probably lie within."
    )
    yield page.Text(
        "What it does not say: how the detector does on other forgeries, other "
        "cameras, or pictures that were edited or saved anew since. A verdict on a "
        "single picture is a hint, and no proof."
    )
    words = _words(report, calibration)
    yield page.Terms(
        [
            page.Term("Which pictures are positive?", words["Positive"]),
            page.Term("From when on is a picture called fake?", words["Threshold"]),
            page.Term("How were the intervals made?", words["Interval"]),
        ]
    )
    notes = [wording.sentence(note) for note in report["notes"]]
    if not report["data_directory"]:
        notes.insert(0, definitions.TOY)
    if notes:
        yield page.Notes("Before you trust these figures", notes)


def _is_new(scores: scoring.Scores, meta: Mapping[str, Any]) -> bool:
    """Whether the split certainly took no part in any training."""
    known = {run["directory"] for run in meta["trained_on"]}
    return scores.split == "test" or scores.directory not in known


def _words(
    report: Mapping[str, Any], calibration: calibrating.Calibration | None
) -> dict[str, str]:
    """Definitions, with what is known of this report."""
    threshold, bootstrap = report["threshold"], report["bootstrap"]
    percent = f"{100 * threshold['probability']:.2f} %"
    text = (
        f"An image is called fake where its {threshold['probability_of']} P(fake) is "
        f"at least {percent} (log odds z of {threshold['logit']:.4f}). "
    )
    if calibration:
        number = calibration.num_real + calibration.num_fake
        text += (
            f"That was set before the test, on {number:,} validation images, by the "
            f"rule: {calibrating.describe(calibration)}."
        )
    else:
        text += "Nothing was calibrated; that is where both classes are as likely."
    interval = (
        f"{definitions.WORDS['Interval']} Here: {bootstrap['resamples']:,} resamples "
        f"of {bootstrap['num_units']:,} {bootstrap['unit']}s, "
        f"{'by class' if bootstrap['stratified_by_class'] else 'of both classes'}, "
        f"the middle {bootstrap['level']:.0%} of the values."
    )
    found = report["figures"]
    titles = dict(
        definitions.FIGURES[name] for name in definitions.FIGURES if name in found
    )
    return {**definitions.WORDS, "Threshold": text, "Interval": interval, **titles}


def _figures(report: Mapping[str, Any]) -> Iterator[page.Part]:
    bootstrap = report["bootstrap"]
    interval = f"{bootstrap['level']:.0%} interval"
    how = (
        f"{bootstrap['resamples']:,} resamples of {bootstrap['num_units']:,} "
        f"{bootstrap['unit']}s, seed {bootstrap['seed']}"
    )
    yield _figure_table(report["figures"], interval, f"All images; intervals: {how}.")
    yield _counts("At the threshold, number of images", report["verdicts"])
    if table := _generators(report["generators"], interval):
        yield table
    if pooled := report["pooled"]:
        yield page.Text(
            f"By group: the mean of the logits of its images judges each of the "
            f"{pooled['num_rows']:,} groups ({pooled['num_real']:,} real, "
            f"{pooled['num_fake']:,} fake), at the same threshold."
        )
        yield _figure_table(pooled["figures"], interval, "By group.")
        yield _counts("At the threshold, number of groups", pooled["verdicts"])
        if table := _generators(pooled["generators"], interval):
            yield table


def _figure_table(found: Mapping[str, Any], interval: str, caption: str) -> page.Table:
    rows = [
        (page.Term(title, meaning), *wording.figure(found[name]))
        for name, (title, meaning) in definitions.FIGURES.items()
        if name in found
    ]
    heads = ("figure", "value", page.Term(interval, definitions.WORDS["Interval"]))
    return page.Table(caption, heads, rows)


def _counts(caption: str, counts: Mapping[str, int]) -> page.Table:
    rows = [
        (name, *(f"{counts[key]:,}" for key in keys))
        for name, keys in (
            ("real", ("true_real", "false_fake")),
            ("fake", ("false_real", "true_fake")),
        )
    ]
    heads = ("what it is", "called real", "called fake")
    return page.Table(caption, heads, rows)


def _generators(found: Mapping[str, Any], interval: str) -> page.Table | None:
    if len(found) < 2:
        return None
    rows = []
    for name, of in found.items():
        cells = [*wording.figure(of["auc"]), *wording.figure(of["tpr_at_threshold"])]
        rows.append((name, f"{of['num_fake']:,}" + " (few)" * of["few"], *cells))
    caption = "Each generator's fakes against all real images."
    found_title = definitions.FIGURES["tpr_at_threshold"][0]
    heads = ("generator", "fakes", "AUROC", interval, found_title, interval)
    return page.Table(caption, heads, rows)


def _worth(report: Mapping[str, Any]) -> Iterator[page.Part]:
    found = report["figures"]
    hits = found["tpr_at_threshold"]["value"]
    alarms = found["fpr_at_threshold"]["value"]
    yield page.Text(
        "Of the pictures that it calls fake, how many are? That depends on how many "
        "fakes there are among the pictures that it is asked about."
    )
    rows = []
    for share in _SHARES:
        called, false = share * hits, (1 - share) * alarms
        right = called / (called + false) if called + false else None
        rows.append((f"{share:.0%}", "-" if right is None else f"{right:.0%}"))
    heads = ("share of fakes among all", "among those called fake")
    yield page.Table("From the two shares of the first sentence.", heads, rows)


def _detector(
    meta: Mapping[str, Any],
    network: str,
    report: Mapping[str, Any],
    calibration: calibrating.Calibration | None,
) -> page.Table:
    model, seen = meta["model"], meta["preprocessing"]
    rows = [("network", network)]
    if model["kind"] == "fdftnet":
        rows += [
            ("MBblockV3 blocks, N", str(model["num_blocks"])),
            ("Fine-Tune Transformer stages, M", str(model["num_stages"])),
        ]
    for number, run in enumerate(meta["trained_on"]):
        where = run["directory"] or f"toy, {run['data']['family']}"
        title = "before that, on" if number else "trained on"
        rows.append((title, f"{where}, split '{run['data']['train_split']}'"))
    rows += [
        ("parameters trained last", f"{meta.get('trained_parameters', 0):,}"),
        ("input", ", ".join(f"{name} {value}" for name, value in seen.items())),
        ("checkpoint", f"step {report['checkpoint_step']}"),
        ("sha256 of its arrays", meta["digests"]["variables"]),
        ("tested on", report["data_directory"] or report["dataset"]),
    ]
    if calibration:
        number_seen = calibration.num_real + calibration.num_fake
        rows += [
            ("threshold on logits", f"{calibration.threshold_logit:.6g}"),
            ("chosen by", calibrating.describe(calibration)),
            ("on", f"{number_seen:,} validation images"),
            ("temperature T", f"{calibration.temperature:.6g}"),
            ("share of fakes assumed", f"{calibration.prior:.3g}"),
        ]
    return page.Table("What was tested.", (), rows, text_columns=2)


def _records(directory: Path, report: Mapping[str, Any]) -> Iterator[page.Part]:
    yield page.versions(report["environment"])
    if table := _evaluations(directory):
        yield table
    try:
        yield page.Record("Resolved config", (directory / "config.json").read_text())
    except OSError:
        yield page.Text("The workdir holds no config.json.")
    text = json.dumps(report, indent=2)
    yield page.Record("All figures as JSON", text, printed=False)


def _evaluations(directory: Path) -> page.Table | None:
    """The evaluations that the workdir holds, of which the page shows the last."""
    rows: list[Sequence[str]] = []
    for path in sorted((directory / "evaluation").glob("*.json")):
        try:
            found = json.loads(path.read_text())
            cells = wording.figure(found["figures"]["auc"])
            rows.append((path.name, f"{found['num_examples']:,}", *cells))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    heads = ("file", "images", "AUROC", "interval")
    caption = "Evaluations in this workdir; this page is of the one made last."
    return page.Table(caption, heads, rows) if rows else None
