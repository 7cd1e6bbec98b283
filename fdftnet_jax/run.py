"""A run: the folder of one training, and all that is read from and written to it.

    WORKDIR/
      config.json             the resolved config
      checkpoints/<step>/     the latest and the best (see `checkpoint`)
      history.jsonl           a row an epoch; tensorboard/ has the same
      calibration.json        from scores to probabilities and verdicts
      evaluation/             <name>-<split>.json, ..._scores.csv, ..._groups.csv
      adaptations.json        what `fdftnet adapt` made of it, and of its start before
      report.html             the page of the latest evaluation
      nonfinite_batch.json    the images of a step whose loss was not finite

A `Run` knows paths and records; who trains, calibrates or scores hands it what is to be
kept. A command opens one, which reads each file once.
"""

import contextlib
import functools
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections
from tensorboardX import SummaryWriter

from fdftnet_jax import files
from fdftnet_jax.checkpoint import Checkpoints
from fdftnet_jax.errors import UserError
from fdftnet_jax.records import Calibration, CheckpointRecord, Evaluation

# Changing these changes no number of a run, so a resumed one may.
_FREE_KEYS = (
    "calibration.fpr",
    "calibration.max_wrong",
    "calibration.prior",
    "calibration.rule",
    "data.cache_dir",
    "data.device_megabytes",
    "data.memory_megabytes",
    "data.threads",
)


class Run:
    """A workdir.

    Attributes:
      directory: the folder.
    """

    def __init__(self, workdir: str | os.PathLike[str]):
        """Takes the folder, which need not exist; reads nothing yet."""
        self.directory = Path(workdir)
        self._checkpoints: Checkpoints | None = None

    def __str__(self) -> str:
        return str(self.directory)

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Closes the checkpoints."""
        if self._checkpoints is not None:
            self._checkpoints.close()
            self._checkpoints = None

    @contextlib.contextmanager
    def owned(self) -> Iterator[None]:
        """Makes the folder, and holds it against other trainings.

        Raises:
          UserError: it cannot be made, or another training holds it.
        """
        directory = self.directory
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make the workdir {directory}: {error}") from error
        lock = directory / ".lock"
        try:
            with files.lock(lock, blocking=False):
                try:
                    yield
                finally:
                    # A mistake that showed before anything was written leaves nothing.
                    if list(directory.iterdir()) == [lock]:
                        shutil.rmtree(directory)
        except BlockingIOError as error:
            raise UserError(
                f"process {error} is training in {directory}: wait for it, or give "
                "another --workdir"
            ) from error

    # Config.

    @functools.cached_property
    def config(self) -> dict[str, Any]:
        """The resolved config; {} where the file is missing or damaged."""
        try:
            return json.loads((self.directory / "config.json").read_text())
        except (OSError, ValueError):
            return {}

    def check_config(self, config: ml_collections.ConfigDict) -> None:
        """Raises UserError where the run has another config."""
        old, new = _flat(self.config), _flat(json.loads(config.to_json()))
        # Runs before these fields existed read the numbers of the file, their
        # Fine-Tune Transformer saw images of any size, and their optimizer was SGD.
        small = old.get("data.size", 0) <= config.model.ftt_size
        before = {
            "data.decoding": "stored",
            "model.ftt_size": config.model.ftt_size if small else 0,
            "model.ftt_view": "whole",
            "model.ftt_filter": "",
            "model.taps": False,
            "model.block_taps": False,
            "model.regression": False,
            "optimizer.name": "sgd",
            "optimizer.weight_decay": 0.0,
            "augment.rescale": 0.0,
            "data.held_out": "",
            "data.crop_mirror": False,
            "data.train_size": 0,
            "init_heads": False,
            "distillation": 0.0,
            "keep": "best",
        }
        old = before | old
        changed = [
            f"{key}: {old.get(key)!r} -> {new.get(key)!r}"
            for key in sorted(old.keys() | new.keys())
            if old.get(key) != new.get(key) and key not in _FREE_KEYS
        ]
        if changed:
            raise UserError(
                f"{self} holds a run with another config ({'; '.join(changed)}): "
                "give the old values to go on with it, or a new --workdir"
            )

    def write_config(self, config: ml_collections.ConfigDict) -> None:
        """Writes the resolved config."""
        resolved = json.loads(config.to_json())
        text = json.dumps(resolved, indent=2, sort_keys=True) + "\n"
        files.write_atomic(self.directory / "config.json", text)

    # Checkpoints.

    def open_checkpoints(self, *, create: bool = False) -> Checkpoints:
        """The checkpoints; opened once.

        Args:
          create: for the process that writes them, see `Checkpoints`.
        """
        if self._checkpoints is None:
            self._checkpoints = Checkpoints(self.directory, create=create)
        return self._checkpoints

    @property
    def has_checkpoints(self) -> bool:
        """Whether there is a folder of checkpoints."""
        return (self.directory / "checkpoints").is_dir()

    @property
    def best_step(self) -> int:
        """The step with the lowest validation loss; 0 where there is none."""
        return int(self.open_checkpoints().best or 0)

    @functools.cached_property
    def best(self) -> CheckpointRecord:
        """What the best checkpoint says; UserError where there is none."""
        return CheckpointRecord.from_dict(self.open_checkpoints().load_meta())

    @functools.cached_property
    def variables(self) -> dict[str, Any]:
        """`params` and `batch_stats` of the best checkpoint, in NumPy."""
        return self.open_checkpoints().load_variables()

    def latest(self, *, create: bool = False) -> CheckpointRecord | None:
        """What the latest checkpoint says, None where there is none.

        Args:
          create: as for `open_checkpoints`.
        """
        if not self.has_checkpoints:
            return None
        checkpoints = self.open_checkpoints(create=create)
        step = checkpoints.latest
        if step is None:
            return None
        return CheckpointRecord.from_dict(checkpoints.load_meta(step))

    # Calibration.

    @property
    def calibration(self) -> Calibration | None:
        """The calibration of the best checkpoint; None where there is none of it."""
        try:
            values = json.loads((self.directory / "calibration.json").read_text())
        except (OSError, ValueError):
            return None
        stored = Calibration.from_dict(values) if isinstance(values, dict) else None
        if stored is None or (stored.checkpoint_step, stored.checkpoint_digest) != (
            self.best_step,
            self.best.digest,
        ):
            return None
        return stored

    def write_calibration(self, calibration: Calibration) -> None:
        """Keeps a calibration; raises UserError where the disk is full."""
        text = json.dumps(calibration.to_dict(), indent=2) + "\n"
        self._write("the calibration", {"calibration.json": text})

    # History.

    def history(self) -> list[dict[str, Any]]:
        """The rows of the epochs; [] where there is no history.

        Each has epoch, step, train_loss, train_accuracy, validation_loss,
        validation_accuracy, learning_rate, images_per_second, input_wait_share (of the
        training's time that was spent waiting for images, in 0..1), and
        gamma_attention<m>.
        """
        try:
            lines = (self.directory / "history.jsonl").read_text().splitlines()
        except OSError:
            return []
        return [json.loads(line) for line in lines if line.endswith("}")]

    # Evaluations.

    def evaluation_path(
        self, dataset: str, directory: str, split: str, *, own: bool
    ) -> Path:
        """Where the report of a split is kept.

        Other data than the run's own add a hash of their folder, so that two folders of
        one name do not overwrite each other.

        Args:
          dataset: the short name of the data.
          directory: their folder, '' for the toy.
          split: its name.
          own: whether the run was trained on these data.
        """
        name = dataset
        if not own and directory:
            name += f"-{hashlib.sha256(os.fsencode(directory)).hexdigest()[:8]}"
        return self.directory / "evaluation" / f"{name}-{split}.json"

    def write_evaluation(self, texts: Mapping[str, str]) -> list[Path]:
        """Keeps the files of an evaluation, by name; returns their paths.

        Raises:
          UserError: the disk is full or read-only.
        """
        named = {f"evaluation/{name}": text for name, text in texts.items()}
        return self._write("the evaluation", named)

    def evaluations(self) -> list[Evaluation]:
        """The evaluations that can be read, by the names of their files."""
        found = []
        for path in sorted((self.directory / "evaluation").glob("*.json")):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                found.append(
                    Evaluation.from_dict(path.name, json.loads(path.read_text()))
                )
        return found

    # Adaptations.

    @property
    def adaptations(self) -> list[dict[str, Any]]:
        """Those that led to the weights, the first one first (see `export`)."""
        try:
            return json.loads((self.directory / "adaptations.json").read_text())
        except (OSError, ValueError):
            return []

    def write_adaptations(self, adaptations: Sequence[Mapping[str, Any]]) -> None:
        """Keeps them; raises UserError where the disk is full."""
        text = json.dumps(list(adaptations), indent=2) + "\n"
        self._write("the adaptations", {"adaptations.json": text})

    # The others.

    @property
    def report_path(self) -> Path:
        """Of the page of the latest evaluation."""
        return self.directory / "report.html"

    @property
    def nonfinite_path(self) -> Path:
        """Of the list of images of a step that diverged."""
        return self.directory / "nonfinite_batch.json"

    def write_nonfinite_batch(self, report: Mapping[str, Any]) -> None:
        """Keeps what is known of a step that diverged."""
        files.write_atomic(self.nonfinite_path, json.dumps(report, indent=2) + "\n")

    def files(self) -> Iterator[Path]:
        """All files of the folder but detectors, which are only kept there."""
        for path in self.directory.rglob("*"):
            if path.suffix != ".safetensors":
                yield path

    def _write(self, what: str, texts: Mapping[str, str]) -> list[Path]:
        paths = [self.directory / name for name in texts]
        with files.writing(what, paths[0].parent):
            for path, text in zip(paths, texts.values(), strict=True):
                path.parent.mkdir(parents=True, exist_ok=True)
                files.write_atomic(path, text)
        return paths


class History:
    """Writes a row an epoch: to `history.jsonl`, and as TensorBoard events."""

    def __init__(self, run: Run, epoch: int, *, write: bool):
        """Drops the rows of epochs after `epoch`, which a resumed run repeats.

        Args:
          run: whose history it is.
          epoch: the last epoch that was saved.
          write: whether it writes at all: one process of a run does.
        """
        self._write = write
        if not write:
            return
        path = run.directory / "history.jsonl"
        rows = [row for row in run.history() if row["epoch"] <= epoch]
        files.write_atomic(path, "".join(json.dumps(row) + "\n" for row in rows))
        self._file = path.open("a")
        self._events = SummaryWriter(
            str(run.directory / "tensorboard"),
            purge_step=rows[-1]["step"] + 1 if rows else 0,
        )

    def add(self, row: Mapping[str, Any]) -> None:
        """Writes the row of an epoch (see `Run.history`)."""
        if not self._write:
            return
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        for name, value in row.items():
            if name not in ("epoch", "step"):
                self._events.add_scalar(name, value, row["step"])
        self._events.flush()

    def __enter__(self) -> "History":
        return self

    def __exit__(self, *_) -> None:
        if self._write:
            self._file.close()
            self._events.close()


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
