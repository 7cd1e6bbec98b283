"""What results say in words, on the page and in the report of a file."""

from typing import Any

from fdftnet_jax.prediction.results import Row
from fdftnet_jax.verdicts import FAKE, REAL, UNDECIDED

# Verdict -> what it does not mean.
NOT_MEANT = {
    FAKE: "is no proof. It says that the picture is more like the fakes that the "
    "detector was trained on than like the real pictures; not how, by whom or why it "
    "was made.",
    REAL: "does not mean authentic. A forgery of a kind that the detector has not seen "
    "may well pass.",
    UNDECIDED: "is an answer: the detector cannot say, for the reason that is given.",
}
CAUTIONS = (
    "Where fakes are rare, most pictures that are called fake are real, even with a "
    "good detector.",
    "Screenshots, compression, filters, cameras and people unlike those of the "
    "training move the scores.",
)
ADVICE = (
    "Never act on a verdict alone. Have a person look, seek the source of the picture, "
    "and let the person concerned answer."
)
MAPS = (
    "Bright places of the attention are those that the Fine-Tune Transformer looks at "
    "most; of the Grad-CAM, those that speak most for fake to the other branch. They "
    "show where a score came from: not why, and not what is forged."
)
TOY = "This is the toy detector: it knows drawn pictures, and nothing of real faces."


def verdict(row: Row) -> str:
    """The verdict and, where it is undecided, the reason."""
    named = row.verdict.capitalize()
    return f"{named}: {row.reason}" if row.reason else named


def sentence(row: Row, header: dict[str, Any], prior: float | None) -> str:
    """What the score of a file says, as on its card; '' where there is none.

    Args:
      row: of the file.
      header: see `scorer.header`.
      prior: share of fakes that the detector was calibrated for; None where it is not
        calibrated.
    """
    if row.score is None:
        return ""
    if row.probability is None or prior is None:
        return (
            f"Score {row.score:.2f}, from 0 for real to 1 for fake. This detector is "
            "not calibrated, so that is no probability."
        )
    what = "videos" if row.kind == "video" else "pictures"
    counted = (
        f"Of 100 such {what}, {of_hundred(row.probability)} are fake, if "
        f"{100 * prior:.3g} of 100 are to begin with."
    )
    if row.reason or (row.probability >= 0.5) == (row.verdict == FAKE):
        return counted
    start = round(100 * header["threshold"]["value"])
    return f"{counted} This detector says fake from {start} on."


def face(row: Row) -> str:
    """What is said of one of several faces."""
    what = "Person" if row.kind == "video" else "Face"
    value = f"score {row.score:.2f}"
    if row.probability is not None:
        value = f"{of_hundred(row.probability)} of 100 fake"
    notes = f"; {row.notes}" if row.notes else ""
    assert row.face is not None
    return f"{what} {row.face + 1}: {row.reason or row.verdict}, {value}{notes}"


def of_hundred(share: float) -> str:
    """A share in [0, 1] as a number of hundred."""
    if share < 0.01:
        return "fewer than 1"
    return "more than 99" if share > 0.99 else f"about {100 * share:.0f}"
