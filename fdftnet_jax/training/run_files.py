"""The files of a run beside its checkpoints: its config and its history."""

import json
from pathlib import Path
from typing import Any

import ml_collections
from tensorboardX import SummaryWriter

from fdftnet_jax import files
from fdftnet_jax.errors import UserError

# Changing these changes no number of a run, so a resumed one may.
_FREE_KEYS = ("data.cache_dir", "data.memory_megabytes", "data.threads")


def check_config(config: ml_collections.ConfigDict, directory: Path) -> None:
    """Raises UserError where the workdir holds a run with another config."""
    old = _flat(json.loads((directory / "config.json").read_text()))
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

    def __init__(self, directory: Path, epoch: int):
        """Drops the rows of epochs after `epoch`, which a resumed run repeats."""
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
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        for name, value in row.items():
            if name not in ("epoch", "step"):
                self._events.add_scalar(name, value, row["step"])
        self._events.flush()

    def __enter__(self) -> "History":
        return self

    def __exit__(self, *_) -> None:
        self._file.close()
        self._events.close()


def read_history(workdir: str | Path) -> list[dict[str, Any]]:
    """The rows of a run, one an epoch.

    Each has epoch, step, train_loss, train_accuracy, validation_loss,
    validation_accuracy, learning_rate, images_per_second, and gamma_attention<m>.
    """
    lines = (Path(workdir) / "history.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines if line.endswith("}")]
