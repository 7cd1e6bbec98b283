"""The folder of a run, its config and its history."""

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_collections
from tensorboardX import SummaryWriter

from fdftnet_jax import files
from fdftnet_jax.errors import UserError

# Changing these changes no number of a run, so a resumed one may.
_FREE_KEYS = (
    "calibration.fpr",
    "calibration.prior",
    "calibration.rule",
    "data.cache_dir",
    "data.device_megabytes",
    "data.memory_megabytes",
    "data.threads",
)
# What fields mean that the configs of earlier versions lack.
_BEFORE_THEY_WERE = {"augment.jpeg": 0.0, "augment.blur": 0.0, "new_weights": False}
# Share of the time spent waiting for images from which the user is told of it.
_NOTABLE_WAIT = 0.03


@contextlib.contextmanager
def owned(directory: Path) -> Iterator[None]:
    """Makes a workdir, and holds it against other runs.

    Raises:
      UserError: it cannot be made, or another run holds it.
    """
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
            f"process {error} is training in {directory}: wait for it, or give another "
            "--workdir"
        ) from error


def check_config(config: ml_collections.ConfigDict, directory: Path) -> None:
    """Raises UserError where the workdir holds a run with another config."""
    read = json.loads((directory / "config.json").read_text())
    old = _BEFORE_THEY_WERE | _flat(read)
    new = _flat(json.loads(config.to_json()))
    changed = [
        f"{key}: {old.get(key)!r} -> {new.get(key)!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and key not in _FREE_KEYS
    ]
    if changed:
        raise UserError(
            f"{directory} holds a run with another config ({'; '.join(changed)}): "
            "give the old values to go on with it, or a new --workdir"
        )


def write_config(config: ml_collections.ConfigDict, directory: Path) -> None:
    """Writes the resolved config as `config.json`."""
    resolved = json.loads(config.to_json())
    text = json.dumps(resolved, indent=2, sort_keys=True) + "\n"
    files.write_atomic(directory / "config.json", text)


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


class History:
    """One row an epoch, in `history.jsonl` and as TensorBoard events."""

    def __init__(self, directory: Path, epoch: int, *, write: bool = True):
        """Drops the rows of epochs after `epoch`, which a resumed run repeats.

        Args:
          directory: the workdir.
          epoch: the last epoch that was saved.
          write: whether it writes at all: one process of a run does.
        """
        self._write = write
        if not write:
            return
        path = directory / "history.jsonl"
        rows = read_history(directory) if path.exists() else []
        rows = [row for row in rows if row["epoch"] <= epoch]
        files.write_atomic(path, "".join(json.dumps(row) + "\n" for row in rows))
        self._file = path.open("a")
        self._events = SummaryWriter(
            str(directory / "tensorboard"),
            purge_step=rows[-1]["step"] + 1 if rows else 0,
        )

    def add(self, row: dict[str, Any]) -> None:
        """Writes the row of an epoch (see `read_history`)."""
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


def read_history(workdir: str | Path) -> list[dict[str, Any]]:
    """The rows of a run, one an epoch.

    Each has epoch, step, train_loss, train_accuracy, validation_loss,
    validation_accuracy, learning_rate, images_per_second, input_wait_share (of the
    training's time that was spent waiting for images, in 0..1), and
    gamma_attention<m>.
    """
    lines = (Path(workdir) / "history.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines if line.endswith("}")]


def gammas(params: Mapping[str, Any]) -> dict[str, float]:
    """The gamma of each stage of the Fine-Tune Transformer; it starts at 0 (Eq. 3)."""
    branch = params.get("fine_tune_transformer", {})
    return {
        f"gamma_{name}": float(layer["gamma"])
        for name, layer in branch.items()
        if "gamma" in layer
    }


def line(row: Mapping[str, Any], epochs: int, left: float, best: bool) -> str:
    """What the user is told of an epoch.

    Args:
      row: of the history.
      epochs: of the longest run.
      left: seconds until its end.
      best: whether no epoch had a lower validation loss.
    """
    waiting = ""
    if row["input_wait_share"] > _NOTABLE_WAIT:
        waiting = f"  waiting for images {row['input_wait_share']:.0%} of the time"
    return (
        f"epoch {row['epoch']}/{epochs}  loss {row['train_loss']:.4f}  "
        f"validation loss {row['validation_loss']:.4f} "
        f"accuracy {row['validation_accuracy']:.3f}  "
        f"{row['images_per_second']:.0f} images/s{waiting}  "
        f"at most {left / 60:.1f} min left{'  best' * best}"
    )
