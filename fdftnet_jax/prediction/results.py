"""Turns scores into verdicts, and into the rows of the results.

Each input has one row without a face number, for all of it. A picture with
several faces is as fake as the face that looks most so: its row has that face's box,
score and verdict, and a row for each face follows, the largest first. (The more faces,
the more chances of a false alarm.) A video's row is that of the person who looks most
fake; where several were followed, a row for each comes after it (see `video`).

An input that cannot be judged is `undecided` and says why; it has no score. A detector
may have two thresholds (`records.Thresholds`): what has a score between them is
`undecided`, too, with the reason `TOO_CLOSE`. So a picture is real only where each of
its faces is, and undecided where none is fake and one is too close to call.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from fdftnet_jax.errors import UserError
from fdftnet_jax.prediction import video
from fdftnet_jax.prediction.faces import Box
from fdftnet_jax.verdicts import UNDECIDED, Thresholds

# The reason of an input with a score that is UNDECIDED.
TOO_CLOSE = "too close to call"


class Row(NamedTuple):
    """A line of the results; None for what there is not."""

    path: str
    kind: str  # See `inputs.Item`.
    face: int | None = None  # From 0; None for the whole input.
    # The face's box in the picture, in pixels; in a video, the median over its frames.
    x: int | None = None
    y: int | None = None
    width: int | None = None
    height: int | None = None
    score: float | None = None  # Raw P(fake) in [0, 1].
    logit: float | None = None  # The log odds of the score.
    probability: float | None = None  # Calibrated P(fake) in [0, 1].
    verdict: str = UNDECIDED
    reason: str = ""  # Of UNDECIDED.
    notes: str = ""  # What to know before trusting the verdict.
    # Of a video, whose logit is a mean: the number of frames with this face that were
    # scored, and the standard deviation of their logits.
    frames: int | None = None
    deviation: float | None = None


class Judge:
    """Gives verdicts, by a detector's own thresholds or by a single one of the user's.

    Attributes:
      of: what the threshold is about: 'probability' (calibrated P(fake)) where the
        detector is calibrated, else 'score' (raw P(fake)).
      threshold: of that, in [0, 1]; from it on, a face is called fake.
      lower: of the same; below it, a face is called real. It is the same as `threshold`
        unless the detector has two and the user gives none.
    """

    def __init__(self, detector: Any, threshold: float | None = None):
        """Takes a `Detector`; raises UserError unless `threshold` is in [0, 1]."""
        if threshold is not None and not 0 <= threshold <= 1:
            raise UserError(
                f"expected --threshold to be a probability in [0, 1], found "
                f"{threshold:g}; leave it out for the detector's own"
            )
        self._detector = detector
        self._own_threshold = threshold is None
        own = detector.thresholds
        at = np.array([own.lower, own.upper], np.float64)
        probability = detector.probability(at)
        self.of = "score" if probability is None else "probability"
        if threshold is None:
            # The thresholds as they were chosen, without rounding.
            self._thresholds = own
            shown = special.expit(at) if probability is None else probability
            self.lower, self.threshold = map(float, shown)
        else:
            self._thresholds = Thresholds(threshold, threshold)
            self.lower = self.threshold = threshold

    def row(self, path: str, kind: str, logit: float, **fields: Any) -> Row:
        """Judges one score, by its finite logit."""
        z = np.array([logit], np.float64)
        score = float(special.expit(z)[0])
        calibrated = self._detector.probability(z)
        probability = None if calibrated is None else float(calibrated[0])
        if self._own_threshold:
            judged = float(logit)
        else:
            judged = score if probability is None else probability
        verdict = str(self._thresholds.verdicts(judged))
        return Row(
            path,
            kind,
            score=score,
            logit=float(logit),
            probability=probability,
            verdict=verdict,
            reason=TOO_CLOSE if verdict == UNDECIDED else "",
            **fields,
        )

    def picture(
        self,
        path: str,
        kind: str,
        boxes: Sequence[Box | None],
        logits: Sequence[float],
        notes: Sequence[str] = (),
    ) -> list[Row]:
        """Judges a picture with one face or more.

        Args:
          path: of the file.
          kind: see `inputs.Item`.
          boxes: (x, y, width, height) of each face, None for the whole picture.
          logits: of each.
          notes: what to know before trusting the verdict.

        Returns:
          The row of the picture, and those of its faces if they are several.
        """
        parts = [
            self.row(path, kind, logit, face=number, **_sides(box))
            for number, (box, logit) in enumerate(zip(boxes, logits, strict=True))
        ]
        whole, *rest = _with_whole(parts, int(np.argmax(logits)))
        return [whole._replace(notes="; ".join(notes)), *rest]

    def video(self, path: str, kind: str, result: video.VideoResult) -> list[Row]:
        """Judges a video: its row, and those of its tracks if they are several."""
        if result.deciding is None:
            return [Row(path, kind, reason=result.reason)]
        few = f"in fewer than {video.LEAST_FRAMES} frames: does not count"
        parts = [
            self.row(
                path,
                kind,
                track.logit,
                face=number,
                notes="" if result.counts(number) else few,
                frames=track.logits.size,
                deviation=track.deviation,
                **_sides(tuple(np.rint(np.median(track.boxes, axis=0)))),
            )
            for number, track in enumerate(result.tracks)
        ]
        whole, *rest = _with_whole(parts, result.deciding)
        return [whole._replace(notes="; ".join(result.notes)), *rest]


def deciding(rows: Sequence[Row]) -> int:
    """Finds, in the rows of an input, the number of the face that decides."""
    return next((i for i, row in enumerate(rows[1:]) if row.logit == rows[0].logit), 0)


def _with_whole(parts: list[Row], deciding: int) -> list[Row]:
    """Puts the row of the whole input before those of several parts."""
    return [parts[deciding]._replace(face=None), *(parts if len(parts) > 1 else [])]


def _sides(box: Box | None) -> dict[str, int]:
    if box is None:
        return {}
    return dict(zip(("x", "y", "width", "height"), map(int, box), strict=True))
