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
how sure a verdict is, not which it is.

The rule 'band' has two thresholds, and the prior counts for them: real below the lower
one, fake from the upper one on, and undecided between.
"""

import dataclasses
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import optimize, special

from fdftnet_jax import datasets
from fdftnet_jax.data import forgery_faces
from fdftnet_jax.errors import UserError
from fdftnet_jax.evaluation import metrics, scoring
from fdftnet_jax.records import Calibration, Lineage
from fdftnet_jax.run import Run
from fdftnet_jax.training import processes
from fdftnet_jax.verdicts import FAKE, REAL, UNDECIDED

# The temperature of a detector that ranks images worse than chance has no upper end.
TEMPERATURES = (0.01, 100.0)
# Two shares that differ by less are the same.
_ROUNDING = 1e-12


@dataclasses.dataclass(frozen=True)
class Options:
    """The section `calibration` of a config.

    Attributes:
      rule: of the threshold: 'eer', the false positive rate being nearest to the false
        negative rate, 'fpr', the most fakes called so within a false positive rate, or
        'band', two thresholds between which a picture is undecided.
      fpr: of the rule 'fpr', in [0, 1].
      prior: share of fakes among the pictures to be scored, in (0, 1); 0 is that among
        the images of the training.
      max_wrong: of the rule 'band', the largest share of wrong verdicts among the
        pictures that are decided, in (0, 0.5).
    """

    rule: str = "eer"
    fpr: float = 0.01
    prior: float = 0.5
    max_wrong: float = 0.02

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Options":
        """Options of a run's whole config; the defaults where it has been lost."""
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
    real = ""
    if made.lower_probability is not None:
        real = f"real below {made.lower_probability:.3f} "
    processes.say(
        f"calibrated on {made.num_images} validation images: temperature "
        f"{made.temperature:.3g}, fake from P(fake) {made.threshold_probability:.3f} "
        f"{real}({made.rule_in_words})"
    )
    for note in made.notes:
        processes.say(f"warning: {note}")
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
      UserError: a class is missing, a logit is not finite, or there is no such rule.
    """
    labels = metrics.check_labels(labels)
    ranking = metrics.ranking(labels, logits)
    temperature = fit_temperature(labels, ranking, training_prior)
    prior = options.prior or training_prior
    shift = float(special.logit(prior) - special.logit(training_prior))

    def probability(logit: float) -> float:
        return float(special.expit(logit / temperature + shift))

    lower = None
    if options.rule == "band":
        lower, threshold = choose_band(labels, ranking, float(prior), options.max_wrong)
    else:
        threshold = choose_threshold(labels, ranking, options.rule, options.fpr)
    num_fake = int(labels.sum())
    made = Calibration(
        rule=options.rule,
        fpr=options.fpr,
        prior=float(prior),
        training_prior=float(training_prior),
        temperature=temperature,
        shift=shift,
        threshold_logit=threshold,
        threshold_probability=probability(threshold),
        num_real=labels.size - num_fake,
        num_fake=num_fake,
        validation={},
        notes=[],
        max_wrong=options.max_wrong,
        lower_logit=lower,
        lower_probability=None if lower is None else probability(lower),
    )
    values = _validation_metrics(labels, ranking, made)
    notes = _notes(made, values)
    return dataclasses.replace(made, validation=values, notes=notes)


def fit_temperature(
    labels: np.ndarray, ranking: np.ndarray, training_prior: float
) -> float:
    """The temperature T that makes probabilities of logits, 1 / (1 + exp(-z / T)).

    It minimises the cross entropy over the images, weighted so that fakes have the
    share that they have among the images of the training. (The two differ where equally
    many shots of each class are drawn from unequally many images.) The targets are not
    0 and 1 but 0.5 / (n_real + 1) and (n_fake + 0.5) / (n_fake + 1): the error rate
    that Jeffreys's prior expects after n images without an error, as Platt (1999) did
    with another prior. So T stays above 0 where the classes are separated, and errs on
    the side of doubt where images and errors are few. It is kept within `TEMPERATURES`.

    Args:
      labels: [n], real = 0 and fake = 1.
      ranking: [n], logits of the scores.
      training_prior: share of fakes among the images of the training, in (0, 1).
    """
    counts = np.bincount(labels, minlength=2)
    low, high = 0.5 / (counts[0] + 1), (counts[1] + 0.5) / (counts[1] + 1)
    target = np.where(labels == 1, high, low)
    weights = metrics.class_weights(labels, training_prior)

    # Convex in 1 / T, so that it has one minimum in log T, too.
    def loss(log_temperature: float) -> float:
        scaled = ranking * np.exp(-log_temperature)
        return float(weights @ (np.logaddexp(0, scaled) - target * scaled))

    found = optimize.minimize_scalar(
        loss,
        bounds=tuple(np.log(TEMPERATURES)),
        method="bounded",
        options={"xatol": 1e-9},
    )
    return float(np.exp(found.x))


def choose_threshold(
    labels: np.ndarray, ranking: np.ndarray, rule: str, fpr: float
) -> float:
    """The threshold on logits, by a rule.

    Both rules choose among the thresholds that validation's images attain; between that
    and the next lower logit validation does not choose, and the middle is taken.

    'eer': the false positive rate is nearest to the false negative rate; of several the
    one with the smaller sum of both. 'fpr': the largest true positive rate with a false
    positive rate of at most `fpr`; of several the highest threshold. Where no threshold
    within that calls any image fake, it lies just above the highest logit.

    Args:
      labels: [n], real = 0 and fake = 1.
      ranking: [n], logits of the scores.
      rule: 'eer' or 'fpr'.
      fpr: of the rule 'fpr'.
    """
    attained = np.unique(ranking)[::-1]
    # Called fake at each threshold, from +infinity, which calls none, to the lowest.
    thresholds = np.append(np.inf, attained)
    false_positive, true_positive = (
        (values.size - np.searchsorted(values, thresholds)) / values.size
        for values in (np.sort(ranking[labels == label]) for label in (0, 1))
    )
    if rule == "eer":
        miss = 1 - true_positive
        order = np.lexsort(
            (
                np.arange(thresholds.size),
                (false_positive + miss).round(12),
                np.abs(false_positive - miss).round(12),
            )
        )
        index = int(order[0])
    elif rule == "fpr":
        within = true_positive[false_positive <= fpr]
        index = int(np.argmax(within))
    else:
        raise UserError(
            f"expected calibration.rule to be 'eer', 'fpr' or 'band', found {rule!r}; "
            "choose one of them"
        )
    return _between(attained[::-1], attained.size - index)


def choose_band(
    labels: np.ndarray, ranking: np.ndarray, prior: float, max_wrong: float
) -> tuple[float, float]:
    """The two thresholds on logits of the rule 'band'.

    Images below the lower one are called real, images from the upper one on fake, and
    those between are undecided. With images weighted so that fakes have the share
    `prior`, at most the share `max_wrong` of the decided ones is called what it is not.
    Of all such pairs this is the one that decides the largest share; of several, the
    one whose false positive rate is nearest to its false negative rate, then the one
    with the smaller sum of both (so both thresholds are one where everything may be
    decided). Where no image can be decided within the bound, none is.

    Args:
      labels: [n], real = 0 and fake = 1; both must occur.
      ranking: [n], logits of the scores.
      prior: share of fakes, in (0, 1).
      max_wrong: the bound, in (0, 0.5).

    Returns:
      The lower threshold and the upper one, which is at least as high.
    """
    attained, of_image = np.unique(ranking, return_inverse=True)
    # A cut c in 0..k parts the c lowest of the k distinct logits from the others. Of
    # each cut: the shares of the class that lie below it.
    below_real, below_fake = (
        np.append(0, np.cumsum(counts)) / counts.sum()
        for counts in (
            np.bincount(of_image[labels == label], minlength=attained.size)
            for label in (0, 1)
        )
    )
    # Called real below a cut, and called fake from it on: share wrong, share decided.
    wrong_below, wrong_above = prior * below_fake, (1 - prior) * (1 - below_real)
    below = prior * below_fake + (1 - prior) * below_real
    above = 1 - below
    # A pair of cuts is within the bound where the sum of their excesses is at most 0.
    excess_below = wrong_below - max_wrong * below
    excess_above = wrong_above - max_wrong * above
    # The best upper cut for a lower one is the lowest that is within the bound; the
    # pair that decides nothing always is, so that there is one for the lowest cut.
    pairs = []
    for lower in range(attained.size + 1):
        within = excess_above[lower:] <= _ROUNDING - excess_below[lower]
        if within.any():
            pairs.append((lower, lower + int(np.argmax(within))))
    lower, upper = np.array(pairs).T
    alarms, misses = 1 - below_real[upper], below_fake[lower]
    order = np.lexsort(
        (
            (alarms + misses).round(12),
            np.abs(alarms - misses).round(12),
            -(below[lower] + above[upper]).round(12),
        )
    )
    best = order[0]
    return _between(attained, int(lower[best])), _between(attained, int(upper[best]))


def _between(attained: np.ndarray, cut: int) -> float:
    """The threshold above the `cut` lowest of the logits [k], which are in order."""
    if cut == attained.size:
        return float(np.nextafter(attained[-1], np.inf))
    if cut == 0:
        return float(attained[0])
    return float((attained[cut - 1] + attained[cut]) / 2)


def _validation_metrics(
    labels: np.ndarray, ranking: np.ndarray, calibration: Calibration
) -> dict[str, float]:
    """Metrics of the calibration on the images that it was made by.

    Rates of the verdicts at the threshold; loss (nats), Brier score and expected
    calibration error of the raw score and of the calibrated probability, over images
    weighted to the share of fakes that each of them assumes. Of the rule 'band' also
    `share_decided` and, where any image is, `wrong_of_decided`, weighted to the prior.
    """
    verdicts = calibration.thresholds.verdicts(ranking)
    fake = verdicts == FAKE
    right = verdicts == np.where(labels == 1, FAKE, REAL)
    values = {
        "accuracy_at_threshold": float(np.mean(right)),
        "tpr_at_threshold": float(np.mean(fake[labels == 1])),
        "fpr_at_threshold": float(np.mean(fake[labels == 0])),
    }
    if calibration.rule == "band":
        decided = verdicts != UNDECIDED
        weights = metrics.class_weights(labels, calibration.prior)
        values["share_decided"] = float(np.average(decided, weights=weights))
        if decided.any():
            wrong = np.average(~right[decided], weights=weights[decided])
            values["wrong_of_decided"] = float(wrong)
    scaled = ranking / calibration.temperature + calibration.shift
    for name, logit, share in (
        ("raw", ranking, calibration.training_prior),
        ("calibrated", scaled, calibration.prior),
    ):
        weights = metrics.class_weights(labels, share)
        probability = special.expit(logit)
        brier = np.average((probability - labels) ** 2, weights=weights)
        loss = np.average(metrics.losses(labels, logit), weights=weights)
        values |= {
            f"loss_{name}": float(loss),
            f"brier_{name}": float(brier),
            f"ece_{name}": metrics.calibration_error(labels, probability, weights),
        }
    return values


def _notes(made: Calibration, values: dict[str, float]) -> list[str]:
    notes = []
    lowest, highest = TEMPERATURES
    if not 1.01 * lowest < made.temperature < 0.99 * highest:
        notes.append(
            f"the temperature is at the end of its range, {lowest:g} to {highest:g}: "
            "the scores say little of how sure a verdict is"
        )
    if values["tpr_at_threshold"] == 0:
        notes.append("the threshold calls no image of validation fake")
    if made.rule == "fpr" and made.num_real * made.fpr < 1:
        notes.append(
            f"validation has {made.num_real} real images, too few to tell a false "
            f"positive rate of {made.fpr:g} from 0: the threshold allows none"
        )
    if made.rule == "band":
        notes += _band_notes(made, values["share_decided"])
    return notes


def _band_notes(made: Calibration, share_decided: float) -> Iterator[str]:
    if share_decided < 0.5:
        yield (
            f"with at most {made.max_wrong:g} of the verdicts wrong only "
            f"{share_decided:.1%} of validation is decided, the rest is too close to "
            "call: a larger max_wrong decides more"
        )
    # A single image weighs at least so much.
    one = min((1 - made.prior) / made.num_real, made.prior / made.num_fake)
    if one > made.max_wrong:
        yield (
            f"validation has {made.num_images} images, too few to tell a share of "
            f"{made.max_wrong:g} wrong verdicts from 0: the thresholds allow none"
        )


def _made_with(stored: Calibration, options: Options) -> bool:
    prior = options.prior or stored.training_prior
    found = (stored.rule, stored.fpr, stored.prior, stored.max_wrong)
    return found == (options.rule, options.fpr, prior, options.max_wrong)


def _validation_data(lineage: Lineage) -> forgery_faces.FaceDataset:
    """The data of the latest training, as it was then."""
    latest = lineage.latest
    # Training has told what there is to say of them.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = datasets.prepare(
            Lineage((latest,)).data_config({}), needed=latest.splits, only_needed=True
        )
    fingerprint = dataset.fingerprint(latest.splits)
    if fingerprint != latest.fingerprint:
        raise UserError(
            f"the data have changed since the training (they were "
            f"{latest.fingerprint}, they are {fingerprint}); restore them"
        )
    return dataset
