"""Scores a split with the best checkpoint of a run."""

import dataclasses
import functools
import platform
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fdftnet_jax import datasets
from fdftnet_jax.data import forgery_faces, pipeline, preprocess, splits
from fdftnet_jax.evaluation import metrics
from fdftnet_jax.models import registry
from fdftnet_jax.run import Run
from fdftnet_jax.training import steps

_PACKAGES = ("jax", "jaxlib", "flax", "numpy", "pillow", "tensorflow-datasets")


@dataclasses.dataclass(frozen=True)
class Scores:
    """A scored split.

    Attributes:
      dataset: the short name of the data.
      directory: its folder, '' for the toy.
      split: one of the splits, or 'all'.
      step: of the checkpoint.
      logits: [n, 2] float32.
      records: path, group, generator and label of each image.
      own: whether these are the data that the run itself was trained with.
      held_out: generators of these data that were left out of the training.
      encoded: the records with their images still encoded, as the data set has them;
        None where they are not at hand.
    """

    dataset: str
    directory: str
    split: str
    step: int
    logits: np.ndarray
    records: list[dict[str, Any]]
    own: bool = True
    held_out: tuple[str, ...] = ()
    encoded: pipeline.Records | None = dataclasses.field(
        default=None, repr=False, compare=False
    )

    @property
    def labels(self) -> np.ndarray:
        """[n] int32, real = 0, fake = 1."""
        return np.array([record["label"] for record in self.records], np.int32)

    @property
    def metrics(self) -> dict[str, Any]:
        """See `metrics.binary_metrics`."""
        return metrics.binary_metrics(self.labels, self.logits)


class Network:
    """A run's best checkpoint, ready to score; compiled once, for one size of batch.

    Attributes:
      step: of the checkpoint.
      preprocessing: between a decoded image and the network.
    """

    def __init__(self, run: Run, *, batch_size: int = 64):
        """Loads the checkpoint.

        Args:
          run: whose best checkpoint it is.
          batch_size: images at a time, rounded up to a multiple of the devices.

        Raises:
          UserError: no checkpoint.
        """
        record = run.best
        self._run = run
        self._variables = steps.replicate(run.variables)
        self.step = run.best_step
        self.preprocessing = record.preprocessing
        apply = registry.build(record.model).apply
        self._eval_step = steps.pmap_eval_step(
            registry.computing_in(record.model["dtype"], apply),
            functools.partial(preprocess.scale, scaling=self.preprocessing.scaling),
        )
        devices = jax.device_count()
        self._batch_size = -(-batch_size // devices) * devices

    def logits(
        self, source: pipeline.Source, progress: Callable[[int], Any] | None = None
    ) -> np.ndarray:
        """The logits of views as `preprocessing` makes them, [n, 2] float32.

        Args:
          source: of n views.
          progress: told the number of images of each batch.
        """
        batches = pipeline.eval_batches(
            source, self._batch_size, jax.process_index(), jax.process_count()
        )
        if progress is not None:
            batches = _counted(batches, progress)
        _, logits = steps.evaluate(
            self._eval_step, self._variables, batches, len(source)
        )
        return logits

    def score(self, dataset: forgery_faces.FaceDataset, split: str) -> Scores:
        """Scores a split as it is."""
        records = dataset.source(split)
        views = pipeline.ViewSource(records, self.preprocessing, cache_megabytes=0)
        columns = ("path", "group", "generator", "label")
        rows = [{name: record[name] for name in columns} for record in records]
        return Scores(
            dataset.name,
            dataset.directory,
            split,
            self.step,
            self.logits(views),
            rows,
            owns(self._run, dataset),
            splits.held_out(self._run.config.get("data", {}).get("held_out", "")),
            records,
        )


def _counted(
    batches: Iterator[pipeline.Example], progress: Callable[[int], Any]
) -> Iterator[pipeline.Example]:
    for batch in batches:
        yield batch
        progress(int(batch["mask"].sum()))


def owns(run: Run, dataset: forgery_faces.FaceDataset) -> bool:
    """Whether a run itself was trained on these data, where they lie now."""
    latest = run.best.lineage.latest
    return dataset.directory == latest.directory and (
        bool(dataset.directory) or latest.same_data(dataset)
    )


def score_split(
    run: Run,
    split: str = "test",
    *,
    data: dict[str, Any] | None = None,
    batch_size: int = 64,
) -> Scores:
    """Scores every image of a split exactly once with a run's best checkpoint.

    Args:
      run: of a pre-training or fine-tuning.
      split: 'train', 'validation', 'test', 'finetune' or 'all'.
      data: fields of `config.data` that replace those of the run, for other data.
      batch_size: images at a time, rounded up to a multiple of the devices.

    Returns:
      The scores, in the order of the split.

    Raises:
      UserError: no checkpoint, no such data, or an empty class.
    """
    dataset = open_data(run, split, data)
    return Network(run, batch_size=batch_size).score(dataset, split)


def open_data(
    run: Run, split: str, data: dict[str, Any] | None = None
) -> forgery_faces.FaceDataset:
    """Prepares data to be scored, decoded as the images that the run was trained on.

    Warns where the run, or one that it started from, was trained on images of the
    split. The arguments and errors are those of `score_split`.
    """
    lineage = run.best.lineage
    decoding = run.best.preprocessing.decoding
    config = lineage.data_config({"decoding": decoding, **(data or {})})
    dataset = datasets.prepare(config, needed=(split,), only_needed=True)
    seen = [trained_on for trained_on in lineage if trained_on.overlaps(dataset)]
    # The first of their splits is the one that was trained on.
    if seen and split in ("all", *(trained_on.splits[0] for trained_on in seen)):
        warnings.warn(
            f"--split={split} of {dataset.directory or dataset.name} holds the images "
            "that the detector was trained on: this says nothing about new images",
            stacklevel=2,
        )
    return dataset


def environment() -> dict[str, Any]:
    """Versions, device, command line and git commit of this process."""
    device = jax.devices()[0]
    return {
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in _PACKAGES},
        "device": f"{jax.device_count()} x {device.device_kind} ({device.platform})",
        "flags": sys.argv[1:],
        "git_commit": _git_commit(),
    }


def _git_commit() -> str:
    """The commit of this code, with '+changes' where files differ from it."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()

    try:
        changes = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+changes" if changes else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
