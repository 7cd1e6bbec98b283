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
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import special

from fdftnet_jax.data import forgery_faces
from fdftnet_jax.errors import UserError
from fdftnet_jax.evaluation import decisions, metrics, scoring
from fdftnet_jax.records import Calibration, Lineage
from fdftnet_jax.run import Run
from fdftnet_jax.training import processes


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


def for_run(run: Run, options: Options | None = None) -> Calibration | None:
    """The calibration of a run's best checkpoint, made and kept where there is none.

    Of several processes, which must all call it, one writes.

    Args:
      run: of a pre-training or fine-tuning.
      options: what it must have been made with; None takes what is kept, and makes one
        by the run's config.

    Returns:
      The calibration; None, with a warning, where the validation data are no longer
      those of the training.

    Raises:
      UserError: there is no checkpoint, or the file cannot be written.
    """
    record = run.best
    stored = processes.primary_first(lambda: run.calibration, "read the calibration")
    if stored is not None and (options is None or _made_with(stored, options)):
        return stored
    try:
        dataset = processes.primary_first(
            lambda: _validation_data(record.lineage), "prepare the validation data"
        )
    except UserError as error:
        if processes.is_primary():
            warnings.warn(
                f"{run} is not calibrated, its validation data cannot be used: {error}",
                stacklevel=2,
            )
        return None
    network = scoring.Network(run, batch_size=run.config.get("batch_size", 256))
    scores = network.score(dataset, "validation")
    made = dataclasses.replace(
        fit(
            scores.labels,
            scores.logits,
            options or Options.of(run.config),
            training_prior=record.fake_share,
        ),
        checkpoint_step=scores.step,
        checkpoint_digest=record.digest,
        fingerprint=dataset.fingerprint(("validation",)),
    )
    processes.by_primary(lambda: run.write_calibration(made), "write the calibration")
    processes.say(
        f"calibrated on {made.num_images} validation images: temperature "
        f"{made.temperature:.3g}, fake from P(fake) {made.threshold_probability:.3f} "
        f"({made.rule_in_words})"
    )
    return made


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


def _made_with(stored: Calibration, options: Options) -> bool:
    prior = options.prior or stored.training_prior
    found = (stored.rule, stored.fpr, stored.prior)
    return found == (options.rule, options.fpr, prior)


def _validation_data(lineage: Lineage) -> forgery_faces.FaceDataset:
    """The data of the latest training, as it was then."""
    latest = lineage.latest
    # Training has told what there is to say of them.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = forgery_faces.prepare(
            Lineage((latest,)).data_config({}), needed=latest.splits, only_needed=True
        )
    fingerprint = dataset.fingerprint(latest.splits)
    if fingerprint != latest.fingerprint:
        raise UserError(
            f"the data have changed since the training (they were "
            f"{latest.fingerprint}, they are {fingerprint}); restore them"
        )
    return dataset
