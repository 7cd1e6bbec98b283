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
  calibration        see `records.Calibration`; null without one
  threshold          `logit` and `probability` from which a picture is called fake, the
                     `rule` that chose them, and what it is a `probability_of`:
                     'calibrated' or 'raw'; by the rule 'band' also `lower_logit` and
                     `lower_probability`, below which a picture is called real: between,
                     it is undecided
  faces              the rules by which `experiments.prepare_faces` cut the training
                     data (`choice.RECORDED`); null where nobody knows
  trained_on         for each data set that the weights have seen, the latest first:
                     name, the folder's own name, split, shots, the number of real and
                     of fake images, fingerprint
  weights            the file that the backbone comes from; null for none
  check              the logits of `network.check_views` by that program; whoever scores
                     compares them with their own
  checkpoint         step, epoch, validation loss, digest of the arrays
  validation         AUROC, with its interval, of the split that chose the checkpoint,
                     where it was evaluated
  evaluations        of the same checkpoint, from WORKDIR/evaluation
  adaptations        by `fdftnet adapt`, the first one first: date, what it started
                     from (start), pictures trained on (real, fake, corrections), seed,
                     epochs, group_by, and the test pictures as sets: name, old (whether
                     it was to be kept), numbers of real and fake, fingerprint, AUROC
                     and shares of mistakes before (null for the first one) and after,
                     and the 95 % interval of the change of AUROC
  config             of the run, without the paths of this machine
  stablehlo          the platforms of the program
  versions           of Python and of the packages
  licence            whose conditions hold

Nothing names this machine, its folders or its user, and the same run gives the same
bytes.
"""

import dataclasses
import os
import platform
from importlib import metadata
from pathlib import PurePath
from typing import Any

import jax
import numpy as np

import fdftnet_jax
from fdftnet_jax import files
from fdftnet_jax.data import splits
from fdftnet_jax.detector import detector, file, network
from fdftnet_jax.errors import UserError
from fdftnet_jax.evaluation import calibration
from fdftnet_jax.records import Calibration, Evaluation, TrainedOn
from fdftnet_jax.run import Run
from fdftnet_jax.weights.pretrained import WeightsInfo

LICENCE = (
    "The code is under Apache-2.0. The weights carry the conditions of the data that "
    "they were trained on and of the pre-trained weights that they started from: check "
    "both before you pass them on."
)
_PACKAGES = ("jax", "jaxlib", "flax", "numpy", "pillow", "safetensors")
# Fields of a config that are paths of this machine: their last part stays.
_PATHS = ("dir", "replay_dir", "init_from")


def write(
    run: Run,
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
      run: of a pre-training or fine-tuning.
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
    files.check_output(path, "the detector", replace=replace, inputs=run.files())
    record = run.best
    weights = network.flat(run.variables)
    for where, array in weights.items():
        if not np.isfinite(array).all():
            raise UserError(
                f"{where} in {run} is not finite: the run has diverged; train it "
                "again with a lower learning rate"
            )
    size = record.preprocessing.size
    program = network.build(record.model, record.preprocessing.scaling)
    exported = network.export(program, weights, size)
    stored = np.float16 if half else np.float32
    arrays = {where: leaf.astype(stored) for where, leaf in weights.items()}
    as_read = {where: leaf.astype(np.float32) for where, leaf in arrays.items()}
    views = network.check_views(size)
    logits = np.asarray(jax.jit(exported.call)(as_read, views))
    if not np.isfinite(logits).all():
        raise UserError(
            f"the network in {run} gives logits that are not finite: the run has "
            "diverged; train it again with a lower learning rate"
        )
    arrays[detector.STABLEHLO] = np.frombuffer(exported.serialize(), np.uint8)
    file.write(
        path,
        arrays,
        {
            "name": name or run.directory.resolve().name,
            "toy": toy,
            "stored_as": np.dtype(stored).name,
            "parameters": {
                "all": sum(
                    leaf.size for where, leaf in weights.items() if _is_param(where)
                ),
                "trained": record.trained_parameters,
            },
            **card(run, calibration.for_run(run)),
            "check": logits.tolist(),
            "licence": " ".join([*filter(None, [licence]), LICENCE]),
        },
        replace=replace,
    )
    return detector.load(path, program=True)


def card(run: Run, calibration: Calibration | None) -> dict[str, Any]:
    """What a run tells of its best checkpoint (see the module)."""
    record, step = run.best, run.best_step
    evaluations = [
        _evaluation(evaluation)
        for evaluation in run.evaluations()
        if evaluation.step == step
    ]
    return {
        "model": dict(record.model),
        "preprocessing": record.preprocessing.to_dict(),
        "labels": list(splits.CLASSES),
        "calibration": calibration.to_dict() if calibration else None,
        "threshold": _threshold(calibration),
        "faces": record.lineage.latest.faces,
        "trained_on": [_data_set(data_set) for data_set in record.lineage],
        "weights": _weights(record.weights),
        "checkpoint": {
            "step": step,
            "epoch": record.progress.best_epoch,
            "validation_loss": _finite(record.progress.best_loss),
            "sha256": record.digest,
        },
        "validation": next(
            (e for e in evaluations if e["split"] == "validation" and e["own"]), None
        ),
        "evaluations": evaluations,
        "adaptations": run.adaptations,
        "config": _without_folders(run.config),
        "stablehlo": {"platforms": list(network.PLATFORMS)},
        "versions": {
            "fdftnet_jax": fdftnet_jax.__version__,
            "python": platform.python_version(),
            **{package: metadata.version(package) for package in _PACKAGES},
        },
    }


def _is_param(path: str) -> bool:
    return path.startswith("params/")


def _threshold(calibration: Calibration | None) -> dict[str, Any]:
    if calibration is None:
        return {
            "logit": 0.0,
            "probability": 0.5,
            "probability_of": "raw",
            "rule": "score 0.5, not calibrated",
        }
    return {
        **calibration.described_thresholds(),
        "rule": calibration.rule_in_words,
    }


def _data_set(trained_on: TrainedOn) -> dict[str, Any]:
    data, kind = trained_on.data, trained_on.kind
    real, fake = trained_on.counts
    return {
        "name": f"toy-{data['family']}" if kind == "toy" else kind,
        "folder": PurePath(trained_on.directory).name,
        "split": data["train_split"],
        "shots": data["shots"],
        "real": real,
        "fake": fake,
        "fingerprint": trained_on.fingerprint,
    }


def _weights(info: WeightsInfo | None) -> dict[str, Any] | None:
    if info is None:
        return None
    return dataclasses.asdict(info) | {"path": PurePath(info.path).name}


def _without_folders(config: dict[str, Any]) -> dict[str, Any]:
    clean: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, dict):
            clean[name] = _without_folders(value)
        elif name != "cache_dir":
            clean[name] = PurePath(value).name if name in _PATHS else value
    return clean


def _evaluation(evaluation: Evaluation) -> dict[str, Any]:
    return {
        "data": evaluation.dataset,
        "split": evaluation.split,
        "own": evaluation.own,
        "real": evaluation.num_real,
        "fake": evaluation.num_fake,
        "auc": evaluation.auc,
        "level": evaluation.level,
    }


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
