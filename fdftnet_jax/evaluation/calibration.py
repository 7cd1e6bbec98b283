"""From a score to a probability and a verdict, by the validation split alone.

`WORKDIR/calibration.json`, beside the checkpoints, belongs to the best of them. With z
the logit of the score, `logits[1] - logits[0]`, an image is called fake where z is at
least a threshold, and

    P(fake) = 1 / (1 + exp(-(z / T + shift)))
    shift = log(prior / (1 - prior)) - log(p / (1 - p))

with the temperature T and p, the share of fakes among the images of the training,
which is what z has learned. The shift is Bayes' rule: where fakes have another share,
`prior`, of the pictures to be scored, and each class looks as it did, the log odds of
every picture move by the difference of the prior log odds. Temperature and prior change
how sure a verdict is, not which it is. `decisions` has the rules for T and threshold.
"""

import dataclasses
import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import special

from fdftnet_jax import datasets, files
from fdftnet_jax.data import forgery_faces, past_runs
from fdftnet_jax.errors import UserError
from fdftnet_jax.evaluation import decisions, metrics, scoring
from fdftnet_jax.training import processes
from fdftnet_jax.training.checkpoint import Checkpoints

SCHEMA_VERSION = 1
FILE = "calibration.json"


@dataclasses.dataclass(frozen=True)
class Options:
    """The section `calibration` of a config; runs of earlier versions have none.

    Attributes:
      rule: of the threshold: 'eer', the false positive rate being nearest to the false
        negative rate, or 'fpr', the most fakes called so within a false positive rate.
      fpr: of the rule 'fpr', in [0, 1].
      prior: share of fakes among the pictures to be scored, in (0, 1); 0 is that among
        the images of the training.
    """

    rule: str = "eer"
    fpr: float = 0.01
    prior: float = 0.5

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Options":
        """By the whole config of a run."""
        return cls(**config.get("calibration", {}))


@dataclasses.dataclass(frozen=True)
class Calibration:
    """How scores become probabilities and verdicts.

    Attributes:
      rule: see `Options`.
      fpr: see `Options`.
      prior: see `Options`; 0 has been replaced.
      training_prior: share of fakes among the images of the training.
      temperature: divides the logit.
      shift: is added to it then.
      threshold_logit: the lowest logit that is called fake.
      threshold_probability: P(fake) of that logit.
      num_real: real images of validation.
      num_fake: fake ones.
      validation: figures on validation (see `_figures`).
      notes: what a reader should know.
      checkpoint_step: of the checkpoint that was calibrated.
      checkpoint_digest: of its arrays.
      fingerprint: of the validation split.
    """

    rule: str
    fpr: float
    prior: float
    training_prior: float
    temperature: float
    shift: float
    threshold_logit: float
    threshold_probability: float
    num_real: int
    num_fake: int
    validation: dict[str, float]
    notes: list[str]
    checkpoint_step: int = 0
    checkpoint_digest: str = ""
    fingerprint: str = ""

    def probability(self, logit: npt.ArrayLike) -> np.ndarray:
        """P(fake), calibrated, of the logits of scores."""
        return special.expit(np.asarray(logit) / self.temperature + self.shift)

    def called_fake(self, logit: npt.ArrayLike) -> np.ndarray:
        """Whether the logits of scores are called fake."""
        return np.asarray(logit) >= self.threshold_logit

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {"schema_version": SCHEMA_VERSION, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> "Calibration | None":
        """What `to_dict` gave; None for anything else, such as another version's."""
        names = {field.name for field in dataclasses.fields(cls)}
        if set(found) != {"schema_version", *names}:
            return None
        if found["schema_version"] != SCHEMA_VERSION:
            return None
        return cls(**{name: found[name] for name in names})


def for_run(
    workdir: str | os.PathLike[str], options: Options | None = None
) -> Calibration | None:
    """The calibration of a run's best checkpoint, made and stored where there is none.

    Of several processes, which must all call it, one writes.

    Args:
      workdir: of a pre-training or fine-tuning run.
      options: what it must have been made with; None takes what is stored, and makes
        one by the run's config.

    Returns:
      The calibration; None, with a warning, where the validation data are no longer
      those of the training.

    Raises:
      UserError: there is no checkpoint, or the file cannot be written.
    """
    directory = Path(workdir)
    with Checkpoints(workdir) as checkpoints:
        meta, step = checkpoints.load_meta(), checkpoints.best
    digest = meta["digests"]["variables"]
    stored = processes.primary_first(
        lambda: _stored(directory / FILE), "read the calibration"
    )
    if (
        stored is not None
        and (stored.checkpoint_step, stored.checkpoint_digest) == (step, digest)
        and (options is None or _made_with(stored, options))
    ):
        return stored
    config = _config(directory)
    run = meta["trained_on"][0]
    try:
        dataset = processes.primary_first(
            lambda: _validation_data(run), "prepare the validation data"
        )
    except UserError as error:
        if processes.is_primary():
            warnings.warn(
                f"{workdir} is not calibrated, its validation data cannot be used: "
                f"{error}",
                stacklevel=2,
            )
        return None
    scores = scoring.score_dataset(
        workdir, dataset, "validation", batch_size=config.get("batch_size", 256)
    )
    made = dataclasses.replace(
        fit(
            scores.labels,
            scores.logits,
            options or Options.of(config),
            training_prior=meta.get("fake_share", 0.5),
        ),
        checkpoint_step=scores.step,
        checkpoint_digest=digest,
        fingerprint=dataset.fingerprint(("validation",)),
    )
    text = json.dumps(made.to_dict(), indent=2) + "\n"

    def write() -> None:
        advice = "free space and give the same command again"
        with files.writing("the calibration", directory, len(text), advice):
            files.write_atomic(directory / FILE, text)

    processes.by_primary(write, "write the calibration")
    processes.say(
        f"calibrated on {made.num_real + made.num_fake} validation images: temperature "
        f"{made.temperature:.3g}, fake from P(fake) {made.threshold_probability:.3f} "
        f"({describe(made)})"
    )
    return made


def describe(calibration: Calibration) -> str:
    """The rule of the threshold in words."""
    if calibration.rule == "eer":
        return "equal error rates on validation"
    return f"at most {calibration.fpr:.3g} of validation's real images"


def fit(
    labels: npt.ArrayLike,
    logits: npt.ArrayLike,
    options: Options,
    *,
    training_prior: float,
) -> Calibration:
    """Calibrates by a scored validation split.

    Args:
      labels: [n], real = 0 and fake = 1; both must occur.
      logits: [n, 2], the model's outputs for real and fake.
      options: rule and prior.
      training_prior: share of fakes among the images of the training, in (0, 1).

    Raises:
      UserError: a class is missing, or a logit is not finite.
    """
    truth = metrics.check_labels(labels)
    ranking = metrics.ranking(truth, logits)
    temperature = decisions.fit_temperature(truth, ranking, training_prior)
    prior = options.prior or training_prior
    shift = float(special.logit(prior) - special.logit(training_prior))
    threshold = decisions.choose_threshold(truth, ranking, options.rule, options.fpr)
    num_fake = int(truth.sum())
    made = Calibration(
        rule=options.rule,
        fpr=options.fpr,
        prior=float(prior),
        training_prior=float(training_prior),
        temperature=temperature,
        shift=shift,
        threshold_logit=threshold,
        threshold_probability=float(special.expit(threshold / temperature + shift)),
        num_real=truth.size - num_fake,
        num_fake=num_fake,
        validation={},
        notes=[],
    )
    figures = _figures(truth, ranking, made)
    notes = _notes(made, figures)
    return dataclasses.replace(made, validation=figures, notes=notes)


def _figures(
    truth: np.ndarray, ranking: np.ndarray, calibration: Calibration
) -> dict[str, float]:
    """What the calibration comes to on the images that it was made by.

    Rates of the verdicts at the threshold; loss (nats), Brier score and expected
    calibration error of the raw score and of the calibrated probability, over images
    weighted to the share of fakes that each of them assumes.
    """
    fake = calibration.called_fake(ranking)
    figures = {
        "accuracy_at_threshold": float(np.mean(fake == truth)),
        "tpr_at_threshold": float(np.mean(fake[truth == 1])),
        "fpr_at_threshold": float(np.mean(fake[truth == 0])),
    }
    scaled = ranking / calibration.temperature + calibration.shift
    for name, logit, share in (
        ("raw", ranking, calibration.training_prior),
        ("calibrated", scaled, calibration.prior),
    ):
        weights = metrics.class_weights(truth, share)
        probability = special.expit(logit)
        brier = np.average((probability - truth) ** 2, weights=weights)
        loss = np.average(metrics.losses(truth, logit), weights=weights)
        figures |= {
            f"loss_{name}": float(loss),
            f"brier_{name}": float(brier),
            f"ece_{name}": metrics.calibration_error(truth, probability, weights),
        }
    return figures


def _notes(made: Calibration, figures: dict[str, float]) -> list[str]:
    notes = []
    lowest, highest = decisions.TEMPERATURES
    if not 1.01 * lowest < made.temperature < 0.99 * highest:
        notes.append(
            f"the temperature is at the end of its range, {lowest:g} to {highest:g}: "
            "the scores say little of how sure a verdict is"
        )
    if figures["tpr_at_threshold"] == 0:
        notes.append("the threshold calls no image of validation fake")
    if made.rule == "fpr" and made.num_real * made.fpr < 1:
        notes.append(
            f"validation has {made.num_real} real images, too few to tell a false "
            f"positive rate of {made.fpr:g} from 0: the threshold allows none"
        )
    return notes


def _stored(path: Path) -> Calibration | None:
    """What a file holds, None where it is missing or of another version."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return Calibration.from_dict(found) if isinstance(found, dict) else None


def _made_with(stored: Calibration, options: Options) -> bool:
    prior = options.prior or stored.training_prior
    found = (stored.rule, stored.fpr, stored.prior)
    return found == (options.rule, options.fpr, prior)


def _config(directory: Path) -> dict[str, Any]:
    """The resolved config of a run; empty where it is missing."""
    try:
        return json.loads((directory / "config.json").read_text())
    except (OSError, ValueError):
        return {}


def _validation_data(run: Mapping[str, Any]) -> forgery_faces.FaceDataset:
    """The data of a run, as it was trained on."""
    needed = (run["data"]["train_split"], "validation")
    # Training has told what there is to say of them.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = datasets.prepare(
            past_runs.data_config([dict(run)], {}), needed=needed, only_needed=True
        )
    found = dataset.fingerprint(needed)
    if found != run["dataset"]:
        raise UserError(
            f"the data have changed since the training (they were {run['dataset']}, "
            f"they are {found}); restore them"
        )
    return dataset
