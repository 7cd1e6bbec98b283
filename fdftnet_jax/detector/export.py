"""From the workdir of a run to the one file of its detector.

The file's arrays are the weights by path, `params/...` and `batch_stats/...`, and
`stablehlo`, the bytes of the network as `jax.export` serialises it, from views
[b, size, size, 3] uint8 and the weights to logits [b, 2], scaling included. Its card:

  name, toy          what to call it; whether it was trained on the toy data alone
  stored_as          'float32', or 'float16' where the weights were rounded
  model              kind, backbone, variant, dtype and the rest of `config.model`
  parameters         their number, in all and as far as the last training changed them
  preprocessing      see `preprocess.Preprocessing`
  labels             ['real', 'fake']: the order of the logits
  calibration        see `calibration.Calibration`; null without one
  threshold          `logit` and `probability` from which a picture is called fake, the
                     `rule` that chose them, and what it is a `probability_of`:
                     'calibrated' or 'raw'
  faces              the rules by which `experiments.prepare_faces` cut the training
                     data (`past_runs.FACE_RULES`); null where nobody knows
  trained_on         for each data set that the weights have seen, the latest first:
                     name, the folder's own name, split, shots, the number of real and
                     of fake images (null where unknown), fingerprint
  weights            the file that the backbone comes from; null for none
  check              the logits of `network.check_views` by that program; whoever scores
                     compares them with their own
  checkpoint         step, epoch, validation loss, digest of the arrays
  validation         AUROC, with its interval, of the split that chose the checkpoint,
                     where it was evaluated
  evaluations        of the same checkpoint, from WORKDIR/evaluation
  config             of the run, without the paths of this machine
  stablehlo          the platforms of the program
  versions           of Python and of the packages
  licence            whose conditions hold

Nothing names this machine, its folders or its user, and the same run gives the same
bytes.
"""

import json
import os
import platform
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path, PurePath
from typing import Any

import jax
import numpy as np

import fdftnet_jax
from fdftnet_jax import files
from fdftnet_jax.data import past_runs, preprocess, splits
from fdftnet_jax.detector import detector, file, network
from fdftnet_jax.errors import UserError
from fdftnet_jax.evaluation import calibration
from fdftnet_jax.training.checkpoint import Checkpoints

LICENCE = (
    "The code is under Apache-2.0. The weights carry the conditions of the data that "
    "they were trained on and of the pre-trained weights that they started from: check "
    "both before you pass them on."
)
_PACKAGES = ("jax", "jaxlib", "flax", "numpy", "pillow", "safetensors")
# Fields of a config that are paths of this machine: their last part stays.
_PATHS = ("dir", "replay_dir", "init_from")


def write(
    workdir: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    name: str = "",
    licence: str = "",
    toy: bool = False,
    half: bool = False,
    replace: bool = False,
) -> "detector.Detector":
    """Exports the best checkpoint of a run.

    Args:
      workdir: of a pre-training or fine-tuning run.
      path: of the file.
      name: of the detector; '' is that of the workdir.
      licence: what to say of the conditions beside `LICENCE`.
      toy: whether it is the package's own toy.
      half: whether to store the weights as float16, which takes half the space; the
        scores are then those of rounded weights.
      replace: whether an existing file may be replaced, unless it is one of the run.

    Returns:
      The detector, as read from the file.

    Raises:
      UserError: there is no checkpoint, the backbone's code cannot be imported, a
        weight or a logit is not finite, or the file exists or cannot be written.
    """
    files.check_output(path, "the detector", replace=replace, inputs=_files_of(workdir))
    with Checkpoints(workdir) as checkpoints:
        meta, step = checkpoints.load_meta(), int(checkpoints.best or 0)
        variables = checkpoints.load_variables()
    weights = network.flat(variables)
    for where, array in weights.items():
        if not np.isfinite(array).all():
            raise UserError(
                f"{where} in {workdir} is not finite: the run has diverged; train it "
                "again with a lower learning rate"
            )
    calibrated = calibration.for_run(workdir)
    preprocessing = preprocess.Preprocessing.from_dict(meta["preprocessing"])
    program = network.build(meta["model"], preprocessing.scaling)
    exported = network.export(program, weights, preprocessing.size)
    stored = np.float16 if half else np.float32
    arrays = {where: leaf.astype(stored) for where, leaf in weights.items()}
    as_read = {where: leaf.astype(np.float32) for where, leaf in arrays.items()}
    views = network.check_views(preprocessing.size)
    logits = np.asarray(jax.jit(exported.call)(as_read, views))
    if not np.isfinite(logits).all():
        raise UserError(
            f"the network in {workdir} gives logits that are not finite: the run has "
            "diverged; train it again with a lower learning rate"
        )
    arrays[detector.STABLEHLO] = np.frombuffer(exported.serialize(), np.uint8)
    file.write(
        path,
        arrays,
        {
            "name": name or Path(workdir).resolve().name,
            "toy": toy,
            "stored_as": np.dtype(stored).name,
            "parameters": {
                "all": sum(
                    leaf.size for where, leaf in weights.items() if _is_param(where)
                ),
                "trained": meta.get("trained_parameters"),
            },
            **card(Path(workdir), meta, step, calibrated),
            "check": logits.tolist(),
            "licence": " ".join([*filter(None, [licence]), LICENCE]),
        },
        replace=replace,
    )
    return detector.load(path, program=True)


def card(
    workdir: Path,
    meta: dict[str, Any],
    step: int,
    calibrated: calibration.Calibration | None,
) -> dict[str, Any]:
    """What a run's files tell of its best checkpoint (see the module).

    Args:
      workdir: of the run.
      meta: of the checkpoint.
      step: of the checkpoint.
      calibrated: its calibration.
    """
    progress = meta["progress"]
    evaluations = _evaluations(workdir, step)
    return {
        "model": meta["model"],
        "preprocessing": meta["preprocessing"],
        "labels": list(splits.CLASSES),
        "calibration": calibrated.to_dict() if calibrated else None,
        "threshold": _threshold(calibrated),
        "faces": _faces(meta["trained_on"][0]),
        "trained_on": [_data_set(run) for run in meta["trained_on"]],
        "weights": _weights(meta.get("weights")),
        "checkpoint": {
            "step": step,
            "epoch": progress["best_epoch"],
            "validation_loss": _finite(progress["best_loss"]),
            "sha256": meta["digests"]["variables"],
        },
        "validation": next(
            (e for e in evaluations if e["split"] == "validation" and e["own"]), None
        ),
        "evaluations": evaluations,
        "config": _config(workdir),
        "stablehlo": {"platforms": list(network.PLATFORMS)},
        "versions": {
            "fdftnet_jax": fdftnet_jax.__version__,
            "python": platform.python_version(),
            **{package: metadata.version(package) for package in _PACKAGES},
        },
    }


def _files_of(workdir: str | os.PathLike[str]) -> Iterator[Path]:
    """The files of a run; a detector that lies among them is none of its own."""
    for path in Path(workdir).rglob("*"):
        if path.suffix != ".safetensors":
            yield path


def _is_param(path: str) -> bool:
    return path.startswith("params/")


def _threshold(calibrated: calibration.Calibration | None) -> dict[str, Any]:
    if calibrated is None:
        return {
            "logit": 0.0,
            "probability": 0.5,
            "probability_of": "raw",
            "rule": "score 0.5, not calibrated",
        }
    return {
        "logit": calibrated.threshold_logit,
        "probability": calibrated.threshold_probability,
        "probability_of": "calibrated",
        "rule": calibration.describe(calibrated),
    }


def _faces(run: dict[str, Any]) -> dict[str, Any] | None:
    """By the checkpoint; by the folder, where an earlier version wrote that."""
    if "faces" in run:
        return run["faces"]
    return past_runs.face_rules(run["directory"])


def _data_set(run: dict[str, Any]) -> dict[str, Any]:
    data = run["data"]
    real, fake = run.get("counts") or (None, None)
    name = data["name"]
    return {
        "name": f"toy-{data['family']}" if name == "toy" else name,
        "folder": PurePath(run["directory"]).name,
        "split": data["train_split"],
        "shots": data["shots"],
        "real": real,
        "fake": fake,
        "fingerprint": run["dataset"],
    }


def _weights(found: dict[str, Any] | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {**found, "path": PurePath(found["path"]).name}


def _config(workdir: Path) -> dict[str, Any]:
    try:
        config = json.loads((workdir / "config.json").read_text())
    except (OSError, ValueError):
        return {}
    return _without_folders(config)


def _without_folders(config: dict[str, Any]) -> dict[str, Any]:
    clean: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, dict):
            clean[name] = _without_folders(value)
        elif name != "cache_dir":
            clean[name] = PurePath(value).name if name in _PATHS else value
    return clean


def _evaluations(workdir: Path, step: int) -> list[dict[str, Any]]:
    """Of this checkpoint; what cannot be read is left out."""
    found = []
    for path in sorted((workdir / "evaluation").glob("*.json")):
        try:
            report = json.loads(path.read_text())
            if report["checkpoint_step"] != step:
                continue
            found.append(
                {
                    "data": report["dataset"],
                    "split": report["split"],
                    # Of other data than the run's own, the name has a hash.
                    "own": path.stem == f"{report['dataset']}-{report['split']}",
                    "real": report["num_real"],
                    "fake": report["num_fake"],
                    "auc": report["figures"]["auc"],
                    "level": report["bootstrap"]["level"],
                }
            )
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return found


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
