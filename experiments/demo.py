"""Pre-trains on an old forgery, meets a new one, and fine-tunes FDFtNet on it.

    python -m experiments.demo [--seeds=3] [--workdir=runs/demo]

Everything is embedded: toy pictures, nothing to download. Prints one table and writes
WORKDIR/summary.json, roc.png, training_curves.png, contact_sheet.png and report.html,
the report on the first seed's FDFtNet. Run again, it goes on where it stopped.
"""

import json
import shutil
import statistics
import sys
from pathlib import Path
from typing import Any

import ml_collections
from absl import flags

from experiments import grid, launch

_WORKDIR = flags.DEFINE_string("workdir", "runs/demo", "Folder of the demo.")
_REPLACE = flags.DEFINE_bool(
    "replace", False, "Write to a --workdir that holds other files, over theirs."
)
_SEEDS = flags.DEFINE_integer("seeds", 1, "Number of repetitions.", lower_bound=1)

FORGERIES = {"old": "upsampled", "new": "blended"}
DETECTORS = {"before": "pre-trained backbone", "after": "fine-tuned FDFtNet"}


def main() -> None:
    """Runs every seed, then writes and prints what came out."""
    config = flags.FLAGS.config
    workdir = Path(_WORKDIR.value)
    grid.check_workdir(workdir, config, replace=_REPLACE.value)
    # {seed: {(detector, forgery): Scores}}
    runs = {
        seed: _run_seed(config, seed, workdir / f"seed{seed}")
        for seed in range(_SEEDS.value)
    }
    summary = _summary(runs, config.finetune.data.shots)
    (workdir / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    _draw(runs[0], workdir)
    report = _write_report(runs[0]["after", "new"], workdir)
    print(_table(summary))
    print(
        f"\nwritten to {workdir}:\n"
        "summary.json, roc.png, training_curves.png, contact_sheet.png, report.html\n"
        f"\nopen in a browser, the report on FDFtNet and the new forgery:\n{report}"
    )


def _run_seed(config: ml_collections.ConfigDict, seed: int, directory: Path):
    from fdftnet_jax.evaluation import scoring
    from fdftnet_jax.run import Run
    from fdftnet_jax.training import loop

    base, fdftnet = directory / "base", directory / "fdftnet"
    for title, part, workdir in (
        ("pre-training on the old forgery", config.pretrain, base),
        ("fine-tuning FDFtNet on the new forgery", config.finetune, fdftnet),
    ):
        print(f"\nseed {seed}: {title}", file=sys.stderr)
        part = part.copy_and_resolve_references()
        part.seed = seed
        if workdir == fdftnet:
            part.init_from = str(base)
        loop.train_and_evaluate(part, str(workdir))
    return {
        (detector, forgery): scoring.score_split(Run(workdir), data={"family": family})
        for detector, workdir in (("before", base), ("after", fdftnet))
        for forgery, family in FORGERIES.items()
    }


def _summary(runs: dict[int, Any], shots: int) -> dict[str, Any]:
    """Accuracy and AUROC of both detectors on both forgeries, by seed and mean."""
    from fdftnet_jax.evaluation import scoring

    results = {}
    for detector in DETECTORS:
        for forgery in FORGERIES:
            found = [scores[detector, forgery].metrics for scores in runs.values()]
            results[f"{detector}/{forgery}"] = {
                metric: {
                    "mean": statistics.mean(f[metric] for f in found),
                    "by_seed": [f[metric] for f in found],
                }
                for metric in ("accuracy", "auc")
            } | {"num_examples": found[0]["num_examples"]}
    return {
        "schema_version": 1,
        "data": {name: f"toy/{family}" for name, family in FORGERIES.items()},
        "shots_per_class": shots,
        "seeds": len(runs),
        "results": results,
        "environment": scoring.environment(),
    }


def _table(summary: dict[str, Any]) -> str:
    """The results as text for a terminal of 80 columns."""
    results, seeds = summary["results"], summary["seeds"]
    images = results["before/old"]["num_examples"]
    lines = [
        "",
        f"{'':25}{'old forgery':^24}{'new forgery':^24}",
        f"{'':25}{'toy/upsampled':^24}{'toy/blended':^24}",
        f"{'':25}" + f"{'accuracy':>12}{'AUROC':>9}{'':3}" * 2,
    ]
    for detector, title in DETECTORS.items():
        cells = ""
        for forgery in FORGERIES:
            row = results[f"{detector}/{forgery}"]
            accuracy, auc = row["accuracy"]["mean"], row["auc"]["mean"]
            cells += f"{accuracy:>12.3f}{auc:>9.3f}{'':3}"
        lines.append(f"{title:25}{cells}".rstrip())
    repeated = f", mean of {seeds} seeds" if seeds > 1 else ""
    shots = summary["shots_per_class"]
    return "\n".join(
        [
            *lines,
            "",
            f"{images} test images each{repeated}; FDFtNet saw {shots} real and "
            f"{shots} fake images\nof the new forgery. Toy pictures: this shows that "
            "the machinery works, no more.",
        ]
    )


def _write_report(scores: Any, workdir: Path) -> Path:
    """Writes the report on the first seed's FDFtNet, and returns its path.

    Args:
      scores: of the new forgery's test split.
      workdir: of the demo.
    """
    from fdftnet_jax.evaluation import calibration, results
    from fdftnet_jax.reporting import report
    from fdftnet_jax.run import Run

    with Run(workdir / "seed0" / "fdftnet") as run:
        calibrated = calibration.for_run(run)
        metrics = results.report(scores, calibrated)
        page = report.write(run, metrics, scores, calibrated)
    return Path(shutil.copyfile(page, workdir / page.name))


def _draw(scores: dict[tuple[str, str], Any], workdir: Path) -> None:
    """Plots the first seed."""
    import numpy as np

    from fdftnet_jax.data import toy
    from fdftnet_jax.evaluation import metrics
    from fdftnet_jax.reporting import plots
    from fdftnet_jax.run import Run

    plots.roc_curves(
        workdir / "roc.png",
        {
            f"{forgery} forgery, {DETECTORS[detector]}": (
                result.labels,
                metrics.logit(result.logits),
            )
            for (detector, forgery), result in scores.items()
        },
    )
    seed0 = workdir / "seed0"
    plots.training_curves(
        workdir / "training_curves.png",
        {
            "pre-training": Run(seed0 / "base").history(),
            "fine-tuning": Run(seed0 / "fdftnet").history(),
        },
    )
    real = np.stack([toy.real_image(0, index) for index in range(12)])
    fakes = {
        f"Fake: toy/{family}": np.stack(
            [toy.fake_image(family, 0, index) for index in range(12)]
        )
        for family in toy.FAMILIES
    }
    plots.contact_sheet(workdir / "contact_sheet.png", {"Real (toy)": real, **fakes})


if __name__ == "__main__":
    launch.run(main, "configs/demo.py")
