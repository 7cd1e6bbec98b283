"""`WORKDIR/report.html`: what an evaluation found, for those it must convince.

One page (see `page`) on the split that was evaluated last: the verdict in a sentence,
metrics with their intervals, plots, the most wrong images, what the Fine-Tune
Transformer attends to, definitions, and what is needed to make all of it again. It
holds small copies of test images and the paths of the data.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fdftnet_jax.evaluation import scoring, split_metrics
from fdftnet_jax.records import Calibration, CheckpointRecord
from fdftnet_jax.reporting import (
    page,
    plots,
    report_images,
    report_plots,
    score_plots,
    wording,
)
from fdftnet_jax.run import Run
from fdftnet_jax.verdicts import Thresholds

_NETWORKS = {
    "classifier": "{backbone}",
    "fdftnet": "FDFtNet on {backbone}",
    "linear": "a linear layer on {backbone}",
}
# Shares of fakes among pictures, for what a verdict is worth.
_SHARES = (0.5, 0.1, 0.01)


def write(
    run: Run,
    report: Mapping[str, Any],
    scores: scoring.Scores,
    calibration: Calibration | None,
) -> Path:
    """Writes the page of a scored split.

    Args:
      run: that was evaluated.
      report: of `results.report`.
      scores: the split; its images are shown where it has them.
      calibration: of the checkpoint that scored it.

    Returns:
      Its path.

    Raises:
      UserError: the disk is full or read-only.
    """
    record = run.best
    rows = split_metrics.Rows.of(scores)
    network = _network(record)
    thresholds = calibration.thresholds if calibration else Thresholds(0.0, 0.0)
    temperature = calibration.temperature if calibration else 1.0
    shown = report_images.Shown(scores, rows, calibration, thresholds, temperature)
    sections = [
        page.Section("Metrics", list(_metrics(report))),
        page.Section("What a verdict is worth", list(_worth(report))),
        page.Section("Plots", list(report_plots.of_scores(report, rows, calibration))),
        page.Section("After image processing", list(report_plots.robustness(report))),
        page.Section(
            "The most wrong images",
            report_images.most_wrong(shown, record.preprocessing),
        ),
        page.Section(
            "What the network attends to",
            report_images.attention(shown, record, run.variables),
        ),
        page.Section("Adaptations", list(_adaptations(run))),
        page.Section("Training", list(report_plots.training(run))),
        page.Section("The detector", [_detector(record, network, report, calibration)]),
        page.Section("Definitions", [page.Definitions(_words(report, calibration))]),
        page.Section("To make it again", list(_records(run, report))),
    ]
    new = _is_new(scores, record)
    opening = list(_opening(report, network, calibration, new=new))
    environment = report["environment"]
    foot = (
        f"Made by the evaluation of fdftnet_jax, commit {environment['git_commit']}. "
        "This file loads nothing from elsewhere."
    )
    text = page.render("Report on a forgery detector", opening, sections, foot)
    return page.write(run.report_path, text)


def _network(record: CheckpointRecord) -> str:
    model = record.model
    return _NETWORKS[model["kind"]].format(backbone=model["backbone"])


def _opening(
    report: Mapping[str, Any],
    network: str,
    calibration: Calibration | None,
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
    lead = wording.verdict(hits, alarms)
    if "share_decided" in found:
        lead += f" {wording.decided(found)}"
    yield page.Text(lead, weight="lead")
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
            page.Term("Which class is called positive?", words["Positive"]),
            page.Term("From which score is a picture called fake?", words["Threshold"]),
            page.Term("How were the intervals made?", words["Interval"]),
        ]
    )
    notes = [wording.sentence(note) for note in report["notes"]]
    if not report["data_directory"]:
        notes.insert(0, wording.TOY)
    if notes:
        yield page.Notes("Before you trust these numbers", notes)


def _is_new(scores: scoring.Scores, record: CheckpointRecord) -> bool:
    """Whether the split certainly took no part in any training."""
    known = {data_set.directory for data_set in record.lineage}
    return scores.split == "test" or scores.directory not in known


def _words(
    report: Mapping[str, Any], calibration: Calibration | None
) -> dict[str, str]:
    """Definitions, with what is known of this report."""
    threshold, bootstrap = report["threshold"], report["bootstrap"]
    percent = f"{100 * threshold['probability']:.2f} %"
    text = (
        f"An image is called fake where its {threshold['probability_of']} P(fake) is "
        f"at least {percent} (log odds z of {threshold['logit']:.4f}). "
    )
    if "lower_logit" in threshold:
        below = f"{100 * threshold['lower_probability']:.2f} %"
        text += (
            f"It is called real where that is below {below} (log odds z of "
            f"{threshold['lower_logit']:.4f}), and undecided between: too close to "
            "call. "
        )
    if calibration:
        text += (
            f"That was set before the test, on {calibration.num_images:,} validation "
            f"images, by the rule: {calibration.rule_in_words}."
        )
    else:
        text += "Nothing was calibrated; that is where both classes are as likely."
    interval = (
        f"{wording.WORDS['Interval']} Here: {bootstrap['resamples']:,} resamples "
        f"of {bootstrap['num_units']:,} {bootstrap['unit']}s, "
        f"{'by class' if bootstrap['stratified_by_class'] else 'of both classes'}, "
        f"the middle {bootstrap['level']:.0%} of the values."
    )
    found = report["figures"]
    titles = dict(wording.METRICS[name] for name in wording.METRICS if name in found)
    return {**wording.WORDS, "Threshold": text, "Interval": interval, **titles}


def _metrics(report: Mapping[str, Any]) -> Iterator[page.Part]:
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


def _adaptations(run: Run) -> Iterator[page.Part]:
    """What was tested before and after each adaptation that led to the weights."""
    rows = []
    for adaptation in run.adaptations:
        for each in adaptation["sets"]:
            before, after = each["before"] or {}, each["after"]
            figures = [
                f"{before[name]:{form}} → {after[name]:{form}}"
                if before
                else f"{after[name]:{form}}"
                for name, form in (
                    ("auc", ".3f"),
                    ("real_called_fake", ".1%"),
                    ("fake_called_real", ".1%"),
                )
            ]
            kind = "kept" if each["old"] else "new"
            pictures = f"{each['real'] + each['fake']:,}"
            rows.append((adaptation["date"], each["name"], kind, pictures, *figures))
    if rows:
        heads = (
            *("date", "forgery", "kind", "test pictures", "AUROC"),
            *("real called fake", "fake called real"),
        )
        caption = (
            "Each adaptation that led to this detector, on the test pictures of its "
            "day, before and after."
        )
        yield page.Table(caption, heads, rows, text_columns=3)


def _figure_table(found: Mapping[str, Any], interval: str, caption: str) -> page.Table:
    rows = [
        (page.Term(title, meaning), *wording.figure(found[name]))
        for name, (title, meaning) in wording.METRICS.items()
        if name in found
    ]
    heads = ("figure", "value", page.Term(interval, wording.WORDS["Interval"]))
    return page.Table(caption, heads, rows)


def _counts(caption: str, counts: Mapping[str, int]) -> page.Table:
    keys = {
        "real": ["true_real", "false_fake"],
        "fake": ["false_real", "true_fake"],
    }
    heads = ["what it is", "called real", "called fake"]
    if "undecided_real" in counts:
        heads.append("undecided")
        for name in keys:
            keys[name].append(f"undecided_{name}")
    rows = [(name, *(f"{counts[key]:,}" for key in keys[name])) for name in keys]
    return page.Table(caption, heads, rows)


def _generators(found: Mapping[str, Any], interval: str) -> page.Table | None:
    if len(found) < 2:
        return None
    rows = []
    for name, of in found.items():
        cells = [*wording.figure(of["auc"]), *wording.figure(of["tpr_at_threshold"])]
        rows.append((name, f"{of['num_fake']:,}" + " (few)" * of["few"], *cells))
    caption = "Each generator's fakes against all real images."
    found_title = wording.METRICS["tpr_at_threshold"][0]
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
        rows.append(
            (
                f"{share:.0%}",
                "-" if right is None else f"{wording.per_hundred(right)} %",
            )
        )
    heads = ("share of fakes among all", "among those called fake")
    yield page.Table("From the two shares of the first sentence.", heads, rows)


def _detector(
    record: CheckpointRecord,
    network: str,
    report: Mapping[str, Any],
    calibration: Calibration | None,
) -> page.Table:
    model, preprocessing = record.model, record.preprocessing.to_dict()
    rows = [("network", network)]
    if model["kind"] == "fdftnet":
        rows += [
            ("MBblockV3 blocks, N", str(model["num_blocks"])),
            ("Fine-Tune Transformer stages, M", str(model["num_stages"])),
        ]
        if model.get("regression"):
            rows.append(
                ("added to its logits", "a regression on the backbone before training")
            )
    for number, data_set in enumerate(record.lineage):
        where = data_set.directory or f"toy, {data_set.data['family']}"
        title = "before that, on" if number else "trained on"
        rows.append((title, f"{where}, split '{data_set.splits[0]}'"))
    rows += [
        ("parameters trained last", f"{record.trained_parameters:,}"),
        ("input", ", ".join(f"{k} {value}" for k, value in preprocessing.items())),
        ("checkpoint", f"step {report['checkpoint_step']}"),
        ("sha256 of its arrays", record.digest),
        ("tested on", report["data_directory"] or report["dataset"]),
    ]
    if calibration:
        lower = []
        if calibration.lower_logit is not None:
            lower = [("real below the logit", f"{calibration.lower_logit:.6g}")]
        rows += [
            ("threshold on logits", f"{calibration.threshold_logit:.6g}"),
            *lower,
            ("chosen by", calibration.rule_in_words),
            ("on", f"{calibration.num_images:,} validation images"),
            ("temperature T", f"{calibration.temperature:.6g}"),
            ("share of fakes assumed", f"{calibration.prior:.3g}"),
        ]
    return page.Table("What was tested.", (), rows, text_columns=2)


def _records(run: Run, report: Mapping[str, Any]) -> Iterator[page.Part]:
    yield page.versions(report["environment"])
    if table := _evaluations(run):
        yield table
    if run.config:
        text = json.dumps(run.config, indent=2, sort_keys=True)
        yield page.Record("Resolved config", text)
    else:
        yield page.Text("The workdir holds no config.json.")
    text = json.dumps(report, indent=2)
    yield page.Record("All metrics as JSON", text, printed=False)


def _evaluations(run: Run) -> page.Table | None:
    """The evaluations of the run, of which the page shows the last."""
    rows = [
        (
            evaluation.file,
            f"{evaluation.num_real + evaluation.num_fake:,}",
            *wording.figure(evaluation.auc),
        )
        for evaluation in run.evaluations()
    ]
    heads = ("file", "images", "AUROC", "interval")
    caption = "Evaluations in this workdir; this page is of the one made last."
    return page.Table(caption, heads, rows) if rows else None
