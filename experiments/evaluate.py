"""Scores a split with a run's best checkpoint.

    python -m experiments.evaluate --workdir=runs/fdft --split=test [--data_dir=PATH]
        [--data_name=face2face] [--robustness] [--replace]

Everything else comes from the workdir: a threshold and probabilities from its
calibration.json, which is made where it is missing. Prints a summary and writes
WORKDIR/evaluation/<dataset>-<split>.json and <dataset>-<split>_scores.csv, with
--pool=group ..._groups.csv too, and with --robustness ..._robustness.svg.
WORKDIR/report.html shows all of it to others. An evaluation that exists is refused
unless --replace is given.
"""

import textwrap
from collections.abc import Mapping
from typing import Any

from absl import flags

from experiments import launch
from fdftnet_jax import files
from fdftnet_jax.reporting import wording

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
_SPLIT = flags.DEFINE_enum(
    "split",
    "test",
    ["train", "validation", "test", "finetune", "all"],
    "What to score; 'all' is every image of the data.",
)
_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Another folder of images than the run's own."
)
_DATA_NAME = flags.DEFINE_enum(
    "data_name",
    None,
    ["folder", "pggan", "deepfakes", "face2face", "dfd"],
    "What is in it, as config.data.name (default: what a run of these weights read "
    "there, or folder).",
)
_POOL = flags.DEFINE_enum(
    "pool",
    "none",
    ["none", "group"],
    "'group' adds metrics by group, such as a video: the mean logit of its images.",
)
_ROBUSTNESS = flags.DEFINE_bool(
    "robustness",
    False,
    "Score the images after JPEG compression, rescaling, blur and noise, too: 16 times "
    "the work.",
)
_REPLACE = flags.DEFINE_bool(
    "replace", False, "Replace an earlier evaluation of the same split."
)
_REPORT = flags.DEFINE_bool("report", True, "Write WORKDIR/report.html.")
_WIDTH = 96
# Of the table of robustness.
_COLUMNS = {
    "auc": "AUROC",
    "tpr_at_threshold": "fake called fake",
    "fpr_at_threshold": "real called fake",
}


def main() -> None:
    """Scores, prints and writes."""
    from fdftnet_jax.evaluation import calibration, results, robustness, scoring
    from fdftnet_jax.reporting import report as page
    from fdftnet_jax.reporting import robustness_plot
    from fdftnet_jax.run import Run

    given = {"dir": _DATA_DIR.value, "name": _DATA_NAME.value}
    data = {field: value for field, value in given.items() if value}
    with Run(_WORKDIR.value) as run:
        split = _SPLIT.value
        dataset = scoring.open_data(run, split, data)
        target = run.evaluation_path(
            dataset.name, dataset.directory, split, own=scoring.owns(run, dataset)
        )
        files.check_output(
            target,
            "the evaluation",
            replace=_REPLACE.value,
            remedy="give --replace to replace it and report.html",
        )
        network = scoring.Network(run)
        scores = network.score(dataset, split)
        calibrated = calibration.for_run(run)
        conditions = None
        if _ROBUSTNESS.value:
            conditions = robustness.score(network, dataset, split)
        report = results.report(
            scores, calibrated, pool=_POOL.value == "group", conditions=conditions
        )
        paths = results.write(report, scores, calibrated, run)
        if conditions:
            paths.append(paths[0].with_name(f"{paths[0].stem}_robustness.svg"))
            robustness_plot.draw(paths[-1], report["robustness"])
        if _REPORT.value:
            paths.append(page.write(run, report, scores, calibrated))
    rule = calibrated.rule_in_words if calibrated else ""
    print(summary(report, rule), *(f"  {path}" for path in paths), sep="\n")


def summary(report: dict[str, Any], rule: str = "") -> str:
    """A report as text for a terminal of 100 columns.

    Args:
      report: of `results.report`.
      rule: where the threshold comes from, '' without a calibration.
    """
    bootstrap = report["bootstrap"]
    lines = [
        f"{report['dataset']}, {report['split']} split: {report['num_examples']} "
        f"images ({report['num_real']} real, {report['num_fake']} fake), checkpoint of "
        f"step {report['checkpoint_step']}",
        f"  {'':30}{'':8}  {bootstrap['level']:.0%} interval, {bootstrap['resamples']} "
        f"resamples of {bootstrap['num_units']} {bootstrap['unit']}s",
        *_metrics(report["figures"]),
        *_wrapped(_threshold(report, rule)),
        *_verdicts(report["verdicts"]),
        *_generators(report["generators"]),
    ]
    if pooled := report["pooled"]:
        lines += [
            f"  by group: {pooled['num_rows']} ({pooled['num_real']} real, "
            f"{pooled['num_fake']} fake), mean logit of the images of each",
            *_metrics(pooled["figures"]),
            *_verdicts(pooled["verdicts"]),
            *_generators(pooled["generators"]),
        ]
    if report["robustness"]:
        lines += robustness_lines(report["robustness"], bootstrap["level"])
    for note in report["notes"]:
        lines += _wrapped(f"note: {note}")
    return "\n".join(lines)


def _threshold(report: dict[str, Any], rule: str) -> str:
    found = report["calibration"]
    if found is None:
        return "threshold: score 0.5, not calibrated"
    number = found["num_real"] + found["num_fake"]
    real = ""
    if found["lower_logit"] is not None:
        real = (
            f" (real below P(fake) {found['lower_probability']:.4f}, logit "
            f"{found['lower_logit']:.4f})"
        )
    return (
        f"threshold: P(fake) {found['threshold_probability']:.4f}, logit "
        f"{found['threshold_logit']:.4f}{real}: {rule} ({number} images); temperature "
        f"{found['temperature']:.4g}, prior {found['prior']:.3g}"
    )


def _metrics(metrics: dict[str, Any]) -> list[str]:
    return [
        f"  {title:32}{wording.bracketed(metrics[name])}"
        for name, (title, _) in wording.METRICS.items()
        if name in metrics
    ]


def _verdicts(counts: dict[str, int]) -> list[str]:
    undecided = [counts.get(f"undecided_{name}", 0) for name in ("real", "fake")]
    real = counts["true_real"] + counts["false_fake"] + undecided[0]
    fake = counts["true_fake"] + counts["false_real"] + undecided[1]
    lines = [
        f"  at the threshold: real called fake {counts['false_fake']} of {real}, "
        f"fake called real {counts['false_real']} of {fake}"
    ]
    if "undecided_real" in counts:
        lines.append(
            f"  undecided, too close to call: {undecided[0]} of {real} real, "
            f"{undecided[1]} of {fake} fake"
        )
    return lines


def _generators(generators: dict[str, Any]) -> list[str]:
    if len(generators) < 2:
        return []
    width = min(24, max(9, *map(len, generators)))
    lines = [f"  {'generator':{width}}{'fake':>7}  {'AUROC':27}called fake"]
    for name, found in generators.items():
        shown = textwrap.shorten(name, width, placeholder="...") or name[:width]
        auc, hits = (wording.bracketed(found[k]) for k in ("auc", "tpr_at_threshold"))
        few = "  few" * found["few"]
        lines.append(f"  {shown:{width}}{found['num_fake']:7}  {auc:27}{hits}{few}")
    return lines


def robustness_lines(robustness: Mapping[str, Any], level: float = 0.95) -> list[str]:
    """A row for the pictures as they are and one for every strength, mild to strong.

    Args:
      robustness: of a report (see `evaluation.results`).
      level: of the intervals.
    """
    titles = "".join(f"  {title:23}" for title in _COLUMNS.values())
    found = [
        f"  after image processing, {level:.0%} intervals; verdicts at the threshold",
        f"  {'':22}{titles}".rstrip(),
        _robustness_row("as they are", "", robustness["clean"]),
    ]
    for operation in robustness["operations"].values():
        found.append(f"  {operation['title']}: {operation['unit']}")
        found += [
            _robustness_row("", f"{row['strength']:g}", row["figures"])
            for row in operation["strengths"]
        ]
    return found


def _robustness_row(name: str, strength: str, metrics: Mapping[str, Any]) -> str:
    cells = "".join(f"  {wording.bracketed(metrics[name]):23}" for name in _COLUMNS)
    return f"  {name:15}{strength:>7}{cells}".rstrip()


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent="  ", subsequent_indent="    ")


if __name__ == "__main__":
    launch.run(main)
