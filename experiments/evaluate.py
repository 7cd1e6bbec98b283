"""Scores a split with a run's best checkpoint.

    python -m experiments.evaluate --workdir=runs/fdft --split=test [--data_dir=PATH]

Everything else comes from the workdir. Prints a summary and writes
WORKDIR/evaluation/<dataset>-<split>.json and <dataset>-<split>_scores.csv.
"""

from absl import flags

from experiments import launch

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


def main() -> None:
    """Scores, prints and writes."""
    from fdftnet_jax.evaluation import scoring

    data = {"name": "folder", "dir": _DATA_DIR.value} if _DATA_DIR.value else None
    scores = scoring.score_split(_WORKDIR.value, _SPLIT.value, data=data)
    found = scores.metrics
    confusion = found["confusion"]
    json_path, csv_path = scoring.write(scores, _WORKDIR.value)
    real = confusion["true_real"] + confusion["false_fake"]
    fake = confusion["true_fake"] + confusion["false_real"]
    print(
        f"{scores.dataset}, {scores.split} split: {found['num_examples']} images, "
        f"checkpoint of step {scores.step}\n"
        f"  accuracy {found['accuracy']:.4f}   AUROC {found['auc']:.4f}   "
        f"AP {found['average_precision']:.4f}   EER {found['eer']:.4f}   "
        f"loss {found['loss']:.4f}\n"
        f"  real called fake {confusion['false_fake']} of {real}, "
        f"fake called real {confusion['false_real']} of {fake}\n"
        f"  {json_path}\n  {csv_path}"
    )


if __name__ == "__main__":
    launch.run(main)
