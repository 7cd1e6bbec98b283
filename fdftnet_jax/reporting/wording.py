"""The words of a report: titles and definitions, and numbers for any reader."""

import re
from collections.abc import Mapping
from typing import Any

# Figure of `evaluation.results` -> its title, and what it is.
METRICS = {
    "auc": (
        "AUROC",
        "Area under the ROC curve: how often a fake image, drawn at random, has a "
        "higher score than a real one (ties count half). 0.5 is chance, 1 is perfect; "
        "no threshold is involved.",
    ),
    "average_precision": (
        "average precision (AP)",
        "The area under the curve of precision (the share of fakes among the images "
        "called fake) against recall, without interpolation. Chance is the share of "
        "fakes in the test, and so it cannot be compared between tests.",
    ),
    "eer": (
        "equal error rate (EER)",
        "The error rate at the threshold where as large a share of the real images is "
        "called fake as of the fake ones real. 0.5 is chance, 0 is perfect. The "
        "threshold is chosen on these very images, as a summary of the curve.",
    ),
    "tpr_at_fpr_0.01": (
        "TPR at FPR 1 %",
        "The largest share of the fakes that some threshold finds while at most 1 % of "
        "the real images are called fake. Without interpolation: with fewer than 100 "
        "real images none may be.",
    ),
    "tpr_at_fpr_0.001": (
        "TPR at FPR 0.1 %",
        "The same at 0.1 %; it takes at least 1,000 real images to tell that from "
        "none.",
    ),
    "accuracy": (
        "accuracy at score 0.5",
        "The share of the images that are called what they are where a raw score of "
        "0.5 or more is called fake. It depends on how many fakes the test holds.",
    ),
    "accuracy_at_threshold": (
        "accuracy at the threshold",
        "The share of all images that are called what they are at the detector's "
        "threshold; an undecided image is not. It depends on how many fakes the test "
        "holds.",
    ),
    "tpr_at_threshold": (
        "fakes found at the threshold",
        "The true positive rate: the share of all fake images that are called fake at "
        "the detector's threshold.",
    ),
    "fpr_at_threshold": (
        "false alarms at the threshold",
        "The false positive rate: the share of all real images that are called fake at "
        "the detector's threshold.",
    ),
    "share_decided": (
        "images that are decided",
        "The share of the images that are called real or fake. The others lie between "
        "the two thresholds and are undecided: too close to call. Images are weighted "
        "to the share of fakes that the calibration assumes.",
    ),
    "wrong_of_decided": (
        "wrong verdicts of those decided",
        "Of the images that are decided, the share that is called what it is not. "
        "Images are weighted to the share of fakes that the calibration assumes.",
    ),
    "loss": (
        "cross entropy, nats",
        "The mean of -log of the probability that the raw score gives to what the "
        "image is. 0 is perfect; saying 50 % every time has 0.693.",
    ),
    "brier_raw": (
        "Brier score, raw",
        "The mean of (P(fake) - label) squared, of the raw score; images are weighted "
        "so that fakes have the share they had in training. 0 is perfect; saying 50 % "
        "every time has 0.25.",
    ),
    "brier_calibrated": (
        "Brier score, calibrated",
        "The same of the calibrated P(fake), weighted to the share of fakes that the "
        "calibration assumes.",
    ),
    "ece_raw": (
        "calibration error, raw",
        "Expected calibration error (ECE) of the raw score: images are put in order of "
        "P(fake) and cut into at most 15 bins of equally many; in each the share of "
        "fakes is compared with the mean P(fake), and the differences are averaged. It "
        "is above 0 by chance, and has no interval, since it grows in a resample.",
    ),
    "ece_calibrated": (
        "calibration error, calibrated",
        "The same of the calibrated P(fake).",
    ),
}
WORDS = {
    "Positive": "A fake image: label 1. Real is label 0, the negative. A true positive "
    "is a fake that is called fake, a false positive a real image that is called fake.",
    "Score": "What the network gives: P(fake) = softmax(logits), raw, between 0 and 1. "
    "Its log odds z = logit(fake) - logit(real) order the images in the same way and "
    "do not saturate.",
    "Calibrated P(fake)": "1 / (1 + exp(-(z / T + shift))). The temperature T was "
    "fitted on the validation images; the shift corrects by Bayes' rule from the share "
    "of fakes in training to the share that is assumed among the pictures to be "
    "judged. It changes how sure a verdict is, not which it is.",
    "Interval": "Percentile bootstrap: the images of the test are drawn again, with "
    "replacement, and every figure is computed anew in each resample; the interval "
    "holds the middle of the values. Where groups hold several images (videos, "
    "persons), whole groups are drawn. It tells of other images of the same kind, and "
    "not of another training, other forgeries or other cameras.",
    "Group": "Images that belong together, such as the frames of a video or the "
    "pictures of a person; a group is never on both sides of a split.",
    "Validation": "Images held back from training, by which the best checkpoint, the "
    "temperature and the threshold were chosen.",
    "gamma": "In each stage of the Fine-Tune Transformer the output of the attention, "
    "times gamma, is added to its input. Near 0, what is attended to hardly counts.",
}
TOY = (
    "Toy pictures, drawn by this program: a figure on them says nothing about real "
    "forgeries."
)

# Longer names first: some begin with others.
_NAME = re.compile(
    r"\b(" + "|".join(map(re.escape, sorted(METRICS, key=len, reverse=True))) + r")\b"
)


def verdict(hits: Mapping[str, Any], alarms: Mapping[str, Any]) -> str:
    """A sentence on what a detector does to 100 fake and to 100 real pictures.

    Args:
      hits: {value, interval} of the share of fakes called fake.
      alarms: of the share of real images called fake.
    """
    return (
        f"Of 100 fake pictures it finds {_count(hits)}, and it calls "
        f"{_count(alarms)} of 100 real ones fake."
    )


def decided(found: Mapping[str, Any]) -> str:
    """A sentence on how many of 100 pictures are decided, and how many of these wrong.

    Args:
      found: the figures of a report by the rule 'band'; {value, interval} each.
    """
    share = _count(found["share_decided"])
    text = f"It decides {share} of 100 pictures, the rest is too close to call"
    if "wrong_of_decided" not in found:
        return f"{text}."
    wrong = _count(found["wrong_of_decided"])
    return f"{text}; of 100 that it decides, {wrong} are called what they are not."


def per_hundred(share: float) -> str:
    """A share in [0, 1] as a number of 100; never 0 or 100 where it is not quite."""
    number = round(100 * share)
    if number == 0 and share > 0:
        return "fewer than 1"
    if number == 100 and share < 1:
        return "more than 99"
    return str(number)


def _count(figure: Mapping[str, Any]) -> str:
    text = per_hundred(figure["value"])
    if figure["interval"] is None:
        return text
    low, high = (per_hundred(end) for end in figure["interval"])
    return f"{text} ({low})" if low == high else f"{text} ({low} to {high})"


def figure(found: Mapping[str, Any]) -> tuple[str, str]:
    """A figure {value, interval} as cells of a table: its value and its interval."""
    if found["interval"] is None:
        return f"{found['value']:.4f}", "-"
    low, high = found["interval"]
    return f"{found['value']:.4f}", f"{low:.4f} to {high:.4f}"


def bracketed(found: Mapping[str, Any]) -> str:
    """A figure {value, interval} in a line of text: '0.9012 [0.8800, 0.9200]'."""
    text = f"{found['value']:.4f}"
    if found["interval"] is None:
        return text
    low, high = found["interval"]
    return f"{text} [{low:.4f}, {high:.4f}]"


def sentence(note: str) -> str:
    """A note as a sentence of its own, which calls metrics by their titles."""
    note = _NAME.sub(lambda found: METRICS[found[0]][0], note)
    return f"{note[0].upper()}{note[1:]}."
