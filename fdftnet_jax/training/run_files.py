"""The files of a run beside its checkpoints: its config and its history."""

import json
import math
from pathlib import Path
from typing import Any

import ml_collections
from tensorboardX import SummaryWriter

from fdftnet_jax.errors import UserError

# Changing these changes no number of a run, so a resumed one may.
_FREE_KEYS = ("data.cache_dir", "data.memory_megabytes", "data.threads")


# Field -> its lowest and highest value.
_BOUNDS: dict[str, tuple[float, float]] = {
    "seed": (0, 2**31 - 1),
    "epochs": (1, math.inf),
    "patience": (1, math.inf),
    "data.toy_seed": (0, math.inf),
    "data.shots": (0, math.inf),
    "data.size": (1, math.inf),
    "data.memory_megabytes": (0, math.inf),
    "data.threads": (0, math.inf),
    "model.num_blocks": (1, math.inf),
    "model.num_stages": (1, 4),
    "model.first_stride": (1, 2),
    "optimizer.learning_rate": (0, math.inf),
    "optimizer.momentum": (0, 1),
    "optimizer.warmup_epochs": (0, math.inf),
    "optimizer.clip_norm": (0, math.inf),
}


def check_values(config: ml_collections.ConfigDict) -> None:
    """Raises UserError for values that no run can have."""
    values = _flat(json.loads(config.to_json()))
    for name, (low, high) in _BOUNDS.items():
        if not low <= values[name] <= high:
            allowed = f"{low} or more" if high == math.inf else f"{low} to {high}"
            raise UserError(
                f"{name} is {values[name]}: expected {allowed}; give it with "
                f"--config.{name}=VALUE"
            )
    # Validation selects and test judges: neither may train.
    if config.data.train_split not in ("train", "finetune"):
        raise UserError(
            f"data.train_split is {config.data.train_split!r}: expected 'train' or "
            "'finetune'; give it with --config.data.train_split=NAME"
        )


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
    (directory / "config.json").write_text(text)


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
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
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
